"""Resolve hosts and check their addresses. Callers connect to an address that was checked, and not to the name."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Callable
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


class Connector:
    """Connects to hosts at the addresses that policy allows, in turn. The one that answered last is tried first."""

    def __init__(self, policy: ImagePolicy) -> None:
        self._policy = policy
        self._reached: dict[str, str] = {}

    def connect(
        self,
        uri: Uri,
        host: str,
        port: int | str,
        dial: Callable[[str], Connection],
        failures: tuple[type[Exception], ...],
    ) -> Connection:
        """Return the first connection that `dial` makes to an address. The last address raises its failure."""
        addresses = allowed_addresses(self._policy, uri, host, port)
        addresses.sort(key=lambda address: address != self._reached.get(host))
        for address in addresses[:-1]:
            with suppress(*failures):
                return self._dialled(host, address, dial)
        return self._dialled(host, addresses[-1], dial)

    def _dialled(self, host: str, address: str, dial: Callable[[str], Connection]) -> Connection:
        connection = dial(address)
        self._reached[host] = address
        return connection


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
