"""The equal servers of an endpoint: their addresses, and which of them gets the next request.

Messages name the endpoint or pool instead of an address, since users read them.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from trd_data.network_address import AddressRefusedError, Network, PinnedAddress, Resolver
from trd_data.network_address import pin_address as pin_url
from trd_engine.runtime.errors import (
    EngineError,
    SamplersRefusedError,
    SamplersUnreachableError,
    TeacherRefusedError,
    TeacherUnreachableError,
)


@dataclass(frozen=True)
class EndpointKind:
    """What an endpoint is to the run: its title in messages, and its errors."""

    title: str
    unreachable: type[EngineError]
    refused: type[EngineError]


TEACHER = EndpointKind("teacher endpoint", TeacherUnreachableError, TeacherRefusedError)
SAMPLER_POOL = EndpointKind("sampler pool", SamplersUnreachableError, SamplersRefusedError)


def pin_address(
    name: str, base_url: str, network: Network, *, kind: EndpointKind = TEACHER, resolve: Resolver | None = None
) -> PinnedAddress:
    """Resolve the host of endpoint `name` and check all its addresses; the URL ends without a slash.

    Raises the kind's `refused` if `network` does not allow an address, and its `unreachable` if the host name cannot be
    resolved.
    """
    try:
        return pin_url(base_url.rstrip("/"), network, resolve=resolve)
    except AddressRefusedError as error:
        raise kind.refused(f"{kind.title} {name}: its address {error}; have the operator change one of them") from error
    except OSError as error:
        raise kind.unreachable(f"{kind.title} {name}: its host name cannot be resolved: {error}") from error


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
