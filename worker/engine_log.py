"""Repeats what a child writes to its log in the worker's own log, each line a record with the ids of its job.

The child's libraries write what they like: only a rank and a level at the start of a line are understood, and every id
is the worker's.
"""

from __future__ import annotations

import logging
import re
import threading
from pathlib import Path

from worker.periodic import ContextThread

logger = logging.getLogger("engine")

POLL_SECONDS = 1.0
MAX_LINE_BYTES = 8_192
"""A longer line becomes several records."""
_RANK = re.compile(r"\[rank(\d{1,4})\]: ?")
_LEVEL = re.compile(r"(?:\([^()]{1,40}\) )?(DEBUG|INFO|WARNING|ERROR|CRITICAL)\b")


class LogRelay:
    """A thread that logs the lines that are added to a file, from now until `close`."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0
        self._ended = threading.Event()
        self._thread = ContextThread(self._follow, f"log-of-{path.parent.name}")
        self._thread.start()

    def close(self) -> None:
        """Log the rest, once the child has ended."""
        self._ended.set()
        self._thread.join()

    def _follow(self) -> None:
        is_last = False
        while not is_last:
            is_last = self._ended.wait(POLL_SECONDS)
            self._log_new_lines(is_last=is_last)

    def _log_new_lines(self, *, is_last: bool) -> None:
        if not self._path.exists():
            return
        with self._path.open("rb") as file:
            file.seek(self._offset)
            while line := file.readline(MAX_LINE_BYTES):
                if not line.endswith(b"\n") and len(line) < MAX_LINE_BYTES and not is_last:
                    return  # the child is about to complete it
                self._offset += len(line)
                if text := line.decode("utf-8", errors="replace").rstrip():
                    _log(text)


def _log(text: str) -> None:
    rank = _RANK.match(text)
    message = text[rank.end() :] if rank else text
    level = _LEVEL.match(message)
    number = logging.getLevelNamesMapping()[level[1]] if level else logging.INFO
    logger.log(number, "%s", message, extra={"rank": int(rank[1])} if rank else {})
