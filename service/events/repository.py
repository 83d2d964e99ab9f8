"""Queries on ``job_events``, and on what of a job changes while it runs."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import UTC, datetime
from typing import Any, Literal

from sqlalchemy import Row, insert, select, update
from sqlalchemy.orm import Session

from contract.tables import Job, JobEvent

Level = Literal["info", "warn", "error"]


def append_event(
    session: Session, job_id: str, type: str, message: str, *, level: Level = "info", data: dict[str, Any] | None = None
) -> None:
    """Number an event and store it, in the transaction of what happened."""
    counter = update(Job).where(Job.id == job_id).values(num_events=Job.num_events + 1).returning(Job.num_events)
    sequence = session.execute(counter.execution_options(synchronize_session=False)).scalar_one()
    row = {"job_id": job_id, "sequence": sequence, "type": type, "level": level, "message": message}
    session.execute(insert(JobEvent).values(**row, data=data or {}, created_at=datetime.now(UTC)))


def events_after(session: Session, job_id: str, after: int, limit: int) -> Sequence[JobEvent]:
    """The events that follow number `after`, in order."""
    query = select(JobEvent).where(JobEvent.job_id == job_id, JobEvent.sequence > after)
    return session.scalars(query.order_by(JobEvent.sequence).limit(limit)).all()


def job_states(session: Session, job_ids: Collection[str]) -> Sequence[Row[Any]]:
    """Where the jobs stand. Deleted ones are not among them."""
    columns = (
        Job.id,
        Job.status,
        Job.attempt,
        Job.phase,
        Job.phase_done,
        Job.phase_total,
        Job.round,
        Job.num_rounds,
        Job.step,
        Job.num_steps,
        Job.eta_seconds,
        Job.latest_metrics,
        Job.num_events,
    )
    return session.execute(select(*columns).where(Job.id.in_(job_ids), Job.deleted_at.is_(None))).all()
