"""Resolve hosts and check their addresses. Callers connect to the address that was checked, and not to the name."""

from __future__ import annotations

import ipaddress
import socket

from worker_service.contract import Code
from worker_service.contract.public_address import Address, is_allowed
from worker_service.core.errors import Refused, TransferFailed
from worker_service.core.settings import ImagePolicy
from worker_service.transfer.uri import Uri


def allowed_address(policy: ImagePolicy, uri: Uri, host: str, port: int | str) -> str:
    """Return the first address of a host. Raises Refused if one is neither public nor in the site's networks."""
    try:
        found = _resolved(host, port)
    except (OSError, UnicodeError) as err:
        raise TransferFailed(f"The host of {uri} cannot be resolved ({err}). Check its name.") from err
    _require_allowed(policy, uri, found)
    return str(found[0])


def refuse_literal(policy: ImagePolicy, uri: Uri, host: str) -> None:
    """Refuse a forbidden address in the URI, in any notation. A name is not resolved here."""
    try:
        found = _resolved(host, None, socket.AI_NUMERICHOST)
    except (OSError, UnicodeError):
        return
    _require_allowed(policy, uri, found)


def _resolved(host: str, port: int | str | None, flags: int = 0) -> list[Address]:
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=flags)
    return [ipaddress.ip_address(info[4][0]) for info in found]


def _require_allowed(policy: ImagePolicy, uri: Uri, addresses: list[Address]) -> None:
    for address in addresses:
        if not is_allowed(address, policy.http_networks):
            raise Refused(
                f"{uri} leads to {address}, which is not a public address. "
                "If it is a store of yours, add its network to images.http_networks in the worker's settings.",
                code=Code.POLICY,
            )
