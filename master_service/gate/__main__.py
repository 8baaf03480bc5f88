"""Serve the gate: `python -m master_service.gate [--settings FILE]`."""

from __future__ import annotations

import argparse
import asyncio
import os
import shutil
import socket
import sys
from pathlib import Path

import uvicorn

from master_service.core import logging
from master_service.core.errors import SaltError
from master_service.core.settings import SettingsError, read_secret
from master_service.gate.app import create_app
from master_service.gate.event_hub import EventHub
from master_service.gate.rest_cherrypy import Limits, RestCherrypy
from master_service.gate.settings import DEFAULT_PATH, GateSettings, load
from master_service.saltapi.client import GateClient


def main() -> int:
    """Serve until a signal ends the process. Return 2 for unusable settings."""
    parser = argparse.ArgumentParser(prog="python -m master_service.gate", description="The gate before salt-api.")
    parser.add_argument("--settings", type=Path, default=DEFAULT_PATH, help=f"TOML file (default: {DEFAULT_PATH})")
    parser.add_argument("--check", action="store_true", help="ask the gate that runs whether it can use salt-api")
    arguments = parser.parse_args()
    try:
        settings = load(arguments.settings)
        if arguments.check:
            return asyncio.run(_check(settings))
        password = read_secret(settings.salt_api_password_file, "the password for salt-api")
        for path in (settings.socket, settings.events_socket):
            if not path.parent.is_dir():
                raise SettingsError(f"The folder of the socket {path} does not exist. Make it, passable to the master.")
    except SettingsError as err:
        sys.stderr.write(f"master_service.gate: {err}\n")
        return 2
    logging.configure(settings.log_level)
    asyncio.run(serve(settings, password))
    return 0


async def serve(settings: GateSettings, password: str) -> None:
    """Serve both sockets."""
    salt = RestCherrypy(
        settings.salt_api_url,
        settings.salt_api_username,
        password,
        settings.salt_timeout_s,
        Limits(answer=settings.answer_limit_mib << 20, request=settings.salt_api_request_limit_kib << 10),
    )
    hub = EventHub(settings.worker_reply_limit_mib << 20)
    events = await asyncio.start_unix_server(hub.engine, sock=_bound(settings.events_socket))
    config = uvicorn.Config(
        create_app(salt, hub, settings.salt_profile),
        log_config=None,
        access_log=False,
        server_header=False,
        lifespan="off",
        timeout_graceful_shutdown=1,
    )
    try:
        await uvicorn.Server(config).serve(sockets=[_bound(settings.socket, settings.socket_group)])
    finally:
        events.close()
        await salt.close()


async def _check(settings: GateSettings) -> int:
    client = GateClient(settings.socket, settings.salt_timeout_s)
    try:
        await client.check()
    except SaltError as err:
        sys.stderr.write(f"{err} {err.hint}\n")
        return 1
    finally:
        await client.close()
    sys.stdout.write("The gate answers, and salt-api accepts its account.\n")
    return 0


def _bound(path: Path, group: str = "") -> socket.socket:
    """Return a socket at a path that only this user can open, and the group if one is given."""
    path.unlink(missing_ok=True)
    one = socket.socket(socket.AF_UNIX)
    before = os.umask(0o177)
    try:
        one.bind(str(path))
    finally:
        os.umask(before)
    if group:
        shutil.chown(path, group=group)
        path.chmod(0o660)
    return one


if __name__ == "__main__":
    sys.exit(main())
