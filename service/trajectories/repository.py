"""Queries on ``trajectories``."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from sqlalchemy import func, select, tuple_
from sqlalchemy.orm import Session, undefer

from contract.tables import Trajectory
from contract.trajectory_outcome import Outcome


@dataclass(frozen=True)
class TrajectoryFilter:
    """Which trajectories of a job; empty does not filter."""

    job_id: str
    outcomes: Collection[Outcome] = ()
    round: int | None = None


def page(
    session: Session, wanted: TrajectoryFilter, after: tuple[int, int] | None, limit: int, *, with_token_kl: bool
) -> Sequence[Trajectory]:
    """Trajectories by round and position, one more than `limit`; `after` is the (round, position) last seen.

    Only `with_token_kl` reads their KL a token, which is as long as the texts.
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


def find(session: Session, job_id: str, round: int, position: int, *, with_token_kl: bool = False) -> Trajectory | None:
    """One trajectory."""
    options = [undefer(Trajectory.token_kl)] if with_token_kl else []
    return session.get(Trajectory, (job_id, round, position), options=options)


def num_by_outcome(session: Session, job_id: str) -> Sequence[tuple[int, str, int]]:
    """(round, outcome, count) of a job's trajectories."""
    query = select(Trajectory.round, Trajectory.outcome, func.count()).where(Trajectory.job_id == job_id)
    grouped = query.group_by(Trajectory.round, Trajectory.outcome).order_by(Trajectory.round, Trajectory.outcome)
    return [(round, outcome, count) for round, outcome, count in session.execute(grouped)]
