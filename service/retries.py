"""Requests that a client sends more than once: idempotency keys, and retries without a key as the `openai` package
makes them."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Annotated

from fastapi import Depends, Header, Request

from service.errors import InFlightError, InvalidRequestError

RETRY_WINDOW = timedelta(seconds=120)
"""A client that retries without an idempotency key does so within this time."""

REPLAYED = "idempotent-replayed"
"""Response header: an earlier request created the job."""
_RETRY_COUNT = "x-stainless-retry-count"
"""Request header of the `openai` client."""

IdempotencyKey = Annotated[
    str | None,
    Header(
        min_length=1,
        max_length=255,
        description="The same request with the same key makes one job, however often it is sent.",
    ),
]


@dataclass(frozen=True)
class ClientTry:
    """What a client that retries without a key reports about this request."""

    is_repeated: bool
    """False for the first request, True for every retry of it."""
    received_at: datetime


async def _client_try(request: Request) -> ClientTry | None:
    retry_count = request.headers.get(_RETRY_COUNT)  # as a parameter it would cost every submission 0.1 ms
    if retry_count is None:
        return None
    if not re.fullmatch(r"[0-9]{1,9}", retry_count):
        message = f"{_RETRY_COUNT} = {retry_count[:80]}: it must be the number of earlier tries"
        raise InvalidRequestError(message, code="invalid_value", param=_RETRY_COUNT)
    return ClientTry(int(retry_count) > 0, request.state.received_at)


MaybeClientTry = Annotated[ClientTry | None, Depends(_client_try)]
"""None for clients that send no retry count."""


class RequestsInFlight:
    """Admits one request per (owner, idempotency key) at a time within this process.

    Between processes, the lock on identical requests decides, and the later request gets the earlier one's job.
    """

    def __init__(self) -> None:
        self._held: set[tuple[str, str]] = set()
        self._lock = threading.Lock()

    @contextmanager
    def holding(self, owner: str, key: str | None) -> Iterator[None]:
        """Raise `InFlightError` if a request with this key is in progress. A request without a key always passes."""
        if key is None:
            yield
            return
        with self._lock:
            if (owner, key) in self._held:
                raise InFlightError(key)
            self._held.add((owner, key))
        try:
            yield
        finally:
            with self._lock:
                self._held.discard((owner, key))
