"""The address of a server. Messages name the endpoint or pool instead of an address, since users read them."""

from __future__ import annotations

from dataclasses import dataclass

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
