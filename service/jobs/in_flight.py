"""Requests under an idempotency key that this process is answering right now."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from service.errors import InFlightError


class RequestsInFlight:
    """Lets one request of an (owner, idempotency key) in at a time.

    Processes do not know of each other's: between them the database's unique key decides, and the later
    request is answered with the job that the earlier one made.
    """

    def __init__(self) -> None:
        self._held: set[tuple[str, str]] = set()
        self._lock = threading.Lock()

    @contextmanager
    def holding(self, owner: str, key: str | None) -> Iterator[None]:
        """Raises `InFlightError` where a request of the same key is being answered; None is never refused."""
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
