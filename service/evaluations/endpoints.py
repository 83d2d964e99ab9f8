"""``/jobs/{id}/evaluations``."""

from __future__ import annotations

from fastapi import APIRouter

from contract.views.evaluations import EvaluationView
from contract.views.page import Page
from service.auth import Reader
from service.context import Context
from service.errors import NotFoundError, raises
from service.evaluations import repository
from service.jobs.service import get_job

router = APIRouter(prefix="/jobs/{job_id}/evaluations", tags=["jobs"])


@router.get("", summary="The student's scores over the run")
@raises(NotFoundError)
def list_evaluations(context: Context, caller: Reader, job_id: str) -> Page[EvaluationView]:
    """By step; all of them."""
    with context.database.read() as session:
        get_job(session, caller.owner, job_id)
        rows = repository.all_of(session, job_id)
    return Page(data=[EvaluationView.of(row) for row in rows], has_more=False)
