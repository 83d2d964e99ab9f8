"""Uploads on their way in, and what they take of the disk: an owner's quota holds for that too."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from service.errors import QuotaError
from service.settings import Settings


class ArrivingBytes:
    """Of one process, by owner. Used on its event loop alone."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._by_owner: Counter[str] = Counter()

    @contextmanager
    def counted(self, owner: str, num_stored: int) -> Iterator[Callable[[int], None]]:
        """What is called with the size of each piece of an upload that arrives within the block; it raises `QuotaError`
        once all the owner's pieces and the `num_stored` bytes are more than the owner may have."""
        num_arrived = 0

        def add(num_bytes: int) -> None:
            nonlocal num_arrived
            num_arrived += num_bytes
            self._by_owner[owner] += num_bytes
            is_too_large = num_arrived > self._settings.upload.max_bytes  # with any quota: the upload itself tells
            if not is_too_large and num_stored + self._by_owner[owner] > self._settings.max_stored_bytes:
                raise no_room(self._settings)

        try:
            yield add
        finally:
            self._by_owner[owner] -= num_arrived
            if self._by_owner[owner] == 0:
                del self._by_owner[owner]


def no_room(settings: Settings) -> QuotaError:
    """The owner's datasets are as large together as they may be."""
    max_bytes, max_rows = settings.max_stored_bytes, settings.max_stored_rows
    return QuotaError(f"your datasets may have {max_bytes} bytes and {max_rows} rows in all; delete some first")
