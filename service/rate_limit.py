"""Limits the requests of each key.

Each key has a bucket that holds a minute's requests and fills evenly. Buckets belong to one process, so several
processes together grant that many times more: the limit only keeps one client from starving the others.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.auth import Caller
from service.errors import RateLimitError, error_response

MAX_BUCKETS = 10_000
"""Keys remembered; beyond, the full buckets are forgotten, which changes nothing for their keys."""


@dataclass
class _Bucket:
    tokens: float
    at: float


class RateLimits:
    """The buckets of one process."""

    def __init__(self, per_minute: int) -> None:
        self.per_minute = per_minute
        self._buckets: dict[str, _Bucket] = {}

    def take(self, key_id: str, now: float) -> float:
        """Take a request from the key's bucket; return what is left, below zero if there was none."""
        bucket = self._buckets.setdefault(key_id, _Bucket(self.per_minute, now))
        bucket.tokens = self._filled(bucket, now)
        bucket.at = now
        if bucket.tokens < 1:
            return bucket.tokens - 1
        bucket.tokens -= 1
        left = bucket.tokens
        if len(self._buckets) > MAX_BUCKETS:
            self._buckets = {k: b for k, b in self._buckets.items() if self._filled(b, now) < self.per_minute}
        return left

    def seconds_until(self, tokens: float, wanted: float) -> float:
        """Return the seconds until a bucket with `tokens` has `wanted`."""
        return max(0.0, (wanted - tokens) * 60 / self.per_minute)

    def _filled(self, bucket: _Bucket, now: float) -> float:
        return min(self.per_minute, bucket.tokens + (now - bucket.at) * self.per_minute / 60)


class RateLimiter:
    """Middleware behind the key gate: counts each key's requests, and reports the rest in headers."""

    def __init__(self, app: ASGIApp, per_minute: int) -> None:
        self._app = app
        self._limits = RateLimits(per_minute)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        caller: Caller | None = scope.get("state", {}).get("caller")
        if scope["type"] != "http" or caller is None:
            await self._app(scope, receive, send)
            return
        left = self._limits.take(caller.key_id, time.monotonic())
        reset_seconds = self._limits.seconds_until(left, self._limits.per_minute)
        headers = [  # under the names that the `openai` client's users know
            (b"x-ratelimit-limit-requests", b"%d" % self._limits.per_minute),
            (b"x-ratelimit-remaining-requests", b"%d" % max(0, left)),
            (b"x-ratelimit-reset-requests", b"%.3fs" % reset_seconds),
        ]

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], *headers]
            await send(message)

        if left < 0:
            seconds = self._limits.seconds_until(left, 0.0)
            refusal = RateLimitError(f"more than {self._limits.per_minute} requests a minute; wait {seconds:.1f} s")
            refusal.headers = {"retry-after": str(max(1, round(seconds)))}
            await error_response(refusal)(scope, receive, send_with_headers)
            return
        await self._app(scope, receive, send_with_headers)
