"""Appending to a job's numbered events, inside the transaction of what happened."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal

from sqlalchemy import insert, update
from sqlalchemy.orm import Session

from contract.tables import Job, JobEvent

EventType = Literal["status", "phase", "notice", "evaluation", "checkpoint"]
Level = Literal["info", "warn", "error"]


@dataclass(frozen=True)
class NewEvent:
    """An event that has no number yet."""

    type: EventType
    message: str
    level: Level = "info"
    data: dict[str, Any] = field(default_factory=dict)
    at: datetime = field(default_factory=lambda: datetime.now(UTC))


def notice(level: Level, code: str, message: str, **data: Any) -> NewEvent:
    """Something that the user should know, with a stable code."""
    return NewEvent("notice", message, level, {"code": code, **data})


def append_events(session: Session, job_id: str, events: Sequence[NewEvent]) -> None:
    """Number the events and store them; the counter's row keeps two writers from taking one number."""
    if not events:
        return
    counter = update(Job).where(Job.id == job_id).values(num_events=Job.num_events + len(events))
    last = session.execute(counter.returning(Job.num_events)).scalar_one()
    rows = [
        {
            "job_id": job_id,
            "sequence": last - len(events) + position,
            "type": event.type,
            "level": event.level,
            "message": event.message,
            "data": event.data,
            "created_at": event.at,
        }
        for position, event in enumerate(events, start=1)
    ]
    session.execute(insert(JobEvent), rows)
