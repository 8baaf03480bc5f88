"""Serve the worker API: `python -m worker_service.api [--settings FILE]`."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from typing import Any

import uvicorn
from fastapi import FastAPI

from worker_service.api.app import create_app
from worker_service.api.auth import LINE, Token, TokenFile
from worker_service.api.bounded_http import BoundedProtocol, ConsoleProtocol
from worker_service.api.salt_loader import load as load_modules
from worker_service.contract.console_protocol import FRAME_BYTES
from worker_service.contract.public_address import is_loopback
from worker_service.core.errors import SalternError
from worker_service.core.logs import configure_logging
from worker_service.core.settings import ApiSettings
from worker_service.state.context import WorkerContext


def main() -> None:
    """Serve until a signal ends the process."""
    parser = argparse.ArgumentParser(prog="worker_service.api", description="Serve the worker API.")
    parser.add_argument("--settings", help="the worker's settings file (default: /etc/saltern/worker.toml)")
    arguments = parser.parse_args()
    os.umask(0o077)
    configure_logging()
    try:
        worker = WorkerContext(arguments.settings)
        settings = worker.settings.api
        tokens = TokenFile(settings.tokens_file)
        options = tls(settings, tokens.tokens())
        app = create_app(settings, load_modules(settings.minion_config), tokens, worker)
    except (SalternError, FileNotFoundError) as err:
        raise SystemExit(str(err)) from err
    server(app, settings, **options).run()


def server(app: FastAPI, settings: ApiSettings, **options: Any) -> uvicorn.Server:
    """Return the server of the API, with limits on slow callers and without a `Server` header."""
    bounds = {"receive_timeout_s": settings.receive_timeout_s, "most_connections": settings.connections}
    config = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        http=type("Protocol", (BoundedProtocol,), bounds),
        ws=ConsoleProtocol,
        ws_max_size=FRAME_BYTES,
        ws_per_message_deflate=False,  # VNC compresses by itself
        server_header=False,
        proxy_headers=False,
        **options,
    )
    return uvicorn.Server(config)


def tls(settings: ApiSettings, tokens: Sequence[Token]) -> dict[str, Any]:
    """Return the TLS options. Raises SystemExit if other hosts could reach the API without TLS or without a token."""
    if not is_loopback(settings.host):
        if not (settings.tls_cert and settings.tls_key):
            raise SystemExit(
                f"Not listening on {settings.host} without TLS: tokens would cross the network in the open. "
                "Set api.tls_cert and api.tls_key in the worker's settings, or listen on 127.0.0.1."
            )
        if not tokens:
            raise SystemExit(
                f"Not listening on {settings.host} without a token: {settings.tokens_file} is empty. Add one; {LINE}"
            )
    if settings.tls_cert and settings.tls_key:
        return {"ssl_certfile": str(settings.tls_cert), "ssl_keyfile": str(settings.tls_key)}
    return {}


if __name__ == "__main__":
    main()
