"""Queries for what the `openai` client is shown and the native API shows otherwise."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from contract.tables import Checkpoint, JobEvent, MetricPoint

LOSSES = ("loss", "heldout_forward_kl")


def num_trained_tokens(session: Session, job_ids: Collection[str]) -> dict[str, int]:
    """Tokens that each job's steps were trained on; a job without a step is not in it."""
    query = select(MetricPoint.job_id, func.sum(MetricPoint.value).label("num_tokens"))
    query = query.where(MetricPoint.job_id.in_(job_ids), MetricPoint.name == "trained_tokens")
    return {row.job_id: int(row.num_tokens or 0) for row in session.execute(query.group_by(MetricPoint.job_id))}


def events_before(session: Session, job_id: str, before: int | None, limit: int) -> Sequence[JobEvent]:
    """Events, newest first, from the one below number `before` on, one more than `limit`."""
    query = select(JobEvent).where(JobEvent.job_id == job_id)
    if before is not None:
        query = query.where(JobEvent.sequence < before)
    return session.scalars(query.order_by(JobEvent.sequence.desc()).limit(limit + 1)).all()


def checkpoints_before(session: Session, job_id: str, before: str | None, limit: int) -> Sequence[Checkpoint]:
    """Checkpoints, newest first, from the one below the id `before` on, one more than `limit`; that of step 0 is no
    result."""
    query = select(Checkpoint).where(Checkpoint.job_id == job_id, Checkpoint.step > 0)
    if before is not None:
        query = query.where(Checkpoint.id < before)
    return session.scalars(query.order_by(Checkpoint.id.desc()).limit(limit + 1)).all()


def losses_at(session: Session, job_id: str, steps: Collection[int]) -> dict[int, dict[str, float]]:
    """`LOSSES` by name at each of the steps; those that were not measured there, or not finite, are left out."""
    query = select(MetricPoint.step, MetricPoint.name, MetricPoint.value).where(
        MetricPoint.job_id == job_id,
        MetricPoint.name.in_(LOSSES),
        MetricPoint.step.in_(steps),
        MetricPoint.value.is_not(None),
    )
    losses: dict[int, dict[str, float]] = {step: {} for step in steps}
    for row in session.execute(query):
        losses[row.step][row.name] = row.value
    return losses
