"""``/jobs/{id}/checkpoints/{step}/chat``: chat with a checkpoint, its base model or its teacher."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Response
from starlette.concurrency import run_in_threadpool

from service.auth import Submitter
from service.bodies import JsonRoute
from service.chats.schemas import Question
from service.checkpoints.endpoints import Step
from service.context import Context
from service.errors import ERROR_RESPONSES, NotFoundError, QuotaError, raises
from service.events.streams import CountedStream

router = APIRouter(
    prefix="/jobs/{job_id}/checkpoints", tags=["checkpoints"], route_class=JsonRoute, responses=ERROR_RESPONSES
)

# No type: the document's form has one for a stream's text or for its events, and readers of it differ.
_STREAM: dict[int | str, dict[str, Any]] = {
    200: {"content": {"text/event-stream": {"schema": {"description": "The events waiting, piece and end."}}}}
}


@router.post("/{step}/chat", response_class=Response, responses=_STREAM, summary="Chat with a checkpoint")
@raises(NotFoundError, QuotaError)
async def chat(context: Context, caller: Submitter, job_id: str, step: Step, wanted: Question) -> Response:
    """The checkpoint, its base model or its teacher answers in server-sent events: ``waiting`` says why
    there is no text yet, ``piece`` has text, and ``end`` is the last. A free worker of the job's queue generates it; if
    the connection is closed, it stops."""
    answer_id = await run_in_threadpool(context.chats.ask, caller.owner, job_id, step, wanted)
    frames = context.chats.stream(answer_id, lambda: context.feed.is_closing)
    return CountedStream(frames, context.streams, caller.key_id)
