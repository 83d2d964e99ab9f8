"""``/jobs/{id}/trajectories``."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query

from contract.trajectory_outcome import Outcome
from contract.views.page import Page
from contract.views.trajectories import OutcomeCount, TrajectoryView
from service.auth import Reader
from service.context import Context
from service.errors import NotFoundError, raises
from service.jobs.service import get_job
from service.pages import Limit, cut
from service.query_types import DECIMAL
from service.trajectories import repository
from service.trajectories.repository import TrajectoryFilter
from service.trajectories.schemas import trajectory_view

router = APIRouter(prefix="/jobs/{job_id}/trajectories", tags=["jobs"])

PerTokenKl = Annotated[bool, Query(description="Show the KL of each token, where the trajectory was diagnosed.")]

ROUND_POSITION = r"^\d{1,9}:\d{1,9}$"


@router.get("", summary="What the student wrote, and what refining made of it")
@raises(NotFoundError)
def list_trajectories(
    context: Context,
    caller: Reader,
    job_id: str,
    *,
    outcome: Annotated[list[Outcome], Query(description="Any of these.")] = [],  # noqa: B006 - FastAPI copies it
    round: Annotated[int | None, Query(ge=0, lt=2**31), DECIMAL] = None,
    after: Annotated[str | None, Query(pattern=ROUND_POSITION, description="Id of the last one seen.")] = None,
    per_token_kl: PerTokenKl = False,
    limit: Limit = 20,
) -> Page[TrajectoryView]:
    """By round and position."""
    wanted = TrajectoryFilter(job_id, outcome, round)
    with context.database.read() as session:
        get_job(session, caller.owner, job_id)
        last_seen = _parsed(after) if after is not None else None
        found = repository.page(session, wanted, last_seen, limit, with_token_kl=per_token_kl)
    rows, has_more = cut(found, limit)
    return Page(data=[trajectory_view(row, with_token_kl=per_token_kl) for row in rows], has_more=has_more)


@router.get("/outcomes", summary="How many trajectories had which outcome, by round")
@raises(NotFoundError)
def count_outcomes(context: Context, caller: Reader, job_id: str) -> Page[OutcomeCount]:
    """For example, how many failed rollouts refining mended."""
    with context.database.read() as session:
        get_job(session, caller.owner, job_id)
        counts = repository.num_by_outcome(session, job_id)
    data = [OutcomeCount(round=r, outcome=Outcome(o), num_trajectories=n) for r, o, n in counts]
    return Page(data=data, has_more=False)


@router.get("/{trajectory_id}", summary="One trajectory")
@raises(NotFoundError)
def show_trajectory(
    context: Context, caller: Reader, job_id: str, trajectory_id: str, per_token_kl: PerTokenKl = False
) -> TrajectoryView:
    """By its ``round:position``."""
    with context.database.read() as session:
        get_job(session, caller.owner, job_id)
        key = _parsed(trajectory_id)
        row = repository.find(session, job_id, *key, with_token_kl=per_token_kl) if key is not None else None
    if row is None:
        raise NotFoundError(f"{job_id} has no trajectory {trajectory_id}")
    return trajectory_view(row, with_token_kl=per_token_kl)


def _parsed(trajectory_id: str) -> tuple[int, int] | None:
    round, colon, position = trajectory_id.partition(":")
    is_number = all(part.isascii() and part.isdigit() and len(part) <= 9 for part in (round, position))
    return (int(round), int(position)) if colon and is_number else None
