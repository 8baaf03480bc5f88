"""Where the screen of a VM is."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from worker_service.contract import origin_of
from worker_service.core.settings import ApiSettings

_SOCKET_NAME_BYTES: Final = 107


def console_socket(folder: Path) -> Path | None:
    """Where VNC listens, in a VM's folder; None where its path is too long for the name of a unix socket."""
    socket = folder / "screen/vnc"
    return socket if len(os.fsencode(socket)) <= _SOCKET_NAME_BYTES else None


def screen_path(uuid: str) -> str:
    """Path of a VM's screen behind the worker's HTTP facade; a websocket, for whoever holds a ticket."""
    return f"/vmachines/{uuid}/screen"


def console_url(settings: ApiSettings, uuid: str) -> str:
    """How to reach a VM's screen."""
    scheme = "wss" if settings.tls_cert else "ws"
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    base = settings.url.rstrip("/").replace("http", "ws", 1) if settings.url else f"{scheme}://{host}:{settings.port}"
    return base + screen_path(uuid)


def origins(settings: ApiSettings) -> frozenset[str]:
    """The origins of pages that may show screens: those that are set, or else the facade's own names and its `url`."""
    scheme = "https" if settings.tls_cert else "http"
    named = (f"[{name}]" if ":" in name else name for name in settings.allowed_hosts)
    own = [f"{scheme}://{name}:{settings.port}" for name in named] + [settings.url] * bool(settings.url)
    return frozenset(map(origin_of, settings.origins or own))
