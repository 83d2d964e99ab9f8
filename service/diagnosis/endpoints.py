"""``/jobs/{id}/diagnosis``."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query

from contract.views.diagnosis import DiagnosisView
from contract.views.page import Page
from service.auth import Reader
from service.context import Context
from service.diagnosis import repository
from service.errors import NotFoundError, raises
from service.jobs.service import get_job
from service.pages import Limit, cut
from service.query_types import DECIMAL

router = APIRouter(prefix="/jobs/{job_id}/diagnosis", tags=["jobs"])


@router.get("", summary="What each round says of prefix failure")
@raises(NotFoundError)
def list_diagnoses(
    context: Context,
    caller: Reader,
    job_id: str,
    *,
    after: Annotated[int | None, Query(ge=0, lt=2**31, description="Round of the last one seen."), DECIMAL] = None,
    limit: Limit = 20,
) -> Page[DiagnosisView]:
    """By round; none where the job's ``diagnosis.num_trajectories`` is 0."""
    with context.database.read() as session:
        get_job(session, caller.owner, job_id)
        found = repository.page(session, job_id, after, limit)
    rows, has_more = cut(found, limit)
    return Page(data=[DiagnosisView.of(row) for row in rows], has_more=has_more)
