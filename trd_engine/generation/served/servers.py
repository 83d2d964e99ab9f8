"""The equal servers of an endpoint, and which of them gets the next request."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from trd_data.network_address import PinnedAddress


@dataclass(eq=False)
class Server:
    """One server, and how its requests went."""

    address: PinnedAddress
    num_open: int = 0
    """Requests without an answer yet."""
    has_failed: bool = False
    """Whether its last request failed."""
    rests_until: float = 0.0
    """Monotonic time before which a server that failed gets no request if another can take it."""
    num_uploads: int = 0
    """Uploads that it took."""
    upload_lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Held while it is given something, which all its waiting requests need."""

    @contextmanager
    def open_request(self) -> Iterator[None]:
        """Count a request while it is open."""
        self.num_open += 1
        try:
            yield
        finally:
            self.num_open -= 1

    @property
    def is_ready(self) -> bool:
        """Whether it takes requests. After a failure and a rest, one request shows whether it works again."""
        return not self.has_failed or (self.num_open == 0 and time.monotonic() >= self.rests_until)

    def failed(self, rest_seconds: float) -> None:
        """Note a request without a usable answer."""
        self.has_failed, self.rests_until = True, time.monotonic() + rest_seconds


@dataclass(frozen=True)
class Servers:
    """All servers of an endpoint; any may answer a request."""

    all: Sequence[Server]

    @property
    def any_ready(self) -> bool:
        """Whether a request can be sent now."""
        return any(server.is_ready for server in self.all)

    def choose(self) -> Server:
        """Return the ready server with the fewest open requests; if none is ready, the one whose rest ends first."""
        ready = [server for server in self.all if server.is_ready]
        if ready:
            return min(ready, key=lambda server: server.num_open)
        return min(self.all, key=lambda server: server.rests_until)

    def title(self, server: Server) -> str:
        """Return which of several servers it is, by its place in the operator's settings; empty for the only one."""
        return f", server {self.all.index(server) + 1} of {len(self.all)}," if len(self.all) > 1 else ""

    def enter_event_loop(self) -> None:
        """Replace the locks: a lock belongs to the event loop that it was first waited for in."""
        for server in self.all:
            server.upload_lock = asyncio.Lock()
