"""The address of an endpoint. Messages name the endpoint instead of its address, since users read them."""

from __future__ import annotations

from trd_data.network_address import AddressRefusedError, Network, PinnedAddress, Resolver
from trd_data.network_address import pin_address as pin_url
from trd_engine.runtime.errors import TeacherRefusedError, TeacherUnreachableError


def pin_address(name: str, base_url: str, network: Network, *, resolve: Resolver | None = None) -> PinnedAddress:
    """Resolve the host of endpoint `name` and check all its addresses; the URL ends without a slash.

    Raises `TeacherRefusedError` if `network` does not allow an address, and `TeacherUnreachableError` if the host name
    cannot be resolved.
    """
    try:
        return pin_url(base_url.rstrip("/"), network, resolve=resolve)
    except AddressRefusedError as error:
        raise TeacherRefusedError(
            f"teacher endpoint {name}: its address {error}; have the operator change one of them"
        ) from error
    except OSError as error:
        raise TeacherUnreachableError(f"teacher endpoint {name}: its host name cannot be resolved: {error}") from error
