"""The master as a whole: its parts put together, its daemons started and stopped."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import structlog

from master_service.database import Database
from master_service.listener import Listener
from master_service.parts import Parts
from master_service.poller import Poller
from master_service.pusher import Pusher
from master_service.salt_api import RestSalt, SaltApi
from master_service.service import Service
from master_service.settings import Settings, read_secret
from master_service.store import Store

log = structlog.get_logger()


class Master:
    """One running master. Made by `running`."""

    def __init__(self, parts: Parts) -> None:
        self.parts = parts
        self.pusher = Pusher(parts)
        self.poller = Poller(parts, self.pusher)
        self.listener = Listener(parts, self.pusher, self.poller)
        self.service = Service(parts, self.pusher, self.poller)


@asynccontextmanager
async def running(settings: Settings, salt: SaltApi | None = None) -> AsyncIterator[Master]:
    """A master with its tables up to date and its daemons at work, until the block ends.

    Raises SettingsError when a secret cannot be read. salt-api may be away: the daemons go on trying.
    """
    token = read_secret(settings.admin_token_file, "the administrator's token")
    if salt is None:
        password = read_secret(settings.salt_api_password_file, "the password for salt-api")
        salt = RestSalt(settings.salt_api_url, settings.salt_api_username, password, settings.salt_timeout_s)
    database = Database(settings.database_url)
    tasks: list[asyncio.Task[None]] = []
    try:
        await database.migrate()
        master = Master(Parts(settings=settings, store=Store(database), salt=salt))
        await master.parts.store.people.ensure_admin(token, master.parts.clock())
        tasks = [
            asyncio.create_task(daemon.run(), name=type(daemon).__name__)
            for daemon in (master.pusher, master.poller, master.listener)
        ]
        for task in tasks:
            task.add_done_callback(_report_death)
        yield master
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await salt.close()
        await database.close()


def _report_death(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()):
        log.error("daemon_died", daemon=task.get_name(), exc_info=error)
