"""The address of a caller. A proxy in front of the master says it, if the settings trust that proxy."""

from __future__ import annotations

import ipaddress
from collections.abc import Collection
from typing import Final

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
_MOST_HOPS: Final = 20
_LONGEST: Final = 45
"""Characters of an address. Python takes one with a zone of any length."""
_SECURE: Final = {"http": "https", "https": "https", "ws": "wss", "wss": "wss"}
_PLAIN: Final = {"http": "http", "https": "http", "ws": "ws", "wss": "ws"}


class ClientAddress:
    """Puts the address and the scheme of the caller into the scope of each request.

    Args:
        app: the application.
        trusted: networks of proxies that are believed.
    """

    def __init__(self, app: ASGIApp, trusted: Collection[str]) -> None:
        self._app = app
        self._trusted = tuple(map(ipaddress.ip_network, trusted))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Correct the scope and go on."""
        peer = scope.get("client")
        if peer is not None and is_trusted(peer[0], self._trusted):
            headers = Headers(scope=scope)
            found = caller_address(peer[0], headers.getlist("x-forwarded-for"), self._trusted)
            schemes = {"https": _SECURE, "http": _PLAIN}.get(headers.get("x-forwarded-proto", ""), {})
            scope = dict(scope) | {
                "client": (found, 0 if found != peer[0] else peer[1]),
                "scheme": schemes.get(scope["scheme"], scope["scheme"]),
            }
        await self._app(scope, receive, send)


def is_trusted(address: str, trusted: Collection[Network]) -> bool:
    """Return whether an address belongs to a trusted proxy."""
    known = parsed(address)
    return known is not None and any(known in network for network in trusted)


def caller_address(peer: str, forwarded: Collection[str], trusted: Collection[Network]) -> str:
    """Return the address of a caller behind trusted proxies.

    Each proxy appends the address of its own peer to `X-Forwarded-For`. The search goes back from the last one to the
    first that is not trusted: what stands before it may be forged. Text that is no address ends it.
    """
    address = peer
    for hop in reversed(",".join(forwarded).rsplit(",", _MOST_HOPS)):
        if not is_trusted(address, trusted) or (found := parsed(hop.strip())) is None:
            break
        address = str(found)
    return address


def parsed(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """Return an address, an IPv4 one inside an IPv6 one as itself; None for any other text."""
    try:
        address = ipaddress.ip_address(text if len(text) <= _LONGEST else "")
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address
