"""Where the master connects to for the consoles of a worker. Pure.

A worker is not trusted to say it: it could send the master to another worker, or to a service that only the master
reaches. An administrator enrols the address. Until then only an address counts that is the worker's own by its name.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Final
from urllib.parse import urlsplit

from worker_service.contract.public_address import is_loopback
from worker_service.contract.tickets import console_path, disk_path

_NAME: Final = re.compile(r"[a-z0-9](?:[a-z0-9._-]{0,252})")
_PATH: Final = re.compile(r"[A-Za-z0-9._~/-]*")
_WEBSOCKET: Final = {"https": "wss", "http": "ws"}


@dataclass(frozen=True, slots=True)
class _Address:
    scheme: str
    host: str
    port: int | None
    path: str

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}{'' if self.port is None else f':{self.port}'}{self.path}"


def check_api_url(text: str) -> str:
    """Check the address of a worker's API as an administrator gives it. Raises ValueError."""
    address = _parse(text)
    if address is None or address.scheme not in _WEBSOCKET:
        raise ValueError(
            "this is no address of a worker's API; write https://HOST:PORT, or http:// for one on the master's machine"
        )
    return text


def console_url(worker: str, uuid: str, *, enrolled: str, reported: str, allowed: Sequence[str]) -> str:
    """Return the websocket of a VM's console. Raises ValueError for an address that may be another host's.

    Args:
        worker: the minion id of the VM's worker.
        uuid: of the VM.
        enrolled: the address that `check_api_url` has accepted for this worker; "": none. It decides alone.
        reported: the worker's own statement, for a worker without an enrolled address.
        allowed: globs of hosts that such a worker may name.
    """
    path = console_path(uuid)
    if enrolled and (address := _parse(enrolled)):
        base = _Address(_WEBSOCKET[address.scheme], address.host, address.port, address.path.rstrip("/"))
        return f"{base}{path}"
    address = _parse(reported)
    if address and address.path == path and address.scheme in ("wss", "ws") and _is_own(worker, address.host, allowed):
        return str(address)
    raise ValueError(
        f"{worker} reports a console at {reported[:200]!r}, and the master does not connect there: it may be another "
        f"host. Enrol the worker's address: saltern workers enroll {worker} --api-url https://HOST:PORT"
    )


def disk_url(console: str, uuid: str, disk: str) -> str:
    """Return where a saved disk of a VM is, beside the websocket of its console that `console_url` returned."""
    return console.replace("ws", "http", 1).removesuffix(console_path(uuid)) + disk_path(uuid, disk)


def _is_own(worker: str, host: str, allowed: Sequence[str]) -> bool:
    """Return whether a host is the worker by its minion id, or the master's own machine, and one of `allowed`."""
    named = bool(worker) and (host == worker.lower() or host.startswith(f"{worker.lower()}."))
    return (named or is_loopback(host)) and any(fnmatchcase(host, pattern) for pattern in allowed)


def _parse(text: str) -> _Address | None:
    """Return the parts of an address, or None if it is none or has more. Other machines than this one need TLS."""
    try:
        parts = urlsplit(text)
        address = _Address(parts.scheme, parts.hostname or "", parts.port, parts.path)
    except ValueError:
        return None
    # urlsplit drops line breaks, which the next parser may not.
    rest = parts.query or parts.fragment or "@" in parts.netloc or " " in text or not text.isprintable()
    secure = address.scheme in ("https", "wss") or is_loopback(address.host)
    return address if secure and not rest and _is_host(address.host) and _PATH.fullmatch(address.path) else None


def _is_host(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return _NAME.fullmatch(host) is not None
    return True
