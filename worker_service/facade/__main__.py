"""Serve the worker's HTTP door: `python -m worker_service.facade [--settings FILE]`."""

from __future__ import annotations

import argparse
import ipaddress
import logging
from typing import Any

import uvicorn

from worker_service.errors import SalternError
from worker_service.facade.app import create_app
from worker_service.facade.auth import read_tokens
from worker_service.facade.salt_modules import load as load_modules
from worker_service.settings import Facade, load


def main() -> None:
    """Serve until told to stop."""
    parser = argparse.ArgumentParser(prog="worker_service.facade", description="Serve the worker's HTTP door.")
    parser.add_argument("--settings", help="the worker's settings file (default: /etc/saltern/worker.toml)")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    try:
        settings = load(arguments.settings).facade
        options = tls(settings)
        app = create_app(settings, load_modules(settings.minion_config), read_tokens(settings.tokens_file))
    except (SalternError, FileNotFoundError) as err:
        raise SystemExit(str(err)) from err
    # Access logs would hold query strings, and with them whatever people put into URIs.
    uvicorn.run(app, host=settings.host, port=settings.port, access_log=False, server_header=False, **options)


def tls(settings: Facade) -> dict[str, Any]:
    """TLS options; raises SystemExit where the door would stand open to others without TLS."""
    if settings.tls_cert and settings.tls_key:
        return {"ssl_certfile": str(settings.tls_cert), "ssl_keyfile": str(settings.tls_key)}
    try:
        loopback = ipaddress.ip_address(settings.host).is_loopback
    except ValueError:
        loopback = settings.host == "localhost"
    if not loopback:
        raise SystemExit(
            f"Not listening on {settings.host} without TLS: tokens would cross the network in the open. "
            "Set facade.tls_cert and facade.tls_key in the worker's settings, or listen on 127.0.0.1."
        )
    return {}


if __name__ == "__main__":
    main()
