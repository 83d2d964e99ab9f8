"""Event streams without the network: positions, frames, and which failures are worth another request."""

from __future__ import annotations

import time
from typing import Any, TypeVar

import httpx
from httpx_sse import ServerSentEvent
from pydantic import ValidationError

from client.call import Call, is_worth_repeating, path_part, pause_seconds
from client.errors import TrdError, UnexpectedAnswerError
from contract.views import View
from contract.views.chats import AnswerEnd, AnswerPiece, AnswerWaits
from contract.views.events import EventView, StreamEnd
from contract.views.jobs import JobProgress

StreamItem = EventView | JobProgress | StreamEnd
"""What a stream yields: events, how far the job is now, and the end."""

SILENCE_SECONDS = 45.0
"""Longest silence before a stream counts as broken: the service sends at least a comment every 15 s."""
PATIENCE_SECONDS = 300.0
"""How long a broken stream is requested again before its failure is raised."""


_KINDS: dict[str, type[StreamItem]] = {"progress": JobProgress, "end": StreamEnd}


class Follower:
    """The position in a stream, and how its failures are handled."""

    def __init__(self, job_id: str, after: int, patience_seconds: float) -> None:
        self.is_over = False
        self._job_id = job_id
        self._after = after
        self._patience_seconds = patience_seconds
        self._num_failures = 0
        self._failing_since: float | None = None

    def call(self) -> Call[Any]:
        """Return the request for what has not been seen yet."""
        headers = {"accept": "text/event-stream", "cache-control": "no-store"}
        if self._after > 0:
            headers["last-event-id"] = str(self._after)
        path = f"/jobs/{path_part(self._job_id)}/events"
        return Call("GET", path, View, headers=headers, read_seconds=SILENCE_SECONDS)

    def has_frames(self, response: httpx.Response) -> bool:
        """Return False if the job was over and its last event seen before the request."""
        self._failing_since = None
        content_type = response.headers.get("content-type", "")
        if response.status_code != 204 and not content_type.startswith("text/event-stream"):
            raise UnexpectedAnswerError(f"{response.url}: expected an event stream, got {content_type or 'nothing'}")
        self.is_over = response.status_code == 204
        return not self.is_over

    def read(self, frame: ServerSentEvent) -> StreamItem | None:
        """Return the content of a frame; None if it has none, or was seen before."""
        self._num_failures = 0
        if not frame.data:
            return None  # the decoder makes an empty frame of a keep-alive comment
        item: StreamItem = _content(frame, _KINDS.get(frame.event, EventView))
        if isinstance(item, EventView):
            if item.sequence <= self._after:
                return None
            self._after = item.sequence
        self.is_over = isinstance(item, StreamEnd)
        return item

    def pause(self, error: TrdError | None) -> float:
        """Return the seconds to wait before the next request; raises `error` if another request would not help."""
        now = time.monotonic()
        self._num_failures += 1
        self._failing_since = self._failing_since or now
        is_hopeless = now - self._failing_since > self._patience_seconds
        if error is not None and (is_hopeless or not is_worth_repeating(error, is_repeatable=True)):
            raise error
        return pause_seconds(self._num_failures, error)


ChatPart = AnswerWaits | AnswerPiece | AnswerEnd
"""What the stream of a chat yields; the end is the last."""

_CHAT_KINDS: dict[str, type[ChatPart]] = {"waiting": AnswerWaits, "piece": AnswerPiece}

Item = TypeVar("Item", bound=View)


def chat_part(frame: ServerSentEvent) -> ChatPart:
    """Return the content of a frame of a chat."""
    return _content(frame, _CHAT_KINDS.get(frame.event, AnswerEnd))


def _content(frame: ServerSentEvent, kind: type[Item]) -> Item:
    try:
        return kind.model_validate_json(frame.data)
    except ValidationError as error:
        raise UnexpectedAnswerError(f"event stream: {frame.event}: {error.errors()[0]['msg']}") from None
