"""Where a URL that a person wrote may lead: its host name is resolved once, checked, and never resolved again.

A name that is resolved for every request could have another, unchecked address the second time. Shared by the engine
(served teachers) and the service (webhooks), which may not import each other.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import urlsplit, urlunsplit

Network = Literal["public", "private", "loopback"]
"""public: https to addresses of the internet; private: https, also to addresses of private networks; loopback: https or
http to this machine alone."""
Resolver = Callable[[str, int], list[str]]

_PRIVATE_NETWORKS = tuple(map(ipaddress.ip_network, ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "fc00::/7")))
_ENDS_IN_IPV4 = tuple(map(ipaddress.IPv6Network, ("64:ff9b::/96", "64:ff9b:1::/48", "::/96", "::ffff:0:0:0/96")))
IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address


class AddressRefusedError(ValueError):
    """The URL has the wrong form, or leads outside its network. The message names neither the host nor an address."""


@dataclass(frozen=True)
class PinnedAddress:
    """A URL with the host's IP address instead of its name."""

    url: str
    host_header: str
    server_name: str
    """Host name that the server's certificate must be valid for."""


def pin_address(url: str, network: Network, *, resolve: Resolver | None = None) -> PinnedAddress:
    """Resolve the host and check all its addresses.

    Raises `AddressRefusedError` if `network` does not allow an address, and OSError if the name cannot be resolved.
    """
    try:
        parts = urlsplit(url)
        port = parts.port or (443 if parts.scheme == "https" else 80)
    except ValueError:
        raise AddressRefusedError("is not a URL") from None
    allowed_schemes = {"http", "https"} if network == "loopback" else {"https"}
    if parts.scheme not in allowed_schemes or parts.hostname is None or parts.username is not None:
        raise AddressRefusedError(
            f"must be {' or '.join(sorted(allowed_schemes))} with a host and without a user, since its network is "
            f"{network}"
        )
    try:
        addresses = (resolve or _resolve)(parts.hostname, port)
    except UnicodeError:  # no host name: a part is empty or too long
        raise AddressRefusedError("has an impossible host name") from None
    if not addresses or not all(_is_allowed(address, network) for address in addresses):
        raise AddressRefusedError(f"leads outside its network, which is {network}")
    host = f"[{addresses[0]}]" if ":" in addresses[0] else addresses[0]
    pinned = urlunsplit((parts.scheme, f"{host}:{port}", parts.path, parts.query, ""))
    return PinnedAddress(pinned, parts.netloc, parts.hostname)


def _resolve(host: str, port: int) -> list[str]:
    found: list[Any] = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


def _is_allowed(address: str, network: Network) -> bool:
    ip = ipaddress.ip_address(address.partition("%")[0])
    ip = getattr(ip, "ipv4_mapped", None) or ip
    if network == "loopback":
        return ip.is_loopback
    # A gateway would send the packets to an IPv4 address within such an IPv6 address.
    return all(_is_allowed_itself(one, network) for one in (ip, *_embedded(ip)))


def _embedded(ip: IPAddress) -> list[ipaddress.IPv4Address]:
    """Return the IPv4 addresses in an IPv6 address of 6to4, Teredo, NAT64 or the old compatible form."""
    if isinstance(ip, ipaddress.IPv4Address):
        return []
    teredo = ip.teredo or ()
    last = [ipaddress.IPv4Address(int(ip) & 0xFFFF_FFFF)] if any(ip in known for known in _ENDS_IN_IPV4) else []
    return [found for found in (ip.sixtofour, *teredo, *last) if found is not None]


def _is_allowed_itself(ip: IPAddress, network: Network) -> bool:
    if network == "private" and any(ip in known for known in _PRIVATE_NETWORKS if known.version == ip.version):
        return True
    return ip.is_global and not ip.is_multicast
