"""``/jobs/{id}/metrics``, ``/trajectories``, ``/diagnosis``, ``/evaluations`` and ``/probe-samples``."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query

from contract.trajectory_outcome import Outcome
from contract.views.diagnosis import DiagnosisView
from contract.views.evaluations import EvaluationView
from contract.views.metrics import MetricSeries
from contract.views.page import Page
from contract.views.probe_samples import ProbeSampleView
from contract.views.trajectories import OutcomeCount, TrajectoryView
from service.auth import Reader
from service.context import Context
from service.errors import NotFoundError, raises
from service.query import DECIMAL, Limit
from service.runs.repository import MetricRange, TrajectoryFilter
from service.runs.service import trajectory_view

router = APIRouter(prefix="/jobs/{job_id}", tags=["jobs"])

Number = Annotated[int | None, Query(ge=0, lt=2**31), DECIMAL]
Pair = Annotated[str | None, Query(pattern=r"^\d{1,9}:\d{1,9}$", description="Id of the last one seen.")]
PerTokenKl = Annotated[bool, Query(description="Show the KL of each token, where the trajectory was diagnosed.")]


def _pair(text: str | None) -> tuple[int, int] | None:
    """Return the numbers of ``1:2``; None for any other text."""
    first, colon, second = (text or "").partition(":")
    is_number = all(part.isascii() and part.isdigit() and len(part) <= 9 for part in (first, second))
    return (int(first), int(second)) if colon and is_number else None


@router.get("/metrics", summary="A job's metrics over its steps")
@raises(NotFoundError)
def list_metrics(
    context: Context,
    caller: Reader,
    job_id: str,
    *,
    names: Annotated[str, Query(max_length=5000, description="Comma-separated; none takes all.")] = "",
    from_step: Number = None,
    to_step: Number = None,
    resolution: Annotated[
        int, Query(ge=2, le=10_000, description="About the most points of a metric."), DECIMAL
    ] = 1000,
) -> Page[MetricSeries]:
    """Each metric's points in the range. If there are more than ``resolution``, the lowest and the highest of each
    stretch of steps are kept, so that peaks stay."""
    wanted = MetricRange(job_id, [name for name in names.split(",") if name], from_step, to_step)
    return Page(data=context.runs.metric_series(caller.owner, wanted, resolution), has_more=False)


@router.get("/trajectories", summary="What the student wrote, and what refining made of it")
@raises(NotFoundError)
def list_trajectories(
    context: Context,
    caller: Reader,
    job_id: str,
    *,
    outcome: Annotated[list[Outcome], Query(description="Any of these.")] = [],  # noqa: B006 - FastAPI copies it
    round: Number = None,
    after: Pair = None,
    per_token_kl: PerTokenKl = False,
    limit: Limit = 20,
) -> Page[TrajectoryView]:
    """By round and position."""
    wanted = TrajectoryFilter(job_id, outcome, round)
    rows, has_more = context.runs.trajectories(caller.owner, wanted, _pair(after), limit, with_token_kl=per_token_kl)
    return Page(data=[trajectory_view(row, with_token_kl=per_token_kl) for row in rows], has_more=has_more)


@router.get("/trajectories/outcomes", summary="How many trajectories had which outcome, by round")
@raises(NotFoundError)
def count_outcomes(context: Context, caller: Reader, job_id: str) -> Page[OutcomeCount]:
    """For example, how many failed rollouts became correct by refining."""
    counts = context.runs.num_by_outcome(caller.owner, job_id)
    data = [OutcomeCount(round=r, outcome=Outcome(o), num_trajectories=n) for r, o, n in counts]
    return Page(data=data, has_more=False)


@router.get("/trajectories/{trajectory_id}", summary="One trajectory")
@raises(NotFoundError)
def show_trajectory(
    context: Context, caller: Reader, job_id: str, trajectory_id: str, per_token_kl: PerTokenKl = False
) -> TrajectoryView:
    """By its ``round:position``."""
    row = context.runs.trajectory(caller.owner, job_id, _pair(trajectory_id), with_token_kl=per_token_kl)
    if row is None:
        raise NotFoundError(f"{job_id} has no trajectory {trajectory_id}", param="trajectory_id")
    return trajectory_view(row, with_token_kl=per_token_kl)


@router.get("/diagnosis", summary="What each round says of prefix failure")
@raises(NotFoundError)
def list_diagnoses(
    context: Context,
    caller: Reader,
    job_id: str,
    *,
    after: Annotated[int | None, Query(ge=0, lt=2**31, description="Round of the last one seen."), DECIMAL] = None,
    limit: Limit = 20,
) -> Page[DiagnosisView]:
    """By round; none if the job's ``diagnosis.num_trajectories`` is 0."""
    rows, has_more = context.runs.diagnoses(caller.owner, job_id, after, limit)
    return Page(data=[DiagnosisView.of(row) for row in rows], has_more=has_more)


@router.get("/evaluations", summary="The student's scores over the run")
@raises(NotFoundError)
def list_evaluations(context: Context, caller: Reader, job_id: str) -> Page[EvaluationView]:
    """By step; all of them."""
    rows = context.runs.evaluations(caller.owner, job_id)
    return Page(data=[EvaluationView.of(row) for row in rows], has_more=False)


@router.get("/probe-samples", summary="What the student answers to a few fixed problems over its run")
@raises(NotFoundError)
def list_probe_samples(
    context: Context,
    caller: Reader,
    job_id: str,
    *,
    step: Annotated[int | None, Query(ge=0, lt=2**31, description="Of this evaluation only."), DECIMAL] = None,
    after: Pair = None,
    limit: Limit = 20,
) -> Page[ProbeSampleView]:
    """By step and position; each step has as many as the job's ``evaluation.num_probe_samples``."""
    rows, has_more = context.runs.probe_samples(caller.owner, job_id, step, _pair(after), limit)
    return Page(data=[ProbeSampleView.of(row, id=f"{row.step}:{row.position}") for row in rows], has_more=has_more)
