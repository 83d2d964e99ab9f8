"""A thread that does one thing again and again until the worker ends."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

logger = logging.getLogger(__name__)

READY_SECONDS = 1.0
"""Between two looks at whether a worker can begin."""


class Periodic:
    """Calls `action` at once and then every `seconds`, until `stopping` is set.

    An action that raises is tried again at its next turn: a worker that silently ceased to look for work
    would be worse than one that complains.
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
        """`ready` is asked before the first call, until it says True: a worker may start before the migration."""
        self._ready = ready
        self._action = action
        self._seconds = seconds
        self._stopping = stopping
        self._last_error: str | None = None
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def join(self, timeout_seconds: float) -> None:
        """Wait for the end that `stopping` brings."""
        self._thread.join(timeout_seconds)

    def _run(self) -> None:
        self._wait_until_ready()
        while not self._stopping.is_set():
            try:
                self._action()
                self._last_error = None
            except Exception as error:  # noqa: BLE001 - the thread's edge, see the class
                self._complain(error)
            self._stopping.wait(self._seconds)

    def _wait_until_ready(self) -> None:
        has_said = False
        while not self._stopping.is_set() and not self._is_ready():
            if not has_said:
                logger.info("%s waits for the database and its schema", self._thread.name)
                has_said = True
            self._stopping.wait(READY_SECONDS)

    def _is_ready(self) -> bool:
        try:
            return self._ready()
        except Exception as error:  # noqa: BLE001 - the thread's edge, see the class
            self._complain(error)
            return False

    def _complain(self, error: Exception) -> None:
        """The traceback once, then a line each time: a database may be away for hours."""
        shown = f"{type(error).__name__}: {error}"
        if shown == self._last_error:
            logger.warning("%s: %s", self._thread.name, shown.splitlines()[0])
        else:
            logger.exception("%s will be tried again", self._thread.name)
        self._last_error = shown
