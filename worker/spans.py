"""Spans of an attempt: its wait in the queue, and the phases and steps that its child reports.

They are made from the child's events: the engine needs neither OpenTelemetry nor a way to the collector, wherever it
runs.
"""

from __future__ import annotations

from contextlib import suppress
from datetime import datetime

from opentelemetry.trace import Span, set_span_in_context
from sqlalchemy.exc import SQLAlchemyError

from contract.tracing import tracer
from worker import repository
from worker.attempt import Attempt
from worker.engine_events import EngineEvent, FailedEvent, FinishedEvent, MetricsEvent, PhaseEvent


def record_wait(attempt: Attempt) -> None:
    """Record how long the job waited for this attempt, if its submission is traced."""
    if "traceparent" not in (attempt.lease.origin or {}):
        return
    with suppress(SQLAlchemyError), attempt.database.read() as session:
        changes = repository.newest_status_changes(session, attempt.job_id, 2)
        if len(changes) == 2:
            started_at, queued_at = map(_nanoseconds, changes)
            tracer.start_span("wait in queue", start_time=queued_at).end(started_at)


def _nanoseconds(moment: datetime) -> int:
    return int(moment.timestamp() * 1e9)


class PhaseSpans:
    """The span of the child's current phase, and one for each of its steps, from its events."""

    def __init__(self) -> None:
        self._phase: Span | None = None
        self._newest = 0
        """Nanoseconds of the newest event, at which a phase ends whose end no event reports."""

    def add(self, event: EngineEvent) -> None:
        """Take one more event."""
        self._newest = int(event.at * 1e9)
        match event:
            case PhaseEvent():
                self.close()
                where = {"trd.round": event.round, "trd.step": event.step}
                self._phase = tracer.start_span(event.phase, start_time=self._newest, attributes=where)
            case MetricsEvent() if self._phase is not None and (seconds := event.values.get("step_seconds")):
                step = tracer.start_span(
                    "step",
                    context=set_span_in_context(self._phase),
                    start_time=self._newest - int(seconds * 1e9),
                    attributes={"trd.step": event.step},
                )
                step.end(self._newest)
            case FinishedEvent() | FailedEvent():
                self.close()

    def close(self) -> None:
        """End the phase at the newest event."""
        if self._phase is not None:
            self._phase.end(self._newest)
            self._phase = None
