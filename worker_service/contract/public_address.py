"""Which addresses a service connects to on behalf of a user. Both services use this one rule.

It needs nothing but the standard library. It is not re-exported: most helpers do without it.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from typing import Final

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

CONNECT_S: Final = 10.0
"""Longest time to connect to one of the addresses of a host. Each is tried in turn, so one that is dead must not take
the time of the others. Linux repeats a lost SYN three times within it."""

_HOLD_IPV4: Final = tuple(map(ipaddress.ip_network, ("::ffff:0:0/96", "64:ff9b::/96")))
"""The last 32 bits are the IPv4 address that the kernel or a NAT64 gateway connects to instead (RFC 4291, RFC 6052)."""

_LEAD_ANYWHERE: Final = tuple(map(ipaddress.ip_network, ("64:ff9b:1::/48", "2001::/32", "2002::/16")))
"""A site's own NAT64, Teredo, 6to4. Other systems decide which IPv4 address these lead to."""


def is_allowed(address: Address | str, networks: Iterable[str] = ()) -> bool:
    """Return whether a service may connect to an address: a public one, or one in the site's own networks."""
    given = ipaddress.ip_address(address)
    reached = _reached(given)
    return is_public(reached) or any(
        each in network for network in map(ipaddress.ip_network, networks) for each in (given, reached)
    )


def allowed_of(addresses: Iterable[str], networks: Iterable[str] = ()) -> list[str]:
    """Return the addresses of one host that a service may connect to, in their order. The others are left out."""
    networks = tuple(networks)
    return [address for address in dict.fromkeys(addresses) if is_allowed(address, networks)]


def is_public(address: Address) -> bool:
    """Return whether an address belongs to one host on the public network. `is_global` also accepts groups of hosts."""
    special = address.is_multicast or address.is_reserved or address.is_unspecified
    site_local = isinstance(address, ipaddress.IPv6Address) and address.is_site_local
    leads = any(address in network for network in _LEAD_ANYWHERE)
    return address.is_global and not (special or site_local or leads)


def is_loopback(host: str) -> bool:
    """Return whether a host, given as an address or a name, is this machine."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _reached(address: Address) -> Address:
    """Return the address that a connection ends at."""
    holds = any(address in network for network in _HOLD_IPV4)
    return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF) if holds else address
