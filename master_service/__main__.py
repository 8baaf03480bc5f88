"""`python -m master_service [--settings FILE] [serve | show-config | revision MESSAGE]`."""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
from pathlib import Path
from typing import Any, Final

import uvicorn
from alembic import command
from starlette.types import ASGIApp

from http_bounds.server import Busy, has_tls
from http_bounds.server import server as bounded_server
from master_service.api import create_app
from master_service.api.protocol import errors
from master_service.core import logging
from master_service.core.settings import FILE_VARIABLE, Settings, SettingsError, database_url, load, read_secret, shown
from master_service.db.engine import Database, config
from worker_service.contract.console_protocol import FRAME_BYTES
from worker_service.contract.public_address import is_loopback

_BUSY: Final = Busy(body=bytes(errors.busy().body), media_type=errors.MEDIA_TYPE)


def main() -> int:
    """Run the command line, and return the exit code: 0, or 2 for unusable settings."""
    arguments = _parser().parse_args()
    try:
        settings, origins = load(arguments.settings)
        match arguments.command:
            case "show-config":
                _show(settings, origins)
            case "revision":
                asyncio.run(_revision(settings, arguments.message))
            case _:
                _serve(settings)
    except SettingsError as err:
        sys.stderr.write(f"master_service: {err}\n")
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    given = os.environ.get(FILE_VARIABLE)
    parser = argparse.ArgumentParser(prog="python -m master_service", description="The master service of Saltern.")
    parser.add_argument(
        "--settings", type=Path, default=Path(given) if given else None, help=f"TOML file (default: ${FILE_VARIABLE})"
    )
    commands = parser.add_subparsers(dest="command")
    commands.add_parser("serve", help="bring the database up to date and serve (default)")
    commands.add_parser("show-config", help="print every setting and where its value came from")
    revision = commands.add_parser("revision", help="for developers: write a migration from the models' changes")
    revision.add_argument("message")
    return parser


def _serve(settings: Settings) -> None:
    logging.configure(settings.log_level)
    # Read here too, so that a bad file gives one sentence instead of a traceback during the start of the server.
    read_secret(settings.admin_token_file, "the administrator's token")
    database_url(settings)
    _require_protection(settings)
    server(create_app(settings), settings).run()


def server(app: ASGIApp, settings: Settings, **options: Any) -> uvicorn.Server:
    """Return the server of the API. `options` are uvicorn's."""
    # Clients of /events never disconnect by themselves.
    fixed = {"log_config": None, "ws_max_size": FRAME_BYTES, "timeout_graceful_shutdown": 2}
    return bounded_server(app, settings, _BUSY, **(fixed | options))


def _require_protection(settings: Settings) -> None:
    """Raise SettingsError if other hosts could reach the API without TLS."""
    if bool(settings.tls_cert) != bool(settings.tls_key):
        raise SettingsError("tls_cert and tls_key belong together: set both, or neither.")
    for file in filter(None, (settings.tls_cert, settings.tls_key)):
        if not os.access(file, os.R_OK):
            raise SettingsError(f"{file} (TLS) cannot be read. Check its path and its owner.")
    if not (has_tls(settings) or settings.tls_proxy or is_loopback(settings.host)):
        raise SettingsError(
            f"Not listening on {settings.host} without TLS: passwords and tokens would cross the network in the open. "
            "Set tls_cert and tls_key in the master's settings, or listen on 127.0.0.1. "
            "If a proxy does TLS and nothing else reaches this port, set tls_proxy = true."
        )


def _show(settings: Settings, origins: dict[str, str]) -> None:
    for name, origin in origins.items():
        description = Settings.model_fields[name].description
        sys.stdout.write(f"{name} = {shown(name, settings)}\n    {description} [{origin}]\n")


async def _revision(settings: Settings, message: str) -> None:
    database = Database(database_url(settings))
    try:
        await database.migrate()
        async with database.engine.connect() as connection:
            await connection.run_sync(lambda sync: command.revision(config(sync), message, autogenerate=True))
    finally:
        await database.close()


if __name__ == "__main__":
    sys.exit(main())
