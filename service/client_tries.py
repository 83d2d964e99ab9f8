"""Clients that repeat a request by themselves, without an idempotency key, as the `openai` package does."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Annotated

from fastapi import Header, Request

RETRY_WINDOW = timedelta(seconds=120)
"""A client that retries without an idempotency key does so within this time."""

ClientRetryCount = Annotated[int | None, Header(alias="x-stainless-retry-count", include_in_schema=False)]


@dataclass(frozen=True)
class ClientTry:
    """What such a client says of this request."""

    is_repeated: bool
    """False for the first of its requests."""
    received_at: datetime


def client_try(request: Request, retry_count: int | None) -> ClientTry | None:
    """What the client's header says; None without it."""
    return None if retry_count is None else ClientTry(retry_count > 0, request.state.received_at)
