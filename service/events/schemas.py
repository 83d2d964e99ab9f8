"""Frames of server-sent events."""

from __future__ import annotations

from contract.tables import JobEvent
from contract.views import View
from contract.views.events import EventView


def event_frame(row: JobEvent) -> bytes:
    """Return an event as a server-sent event. Its id is what ``Last-Event-ID`` brings back."""
    return f"id: {row.sequence}\nevent: {row.type}\ndata: {EventView.of(row).model_dump_json()}\n\n".encode()


def passing_frame(event: str, view: View) -> bytes:
    """Return a server-sent event without an id: it describes the present, and is never replayed."""
    return f"event: {event}\ndata: {view.model_dump_json()}\n\n".encode()
