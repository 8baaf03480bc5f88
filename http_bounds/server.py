"""The server of both services: bounded connections, TLS, and no line in a log that has a query in it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import uvicorn
from starlette.types import ASGIApp

from http_bounds.protocol import BoundedProtocol, ConsoleProtocol


class ServerSettings(Protocol):
    """The settings that both services have for their server."""

    @property
    def host(self) -> str:
        """Address to listen on."""

    @property
    def port(self) -> int:
        """Port to listen on."""

    @property
    def tls_cert(self) -> Path | None:
        """Certificate chain of the server, in PEM."""

    @property
    def tls_key(self) -> Path | None:
        """Key of that certificate."""

    @property
    def receive_timeout_s(self) -> float:
        """Longest time for a request to arrive."""

    @property
    def connections(self) -> int:
        """Connections at once."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Busy:
    """The answer to a caller for whom there is no connection."""

    body: bytes
    media_type: str


def server(app: ASGIApp, settings: ServerSettings, busy: Busy, **options: Any) -> uvicorn.Server:
    """Return the server of an application. `options` are uvicorn's."""
    bounds = {
        "receive_timeout_s": settings.receive_timeout_s,
        "most_connections": settings.connections,
        "busy": busy.body,
        "busy_type": busy.media_type,
    }
    protocol: type[BoundedProtocol] = type("Protocol", (BoundedProtocol,), bounds)
    config = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        http=protocol,
        ws=ConsoleProtocol,
        ws_per_message_deflate=False,  # VNC compresses by itself
        server_header=False,
        proxy_headers=False,  # a caller on loopback could name any address
        ssl_certfile=settings.tls_cert if has_tls(settings) else None,
        ssl_keyfile=settings.tls_key if has_tls(settings) else None,
        **options,
    )
    config.load()
    protocol.tls, config.ssl = config.ssl, None
    return uvicorn.Server(config)


def has_tls(settings: ServerSettings) -> bool:
    """Return whether the server encrypts."""
    return bool(settings.tls_cert and settings.tls_key)
