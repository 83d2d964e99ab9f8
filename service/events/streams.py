"""How many event streams are open, and how many may be: each holds a connection and memory for as long as it likes."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager

from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from service.errors import RateLimitError

RETRY_SECONDS = 15


class OpenStreams:
    """The open streams of one process. Used on its event loop alone."""

    def __init__(self, max_per_key: int, max_in_all: int) -> None:
        self._max_per_key = max_per_key
        self._max_in_all = max_in_all
        self._open: Counter[str] = Counter()

    @contextmanager
    def counted(self, key_id: str) -> Iterator[None]:
        """Count one more stream of the key until the block ends; raise `RateLimitError` if there are too many."""
        if self._open[key_id] >= self._max_per_key:
            raise _refusal(f"this key has {self._max_per_key} event streams open, the maximum; close some")
        if self._open.total() >= self._max_in_all:
            raise _refusal(f"{self._max_in_all} event streams are open here, the maximum; try again later")
        self._open[key_id] += 1
        try:
            yield
        finally:
            self._open[key_id] -= 1
            if self._open[key_id] == 0:
                del self._open[key_id]


def _refusal(reason: str) -> RateLimitError:
    hint = "GET the same address without accept: text/event-stream for pages of events"
    return RateLimitError(f"{reason}, or {hint}", code="too_many_streams", headers={"retry-after": str(RETRY_SECONDS)})


class CountedStream(StreamingResponse):
    """A stream of server-sent events that counts from its first byte to its last."""

    def __init__(self, content: AsyncIterator[bytes], streams: OpenStreams, key_id: str) -> None:
        headers = {"cache-control": "no-store", "x-accel-buffering": "no"}
        super().__init__(content, media_type="text/event-stream", headers=headers)
        self._streams = streams
        self._key_id = key_id

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it; raises `RateLimitError` before anything is sent."""
        with self._streams.counted(self._key_id):
            await super().__call__(scope, receive, send)
