"""Queries on ``job_events``, and on what of a job changes while it runs."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal, cast

from sqlalchemy import Row, Table, insert, select, update
from sqlalchemy.orm import Session

from contract.tables import Job, JobEvent


@dataclass(frozen=True)
class NewEvent:
    """An event that has no number yet."""

    type: Literal["status", "notice"]
    message: str
    data: dict[str, Any] = field(default_factory=dict)
    level: Literal["info", "warn", "error"] = "info"


INSERT_EVENTS = insert(cast(Table, JobEvent.__table__))


def append_events(session: Session, job_id: str, *events: NewEvent) -> None:
    """Number events and store them, in the transaction of what happened."""
    counter = update(Job).where(Job.id == job_id).values(num_events=Job.num_events + len(events))
    last = session.execute(counter.returning(Job.num_events).execution_options(synchronize_session=False)).scalar_one()
    rows = event_rows(job_id, last - len(events), events, datetime.now(UTC))
    # A list of one would be sent as a batch, which costs more.
    session.connection().execute(INSERT_EVENTS, rows if len(rows) > 1 else rows[0])


def event_rows(job_id: str, after: int, events: Sequence[NewEvent], at: datetime) -> list[dict[str, Any]]:
    """What `INSERT_EVENTS` stores, under the numbers that follow `after`, which the caller has taken for them."""
    return [
        {
            "job_id": job_id,
            "sequence": number,
            "type": event.type,
            "level": event.level,
            "message": event.message,
            "data": event.data,
            "created_at": at,
        }
        for number, event in enumerate(events, start=after + 1)
    ]


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
