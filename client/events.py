"""``/jobs/{id}/events``: pages, and a stream that comes back by itself when it breaks."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import aclosing
from typing import Any

import httpx
from httpx_sse import EventSource, ServerSentEvent
from pydantic import ValidationError

from client.call import Call, is_worth_repeating, part, pause_seconds
from client.errors import TrdError, UnexpectedAnswerError
from client.paging import Cursor, page_size, walk, walk_async
from client.transport import AsyncTransport, Transport
from contract.views import View
from contract.views.events import EventView, StreamEnd
from contract.views.jobs import JobProgress
from contract.views.page import Page

StreamItem = EventView | JobProgress | StreamEnd
"""What a stream tells: what happened, where the job stands now, and that it is over."""

SILENCE_SECONDS = 45.0
"""The service says something every 15 s, if only that it is still there."""
PATIENCE_SECONDS = 300.0
"""How long a stream is asked for again before its failure is the caller's."""


def _page(job_id: str, after: Cursor, limit: int) -> Call[Page[EventView]]:
    params = {"after": after or 0, "limit": limit}
    return Call("GET", f"/jobs/{part(job_id)}/events", Page[EventView], params=params)


class _Follower:
    """Where a stream is, and how its failures are taken. No network of its own."""

    def __init__(self, job_id: str, after: int, patience_seconds: float) -> None:
        self.is_over = False
        self._job_id = job_id
        self._after = after
        self._patience_seconds = patience_seconds
        self._num_failures = 0
        self._failing_since: float | None = None

    def call(self) -> Call[Any]:
        """The request for what was not seen yet."""
        headers = {"accept": "text/event-stream", "cache-control": "no-store"}
        if self._after > 0:
            headers["last-event-id"] = str(self._after)
        path = f"/jobs/{part(self._job_id)}/events"
        return Call("GET", path, View, headers=headers, read_seconds=SILENCE_SECONDS)

    def has_frames(self, response: httpx.Response) -> bool:
        """False where the job was over, and its last event seen, before the stream was asked for."""
        self._failing_since = None
        content_type = response.headers.get("content-type", "")
        if response.status_code != 204 and not content_type.startswith("text/event-stream"):
            raise UnexpectedAnswerError(f"{response.url}: no event stream, but {content_type or 'nothing'}")
        self.is_over = response.status_code == 204
        return not self.is_over

    def read(self, frame: ServerSentEvent) -> StreamItem | None:
        """What a frame tells; None where that is nothing, or was seen already."""
        self._num_failures = 0
        if not frame.data:
            return None  # a keep-alive comment: the decoder makes an empty frame of it
        item = _parsed(frame)
        if isinstance(item, EventView):
            if item.sequence <= self._after:
                return None
            self._after = item.sequence
        self.is_over = isinstance(item, StreamEnd)
        return item

    def pause(self, error: TrdError | None) -> float:
        """Seconds to wait before asking again; raises `error` where that would not help, or has not for long."""
        now = time.monotonic()
        self._num_failures += 1
        self._failing_since = self._failing_since or now
        is_hopeless = now - self._failing_since > self._patience_seconds
        if error is not None and (is_hopeless or not is_worth_repeating(error, is_repeatable=True)):
            raise error
        return pause_seconds(self._num_failures, error)


_Kind = type[EventView] | type[JobProgress] | type[StreamEnd]
_KINDS: dict[str, _Kind] = {"progress": JobProgress, "end": StreamEnd}


def _parsed(frame: ServerSentEvent) -> StreamItem:
    kind = _KINDS.get(frame.event, EventView)
    try:
        return kind.model_validate_json(frame.data)
    except ValidationError as error:
        raise UnexpectedAnswerError(f"event stream: {frame.event}: {error.errors()[0]['msg']}") from None


class Events:
    """What happened to a job."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def page(self, job_id: str, *, after: int = 0, limit: int = 100) -> Page[EventView]:
        """One page, in order, after the event numbered `after`."""
        return self._transport.send(_page(job_id, after, limit))

    def list(self, job_id: str, *, after: int = 0, num_wanted: int | None = None) -> Iterator[EventView]:
        """Events over all pages; at most `num_wanted`."""
        limit = page_size(num_wanted)
        return walk(
            lambda cursor: self._transport.send(_page(job_id, cursor, limit)),
            lambda event: event.sequence,
            after=after,
            num_wanted=num_wanted,
        )

    def follow(
        self, job_id: str, *, after: int = 0, patience_seconds: float = PATIENCE_SECONDS
    ) -> Iterator[StreamItem]:
        """Everything after the event numbered `after` as it comes, until the job is over.

        A stream that breaks is asked for again from the last event seen: none is lost or given twice. Raises
        what broke it once nothing was heard for `patience_seconds`.
        """
        follower = _Follower(job_id, after, patience_seconds)
        while not follower.is_over:
            failure: TrdError | None = None
            try:
                yield from self._connected(follower)
            except TrdError as error:
                failure = error
            if not follower.is_over:
                time.sleep(follower.pause(failure))

    def _connected(self, follower: _Follower) -> Iterator[StreamItem]:
        with self._transport.stream(follower.call()) as response:
            if not follower.has_frames(response):
                yield StreamEnd(status=None)
                return
            for frame in EventSource(response).iter_sse():
                item = follower.read(frame)
                if item is not None:
                    yield item
                if follower.is_over:
                    return


class AsyncEvents:
    """As `Events`."""

    def __init__(self, transport: AsyncTransport) -> None:
        self._transport = transport

    async def page(self, job_id: str, *, after: int = 0, limit: int = 100) -> Page[EventView]:
        """One page, in order, after the event numbered `after`."""
        return await self._transport.send(_page(job_id, after, limit))

    def list(self, job_id: str, *, after: int = 0, num_wanted: int | None = None) -> AsyncIterator[EventView]:
        """Events over all pages; at most `num_wanted`."""
        limit = page_size(num_wanted)
        return walk_async(
            lambda cursor: self._transport.send(_page(job_id, cursor, limit)),
            lambda event: event.sequence,
            after=after,
            num_wanted=num_wanted,
        )

    async def follow(
        self, job_id: str, *, after: int = 0, patience_seconds: float = PATIENCE_SECONDS
    ) -> AsyncGenerator[StreamItem, None]:
        """As `Events.follow`. Leave it early only inside ``contextlib.aclosing``: it holds a connection."""
        follower = _Follower(job_id, after, patience_seconds)
        while not follower.is_over:
            failure: TrdError | None = None
            try:
                async with aclosing(self._connected(follower)) as items:
                    async for item in items:
                        yield item
            except TrdError as error:
                failure = error
            if not follower.is_over:
                await asyncio.sleep(follower.pause(failure))

    async def _connected(self, follower: _Follower) -> AsyncGenerator[StreamItem, None]:
        async with self._transport.stream(follower.call()) as response:
            if not follower.has_frames(response):
                yield StreamEnd(status=None)
                return
            async with aclosing(EventSource(response).aiter_sse()) as frames:
                async for frame in frames:
                    item = follower.read(frame)
                    if item is not None:
                        yield item
                    if follower.is_over:
                        return
