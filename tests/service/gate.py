"""Stopping a request in its middle, so that another one overtakes it or waits for it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

from fastapi.testclient import TestClient
from sqlalchemy import text

from tests.service.records import context_of

SECONDS = 60


class Gate:
    """Stops the first call of a function, before or after its work, until it is opened."""

    def __init__(self) -> None:
        self.reached, self.opened = threading.Event(), threading.Event()

    def around(self, function: Callable[..., Any], *, is_after: bool) -> Callable[..., Any]:
        """Return `function` with the gate."""

        def gated(*given: Any, **named: Any) -> Any:
            is_first = not self.reached.is_set()
            result = function(*given, **named) if is_after or not is_first else None
            if is_first:
                self.reached.set()
                assert self.opened.wait(SECONDS)
            return result if is_after or not is_first else function(*given, **named)

        return gated


def wait_for_a_lock(client: TestClient, *kinds: str) -> None:
    """Wait until another request waits for a lock of one of these kinds in the client's PostgreSQL."""
    deadline = time.monotonic() + SECONDS
    waiting = text("SELECT count(*) FROM pg_locks WHERE locktype = ANY(:kinds) AND NOT granted")
    while time.monotonic() < deadline:
        with context_of(client).database.read() as session:
            if session.scalar(waiting, {"kinds": list(kinds)}):
                return
        time.sleep(0.02)
    raise AssertionError("the second request does not wait for the first one")
