"""Resolve hosts and check their addresses. Callers connect to an address that was checked, and not to the name."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TypeVar

from worker_service.contract import Code
from worker_service.contract.public_address import allowed_of
from worker_service.core.errors import Refused, TransferFailed
from worker_service.core.settings import ImagePolicy
from worker_service.transfer.uri import Uri

Connection = TypeVar("Connection")


def allowed_addresses(policy: ImagePolicy, uri: Uri, host: str, port: int | str) -> list[str]:
    """Return the addresses of a host that policy allows, in the resolver's order. Raises Refused if it has no such."""
    try:
        found = _resolved(host, port)
    except (OSError, UnicodeError) as err:
        raise TransferFailed(f"The host of {uri} cannot be resolved ({err}). Check its name.") from err
    return _allowed(policy, uri, found)


def refuse_literal(policy: ImagePolicy, uri: Uri, host: str) -> None:
    """Refuse a forbidden address in the URI, in any notation. A name is not resolved here."""
    try:
        found = _resolved(host, None, socket.AI_NUMERICHOST)
    except (OSError, UnicodeError):
        return
    _allowed(policy, uri, found)


def connected(
    addresses: Sequence[str], connect: Callable[[str], Connection], failures: tuple[type[Exception], ...]
) -> Connection:
    """Return the first connection that can be made. The last address raises the error of its failure."""
    for address in addresses[:-1]:
        with suppress(*failures):
            return connect(address)
    return connect(addresses[-1])


def _resolved(host: str, port: int | str | None, flags: int = 0) -> list[str]:
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=flags)
    return [str(ipaddress.ip_address(info[4][0])) for info in found]


def _allowed(policy: ImagePolicy, uri: Uri, addresses: list[str]) -> list[str]:
    if allowed := allowed_of(addresses, policy.http_networks):
        return allowed
    raise Refused(
        f"{uri} leads to {', '.join(dict.fromkeys(addresses))}, which is not a public address. "
        "If it is a store of yours, add its network to images.http_networks in the worker's settings.",
        code=Code.POLICY,
    )
