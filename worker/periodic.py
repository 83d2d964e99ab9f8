"""The worker's threads: those that repeat one action until it ends, and those that work for an attempt."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from contextvars import copy_context

logger = logging.getLogger(__name__)

READY_SECONDS = 1.0
"""Interval of the checks whether a worker can begin."""


class ContextThread(threading.Thread):
    """A thread that runs in a copy of its creator's context, so that its log lines have the same ids."""

    def __init__(self, target: Callable[[], None], name: str) -> None:
        super().__init__(target=copy_context().run, args=(target,), name=name, daemon=True)


class Periodic:
    """Calls `action` at once and then every `seconds`, until `stopping` is set.

    An action that raises is logged and repeated at its next turn: a worker must not silently stop looking for work.
    """

    def __init__(
        self,
        name: str,
        action: Callable[[], None],
        *,
        seconds: float,
        stopping: threading.Event,
        ready: Callable[[], bool] = lambda: True,
    ) -> None:
        """`ready` is called until it returns True, before the first action: a worker may start before the migration."""
        self._ready = ready
        self._action = action
        self._seconds = seconds
        self._stopping = stopping
        self._last_error: str | None = None
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def join(self, timeout_seconds: float) -> None:
        """Wait until the thread has ended, after `stopping` was set."""
        self._thread.join(timeout_seconds)

    def _run(self) -> None:
        is_logged = False
        while not self._stopping.is_set() and not self._is_ready():
            if not is_logged:
                logger.info("%s waits for the database and its schema", self._thread.name)
                is_logged = True
            self._stopping.wait(READY_SECONDS)
        while not self._stopping.is_set():
            try:
                self._action()
                self._last_error = None
            except Exception as error:  # noqa: BLE001 - the thread's boundary, see the class
                self._log(error)
            self._stopping.wait(self._seconds)

    def _is_ready(self) -> bool:
        try:
            return self._ready()
        except Exception as error:  # noqa: BLE001 - the thread's boundary, see the class
            self._log(error)
            return False

    def _log(self, error: Exception) -> None:
        """Log the traceback once, then one line per repetition: a database may be unreachable for hours."""
        shown = f"{type(error).__name__}: {error}"
        if shown == self._last_error:
            logger.warning("%s: %s", self._thread.name, shown.splitlines()[0])
        else:
            logger.exception("%s failed and will be repeated", self._thread.name)
        self._last_error = shown
