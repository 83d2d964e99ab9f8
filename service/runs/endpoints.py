"""``/jobs/{id}/metrics``, ``/trajectories``, ``/diagnosis``, ``/evaluations`` and ``/probe-samples``."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Query

from contract.views import Page
from contract.views.diagnosis import DiagnosisView
from contract.views.runs import EvaluationView, MetricPage, ProbeSampleView
from contract.views.trajectories import Outcome, OutcomeCount, TrajectoryDetailView, TrajectoryPage
from service.auth import Reader
from service.context import Context
from service.errors import ERROR_RESPONSES, NotFoundError, raises
from service.query import DECIMAL, Limit
from service.runs.service import MetricRange, TrajectoryFilter, detail_view, trajectory_key, trajectory_view

Number = Annotated[int | None, Query(ge=0, lt=2**31), DECIMAL]
Pair = Annotated[str | None, Query(pattern=r"^\d{1,9}:\d{1,9}$", description="Id of the last one seen.")]
PerTokenKl = Annotated[bool, Query(description="Show the KL of each token, if the trajectory was diagnosed.")]
Tokens = Annotated[
    int | None, Query(ge=0, lt=2**31, description="Of the longer one of rollout and refinement."), DECIMAL
]


def wanted_trajectories(
    job_id: str,
    *,
    outcome: Annotated[list[Outcome], Query(description="Any of these.")] = [],  # noqa: B006 - FastAPI copies it
    round: Number = None,
    step: Annotated[
        int | None, Query(ge=0, lt=2**31, description="First step that trains on the trajectory."), DECIMAL
    ] = None,
    min_tokens: Tokens = None,
    max_tokens: Tokens = None,
    text: Annotated[
        str | None,
        Query(max_length=200, description="In the prompt, the rollout or the refinement, in upper or lower case."),
    ] = None,
) -> TrajectoryFilter:
    """Return which of the job's trajectories a request asks for, as a dependency."""
    return TrajectoryFilter(job_id, outcome, round, step, min_tokens, max_tokens, text)


Wanted = Annotated[TrajectoryFilter, Depends(wanted_trajectories)]

router = APIRouter(prefix="/jobs/{job_id}", tags=["jobs"], responses=ERROR_RESPONSES)


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
) -> MetricPage:
    """The answer has each metric's points in the range. If there are more than ``resolution``, the lowest and the
    highest of each stretch of steps are kept, so that peaks stay."""
    wanted = MetricRange(job_id, [name for name in names.split(",") if name], from_step, to_step)
    series, removed_before = context.runs.metric_series(caller.owner, wanted, resolution)
    return MetricPage(data=series, has_more=False, removed_before=removed_before)


@router.get("/trajectories", summary="What the student wrote, and what refining made of it")
@raises(NotFoundError)
def list_trajectories(
    context: Context,
    caller: Reader,
    job_id: str,
    *,
    wanted: Wanted,
    after: Pair = None,
    per_token_kl: PerTokenKl = False,
    limit: Limit = 20,
) -> TrajectoryPage:
    """The trajectories are listed by round and position."""
    rows, found, removed_before = context.runs.trajectories(
        caller.owner, wanted, trajectory_key(after), limit, with_token_kl=per_token_kl
    )
    return TrajectoryPage(
        data=[trajectory_view(row, with_token_kl=per_token_kl) for row in rows],
        has_more=found.has_more,
        searched_to=None if found.searched_to is None else "{}:{}".format(*found.searched_to),
        removed_before=removed_before,
    )


@router.get("/trajectories/outcomes", summary="How many trajectories had which outcome, by round")
@raises(NotFoundError)
def count_outcomes(context: Context, caller: Reader, job_id: str) -> Page[OutcomeCount]:
    """This tells, for example, how many failed rollouts became correct by refining."""
    counts = context.runs.num_by_outcome(caller.owner, job_id)
    data = [OutcomeCount(round=r, outcome=Outcome(o), num_trajectories=n) for r, o, n in counts]
    return Page(data=data, has_more=False)


@router.get("/trajectories/{trajectory_id}", summary="One trajectory")
@raises(NotFoundError)
def show_trajectory(
    context: Context,
    caller: Reader,
    job_id: str,
    trajectory_id: str,
    *,
    per_token_kl: PerTokenKl = False,
    tokens: Annotated[bool, Query(description="Show the text, the KL and alternatives of each token.")] = False,
    alignment: Annotated[bool, Query(description="Align rollout and refinement.")] = False,
) -> TrajectoryDetailView:
    """The trajectory is named by its ``round:position``. Tokens are known if it was diagnosed."""
    with_tokens = per_token_kl or tokens or alignment
    row = context.runs.trajectory(caller.owner, job_id, trajectory_key(trajectory_id), with_tokens=with_tokens)
    return detail_view(row, with_token_kl=per_token_kl, with_tokens=tokens, is_aligned=alignment)


@router.get("/diagnosis", summary="What each round says about prefix failure")
@raises(NotFoundError)
def list_diagnoses(
    context: Context,
    caller: Reader,
    job_id: str,
    *,
    after: Annotated[int | None, Query(ge=0, lt=2**31, description="Round of the last one seen."), DECIMAL] = None,
    limit: Limit = 20,
) -> Page[DiagnosisView]:
    """The diagnoses are listed by round; there are none if the job's ``diagnosis.num_trajectories`` is 0."""
    rows, has_more = context.runs.diagnoses(caller.owner, job_id, after, limit)
    return Page(data=[DiagnosisView.of(row) for row in rows], has_more=has_more)


@router.get("/evaluations", summary="The student's scores over the run")
@raises(NotFoundError)
def list_evaluations(context: Context, caller: Reader, job_id: str) -> Page[EvaluationView]:
    """All evaluations are listed, by step."""
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
    """The answers are listed by step and position; each step has ``evaluation.num_probe_samples`` of them."""
    rows, has_more = context.runs.probe_samples(caller.owner, job_id, step, trajectory_key(after), limit)
    return Page(data=[ProbeSampleView.of(row, id=f"{row.step}:{row.position}") for row in rows], has_more=has_more)
