"""Events as the API shows them, in JSON and as server-sent events."""

from __future__ import annotations

import json
from datetime import datetime
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from contract.tables import JobEvent


class EventView(BaseModel):
    """Something that happened to a job."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    object: Literal["job.event"] = "job.event"
    sequence: int
    """Number within the job, from 1, without a gap."""
    type: str
    """status, phase, notice, evaluation or checkpoint."""
    level: Literal["info", "warn", "error"]
    message: str
    data: dict[str, Any]
    created_at: datetime


def event_view(row: JobEvent) -> EventView:
    """A row as the API shows it."""
    return EventView.model_validate(row, from_attributes=True)


def event_frame(row: JobEvent) -> bytes:
    """A row as a server-sent event. Its id is what ``Last-Event-ID`` brings back."""
    return f"id: {row.sequence}\nevent: {row.type}\ndata: {event_view(row).model_dump_json()}\n\n".encode()


def passing_frame(event: str, data: dict[str, Any]) -> bytes:
    """A server-sent event without an id: it is about now, and never replayed."""
    return f"event: {event}\ndata: {json.dumps(data)}\n\n".encode()
