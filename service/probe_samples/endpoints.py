"""``/jobs/{id}/probe-samples``."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query

from contract.views.page import Page
from contract.views.probe_samples import ProbeSampleView
from service.auth import Reader
from service.context import Context
from service.errors import NotFoundError, raises
from service.jobs.service import get_job
from service.pages import Limit, cut
from service.probe_samples import repository
from service.query_types import DECIMAL

router = APIRouter(prefix="/jobs/{job_id}/probe-samples", tags=["jobs"])

STEP_POSITION = r"^\d{1,9}:\d{1,9}$"


@router.get("", summary="What the student answers to a few fixed problems over its run")
@raises(NotFoundError)
def list_probe_samples(
    context: Context,
    caller: Reader,
    job_id: str,
    *,
    step: Annotated[int | None, Query(ge=0, lt=2**31, description="Of this evaluation only."), DECIMAL] = None,
    after: Annotated[str | None, Query(pattern=STEP_POSITION, description="Id of the last one seen.")] = None,
    limit: Limit = 20,
) -> Page[ProbeSampleView]:
    """By step and position; as many a step as the job's ``evaluation.num_probe_samples``."""
    last_seen = None
    if after is not None:
        seen_step, seen_position = after.split(":")
        last_seen = int(seen_step), int(seen_position)
    with context.database.read() as session:
        get_job(session, caller.owner, job_id)
        found = repository.page(session, job_id, step, last_seen, limit)
    rows, has_more = cut(found, limit)
    return Page(data=[ProbeSampleView.of(row, id=f"{row.step}:{row.position}") for row in rows], has_more=has_more)
