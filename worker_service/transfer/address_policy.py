"""Where connections may go. The address that is checked here is the one that the caller then connects to."""

from __future__ import annotations

import ipaddress
import socket
from typing import Final

from worker_service.contract import Code
from worker_service.core.errors import Refused, TransferFailed
from worker_service.core.settings import ImagePolicy
from worker_service.transfer.uri import Uri

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

_HOLD_IPV4: Final = tuple(map(ipaddress.ip_network, ("::/96", "::ffff:0:0/96", "::ffff:0:0:0/96", "64:ff9b::/96")))
"""In their last 32 bits, the IPv4 address that the kernel or a NAT64 gateway goes to in their place."""

_LEAD_ANYWHERE: Final = tuple(map(ipaddress.ip_network, ("64:ff9b:1::/48", "2001::/32", "2002::/16")))
"""A site's own NAT64, Teredo, 6to4: to which IPv4 address these lead is settled elsewhere."""


def allowed_address(policy: ImagePolicy, uri: Uri, host: str, port: int | str) -> str:
    """The first address of a host. Raises Refused where one of them is neither public nor in the site's networks."""
    try:
        found = _resolved(host, port)
    except (OSError, UnicodeError) as err:
        raise TransferFailed(f"The host of {uri} cannot be resolved ({err}). Check its name.") from err
    _require_allowed(policy, uri, found)
    return str(found[0])


def refuse_literal(policy: ImagePolicy, uri: Uri, host: str) -> None:
    """Refuse an address that is written in the URI, in whatever way; a name is not asked after here."""
    try:
        found = _resolved(host, None, socket.AI_NUMERICHOST)
    except (OSError, UnicodeError):
        return
    _require_allowed(policy, uri, found)


def _resolved(host: str, port: int | str | None, flags: int = 0) -> list[Address]:
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=flags)
    return [ipaddress.ip_address(info[4][0]) for info in found]


def _require_allowed(policy: ImagePolicy, uri: Uri, addresses: list[Address]) -> None:
    networks = tuple(ipaddress.ip_network(network) for network in policy.http_networks)
    for address in addresses:
        meant = _meant(address)
        if not is_public(meant) and not any(address in network or meant in network for network in networks):
            raise Refused(
                f"{uri} leads to {address}, which is not a public address. "
                "If it is a store of yours, add its network to images.http_networks in the worker's settings.",
                code=Code.POLICY,
            )


def _meant(address: Address) -> Address:
    held = any(address in network for network in _HOLD_IPV4)
    return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF) if held else address


def is_public(address: Address) -> bool:
    """Whether an address is one host's on the public network. To `is_global` alone, groups of hosts are that too."""
    special = address.is_multicast or address.is_reserved or address.is_unspecified
    site_local = isinstance(address, ipaddress.IPv6Address) and address.is_site_local
    leads = any(address in network for network in _LEAD_ANYWHERE)
    return address.is_global and not (special or site_local or leads)
