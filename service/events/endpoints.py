"""``/jobs/{id}/events``: pages of JSON, or a stream of server-sent events."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Header, Query, Request, Response

from contract.job_state import JobStatus
from contract.views import Page
from contract.views.events import EventView
from service.auth import Reader
from service.context import Context
from service.errors import ERROR_RESPONSES, InvalidRequestError, NotFoundError, raises
from service.events.streams import CountedStream
from service.query import DECIMAL, Limit

router = APIRouter(prefix="/jobs/{job_id}/events", tags=["jobs"], responses=ERROR_RESPONSES)

_STREAM: dict[int | str, dict[str, Any]] = {
    200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}},
    204: {"description": "The job is over and its last event was seen: an EventSource stops asking."},
}


@router.get("", response_model=Page[EventView], responses=_STREAM, summary="What happened to a job")
@raises(NotFoundError)
def list_events(
    context: Context,
    caller: Reader,
    request: Request,
    *,
    job_id: str,
    after: Annotated[int, Query(ge=0, lt=2**31, description="Number of the last event seen."), DECIMAL] = 0,
    limit: Limit = 100,
    last_event_id: Annotated[str | None, Header()] = None,
) -> Page[EventView] | Response:
    """The list has the events in order. With ``accept: text/event-stream``, all events after ``Last-Event-ID`` are
    sent as they come, with ``progress`` in between and ``end`` at the end of the job."""
    if "text/event-stream" not in request.headers.get("accept", ""):
        rows, has_more = context.feed.page(caller.owner, job_id, after, limit)
        return Page(data=[EventView.of(row) for row in rows], has_more=has_more)
    after = max(after, _sequence(last_event_id))
    job = context.jobs.find(caller.owner, job_id)
    if last_event_id is not None and JobStatus(job.status).is_final and after >= job.num_events:
        return Response(status_code=204)
    key_id = caller.key_id
    frames = context.feed.stream(job_id, after, is_welcome=lambda: context.bearers.is_good(key_id))
    return CountedStream(frames, context.streams, key_id)


def _sequence(last_event_id: str | None) -> int:
    if not last_event_id:
        return 0
    if not last_event_id.isascii() or not last_event_id.isdigit() or len(last_event_id) > 9:
        raise InvalidRequestError(
            f"Last-Event-ID = {last_event_id[:40]}: must be the number of an event", param="Last-Event-ID"
        )
    return int(last_event_id)
