"""Queries on ``metric_points``, ``trajectories``, ``diagnoses``, ``evaluations`` and ``probe_samples``."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Row, Select, func, or_, select, tuple_
from sqlalchemy.orm import Session, undefer

from contract.tables import Diagnosis, Evaluation, MetricPoint, ProbeSample, Trajectory
from contract.trajectory_outcome import Outcome

Points = Sequence[Row[Any, Any, Any, Any]]
"""Rows of (name, step, value, at)."""


@dataclass(frozen=True)
class MetricRange:
    """Which points of a job to read; None does not limit."""

    job_id: str
    names: Collection[str] = ()
    from_step: int | None = None
    to_step: int | None = None

    def select(self, *columns: Any) -> Select[Any]:
        """Return a query on these points."""
        query = select(*columns).where(MetricPoint.job_id == self.job_id)
        if self.names:
            query = query.where(MetricPoint.name.in_(self.names))
        if self.from_step is not None:
            query = query.where(MetricPoint.step >= self.from_step)
        if self.to_step is not None:
            query = query.where(MetricPoint.step <= self.to_step)
        return query


def metric_extents(session: Session, wanted: MetricRange) -> Sequence[Row[Any, Any, Any, Any]]:
    """Return (name, num_points, first_step, last_step) of each metric."""
    columns = (
        MetricPoint.name,
        func.count().label("num_points"),
        func.min(MetricPoint.step).label("first_step"),
        func.max(MetricPoint.step).label("last_step"),
    )
    return session.execute(wanted.select(*columns).group_by(MetricPoint.name).order_by(MetricPoint.name)).all()


def metric_points(session: Session, wanted: MetricRange) -> Points:
    """Return (name, step, value, at) of every point, in order."""
    query = wanted.select(MetricPoint.name, MetricPoint.step, MetricPoint.value, MetricPoint.at)
    return session.execute(query.order_by(MetricPoint.name, MetricPoint.step)).all()


def metric_at(session: Session, name: str, places: Collection[tuple[str, int]]) -> Sequence[tuple[str, float]]:
    """Return (job, value) of a metric at these (job, step), by step, where there is a finite value."""
    query = select(MetricPoint.job_id, MetricPoint.value).where(MetricPoint.name == name)
    query = query.where(tuple_(MetricPoint.job_id, MetricPoint.step).in_(places))
    found = session.execute(query.order_by(MetricPoint.step))
    return [(job_id, value) for job_id, value in found if value is not None]


def thinned_metric_points(session: Session, wanted: MetricRange, first_step: int, bucket_steps: int) -> Points:
    """Return the lowest and the highest point of every `bucket_steps` steps, and one that is not finite if there is
    one. An average would hide the peaks of a curve."""
    bucket = (MetricPoint.step - first_step) // bucket_steps
    is_null = MetricPoint.value.is_(None)
    parts = (MetricPoint.name, bucket, is_null)
    lowest = func.row_number().over(partition_by=parts, order_by=(MetricPoint.value, MetricPoint.step))
    highest = func.row_number().over(partition_by=parts, order_by=(MetricPoint.value.desc(), MetricPoint.step))
    ranked = wanted.select(
        MetricPoint.name,
        MetricPoint.step,
        MetricPoint.value,
        MetricPoint.at,
        lowest.label("from_lowest"),
        highest.label("from_highest"),
    ).subquery()
    columns = (ranked.c.name, ranked.c.step, ranked.c.value, ranked.c.at)
    is_kept = or_(ranked.c.from_lowest == 1, ranked.c.from_highest == 1)
    return session.execute(select(*columns).where(is_kept).order_by(ranked.c.name, ranked.c.step)).all()


@dataclass(frozen=True)
class TrajectoryFilter:
    """Which trajectories of a job to list; empty does not filter."""

    job_id: str
    outcomes: Collection[Outcome] = ()
    round: int | None = None


def trajectories(
    session: Session, wanted: TrajectoryFilter, after: tuple[int, int] | None, limit: int, *, with_token_kl: bool
) -> Sequence[Trajectory]:
    """Return trajectories by round and position, one more than `limit`; `after` is the last (round, position) seen.

    The KL of each token is as long as the texts, and read only `with_token_kl`.
    """
    query = select(Trajectory).where(Trajectory.job_id == wanted.job_id)
    if with_token_kl:
        query = query.options(undefer(Trajectory.token_kl))
    if wanted.outcomes:
        query = query.where(Trajectory.outcome.in_(wanted.outcomes))
    if wanted.round is not None:
        query = query.where(Trajectory.round == wanted.round)
    if after is not None:
        query = query.where(tuple_(Trajectory.round, Trajectory.position) > tuple_(*after))
    return session.scalars(query.order_by(Trajectory.round, Trajectory.position).limit(limit + 1)).all()


def trajectory(
    session: Session, job_id: str, round: int, position: int, *, with_token_kl: bool = False
) -> Trajectory | None:
    """Return one trajectory."""
    options = [undefer(Trajectory.token_kl)] if with_token_kl else []
    return session.get(Trajectory, (job_id, round, position), options=options)


def num_by_outcome(session: Session, job_id: str) -> Sequence[tuple[int, str, int]]:
    """Return (round, outcome, count) of a job's trajectories."""
    query = select(Trajectory.round, Trajectory.outcome, func.count()).where(Trajectory.job_id == job_id)
    grouped = query.group_by(Trajectory.round, Trajectory.outcome).order_by(Trajectory.round, Trajectory.outcome)
    return [(round, outcome, count) for round, outcome, count in session.execute(grouped)]


def diagnoses(session: Session, job_id: str, after: int | None, limit: int) -> Sequence[Diagnosis]:
    """Return diagnoses by round, one more than `limit`; `after` is the last round seen."""
    query = select(Diagnosis).where(Diagnosis.job_id == job_id)
    if after is not None:
        query = query.where(Diagnosis.round > after)
    return session.scalars(query.order_by(Diagnosis.round).limit(limit + 1)).all()


def evaluations(session: Session, job_id: str) -> Sequence[Evaluation]:
    """Return all evaluations by step; a run makes a handful."""
    query = select(Evaluation).where(Evaluation.job_id == job_id)
    return session.scalars(query.order_by(Evaluation.step, Evaluation.dataset)).all()


def probe_samples(
    session: Session, job_id: str, step: int | None, after: tuple[int, int] | None, limit: int
) -> Sequence[ProbeSample]:
    """Return samples by step and position, one more than `limit`; `after` is the last (step, position) seen."""
    query = select(ProbeSample).where(ProbeSample.job_id == job_id)
    if step is not None:
        query = query.where(ProbeSample.step == step)
    if after is not None:
        query = query.where(tuple_(ProbeSample.step, ProbeSample.position) > tuple_(*after))
    return session.scalars(query.order_by(ProbeSample.step, ProbeSample.position).limit(limit + 1)).all()
