"""Stopping a request in its middle, so that another one overtakes it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

SECONDS = 60


class Gate:
    """Stops the first call of a function, before or after its work, until it is opened."""

    def __init__(self) -> None:
        self.reached, self.opened = threading.Event(), threading.Event()

    def around(self, function: Callable[..., Any], *, is_after: bool) -> Callable[..., Any]:
        """`function` with the gate."""

        def gated(*given: Any, **named: Any) -> Any:
            is_first = not self.reached.is_set()
            result = function(*given, **named) if is_after or not is_first else None
            if is_first:
                self.reached.set()
                assert self.opened.wait(SECONDS)
            return result if is_after or not is_first else function(*given, **named)

        return gated
