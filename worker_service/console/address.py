"""Addresses of consoles: the socket of QEMU, the URL for viewers, and the origins of pages."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from worker_service.contract import origin_of
from worker_service.contract.tickets import console_path
from worker_service.core.settings import ApiSettings

_SOCKET_NAME_BYTES: Final = 107


def console_socket(folder: Path) -> Path | None:
    """Return the path of the VNC socket in a VM's folder, or None if it is too long for a unix socket."""
    socket = folder / "screen/vnc"
    return socket if len(os.fsencode(socket)) <= _SOCKET_NAME_BYTES else None


def console_url(settings: ApiSettings, uuid: str) -> str:
    """Return the URL of a VM's console."""
    scheme = "wss" if settings.tls_cert else "ws"
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    base = settings.url.rstrip("/").replace("http", "ws", 1) if settings.url else f"{scheme}://{host}:{settings.port}"
    return base + console_path(uuid)


def origins(settings: ApiSettings) -> frozenset[str]:
    """Return the origins of pages that may show consoles: those in the settings, or the API's own names and `url`."""
    scheme = "https" if settings.tls_cert else "http"
    named = (f"[{name}]" if ":" in name else name for name in settings.allowed_hosts)
    own = [f"{scheme}://{name}:{settings.port}" for name in named] + [settings.url] * bool(settings.url)
    return frozenset(map(origin_of, settings.origins or own))
