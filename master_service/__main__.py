"""`python -m master_service [--settings FILE] [serve | show-config | revision MESSAGE]`."""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
from pathlib import Path

import uvicorn
from alembic import command

from master_service.api import create_app
from master_service.core import logging
from master_service.core.settings import FILE_VARIABLE, Settings, SettingsError, database_url, load, read_secret, shown
from master_service.db.engine import Database, config


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
    uvicorn.run(
        create_app(settings),
        host=settings.host,
        port=settings.port,
        log_config=None,
        access_log=False,
        ws_max_size=1 << 20,
        ws_per_message_deflate=False,  # VNC compresses by itself
        # Clients of /events never disconnect by themselves.
        timeout_graceful_shutdown=2,
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
