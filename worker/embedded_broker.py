"""kombu's ``filesystem://`` for a worker: a torn message is a lost doorbell, and heard ones are cleared away."""

from __future__ import annotations

import logging
import time
from pathlib import Path
from queue import Empty
from typing import Any

from kombu.transport import filesystem

logger = logging.getLogger(__name__)

HEARD_SECONDS = 60.0
"""A message's file is kept so long: whoever took it may still be reading it."""


class _Channel(filesystem.Channel):
    """Senders write into a file under its final name; whoever reads it in between finds no JSON."""

    _next_clearing_at = 0.0

    def _get(self, queue: Any, timeout: Any = None) -> Any:
        self._clear_heard()
        try:
            return super()._get(queue)  # type: ignore[no-untyped-call]
        except ValueError:
            logger.warning("a torn message on %s was dropped; the database has the job", queue)
            raise Empty from None

    def _clear_heard(self) -> None:
        """Delete the files of messages that were taken long ago; kombu keeps them for ever."""
        now = time.time()
        if now < self._next_clearing_at:
            return
        self._next_clearing_at = now + HEARD_SECONDS
        for path in Path(self.processed_folder).glob("*.msg"):
            try:
                if now - path.stat().st_mtime > HEARD_SECONDS:
                    path.unlink()
            except FileNotFoundError:  # another worker was faster
                continue


class Transport(filesystem.Transport):
    """`_Channel` in kombu's transport."""

    Channel = _Channel
