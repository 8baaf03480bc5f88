"""Serve the worker API: `python -m worker_service.api [--settings FILE]`."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from typing import Final

import msgspec
import uvicorn
from fastapi import FastAPI

from http_bounds.server import Busy, has_tls
from http_bounds.server import server as bounded_server
from worker_service.api.app import create_app
from worker_service.api.auth import LINE, Token, TokenFile
from worker_service.api.salt_loader import load as load_modules
from worker_service.contract import Code
from worker_service.contract.console_protocol import FRAME_BYTES
from worker_service.contract.public_address import is_loopback
from worker_service.core.errors import SalternError
from worker_service.core.logs import configure_logging
from worker_service.core.settings import ApiSettings
from worker_service.state.context import WorkerContext

_BUSY: Final = Busy(
    body=msgspec.json.encode(
        {
            "success": False,
            "message": "The worker answers as many callers as it can. Try again in a second.",
            "code": Code.HYPERVISOR.value,
        }
    ),
    media_type="application/json",
)


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
        require_protection(settings, tokens.tokens())
        app = create_app(settings, load_modules(settings.minion_config), tokens, worker)
    except (SalternError, FileNotFoundError) as err:
        raise SystemExit(str(err)) from err
    server(app, settings).run()


def server(app: FastAPI, settings: ApiSettings) -> uvicorn.Server:
    """Return the server of the API, with limits on slow callers and without a `Server` header."""
    return bounded_server(app, settings, _BUSY, ws_max_size=FRAME_BYTES)


def require_protection(settings: ApiSettings, tokens: Sequence[Token]) -> None:
    """Raise SystemExit if other hosts could reach the API without TLS or without a token."""
    if is_loopback(settings.host):
        return
    if not has_tls(settings):
        raise SystemExit(
            f"Not listening on {settings.host} without TLS: tokens would cross the network in the open. "
            "Set api.tls_cert and api.tls_key in the worker's settings, or listen on 127.0.0.1."
        )
    if not tokens:
        raise SystemExit(
            f"Not listening on {settings.host} without a token: {settings.tokens_file} is empty. Add one; {LINE}"
        )


if __name__ == "__main__":
    main()
