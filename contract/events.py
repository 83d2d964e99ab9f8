"""A job's numbered events: the one way in which the service and the worker append them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal, cast

from sqlalchemy import Table, insert, update
from sqlalchemy.orm import Session

from contract.tables import Job, JobEvent
from contract.webhooks import queue_deliveries

EventType = Literal["status", "phase", "notice", "evaluation", "checkpoint"]
Level = Literal["info", "warn", "error"]


@dataclass(frozen=True)
class NewEvent:
    """An event that has no number yet."""

    type: EventType
    message: str
    data: dict[str, Any] = field(default_factory=dict)
    level: Level = "info"
    at: datetime = field(default_factory=lambda: datetime.now(UTC))


def notice(level: Level, code: str, message: str, **data: Any) -> NewEvent:
    """Return an event for the user with a stable code."""
    return NewEvent("notice", message, {"code": code, **data}, level)


INSERT_EVENTS = insert(cast(Table, JobEvent.__table__))


def append_events(session: Session, job_id: str, *events: NewEvent) -> None:
    """Give the events their numbers and store them, in the transaction of the change that they report.

    The update locks the job's row, so two writers never take the same number. A worker calls this inside
    `worker.lease.fenced`, so a superseded attempt appends nothing. Deliveries to webhooks are stored with the events,
    and sent later by a worker.
    """
    if not events:
        return
    counter = update(Job).where(Job.id == job_id).values(num_events=Job.num_events + len(events))
    counter = counter.returning(Job.num_events, Job.owner).execution_options(synchronize_session=False)
    last, owner = session.execute(counter).one()
    rows = event_rows(job_id, last - len(events), events)
    # A list of one row would be sent as a batch, which costs more.
    session.connection().execute(INSERT_EVENTS, rows if len(rows) > 1 else rows[0])
    queue_deliveries(session, owner, rows)


def event_rows(job_id: str, after: int, events: Sequence[NewEvent]) -> list[dict[str, Any]]:
    """Return the rows for `INSERT_EVENTS`, numbered from `after` + 1; the caller has reserved these numbers."""
    return [
        {
            "job_id": job_id,
            "sequence": number,
            "type": event.type,
            "level": event.level,
            "message": event.message,
            "data": event.data,
            "created_at": event.at,
        }
        for number, event in enumerate(events, start=after + 1)
    ]
