"""The master as a whole: its parts put together, its daemons started and stopped."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any, Final, Protocol

import structlog

from master_service.core.clock import Clock, utc_now
from master_service.core.settings import Settings, database_url, read_secret
from master_service.db.engine import Database
from master_service.db.fencing import FencingToken
from master_service.reconciler.event_listener import EventListener
from master_service.reconciler.pg_notify import PgNotify
from master_service.reconciler.poller import Poller
from master_service.reconciler.pusher import Pusher
from master_service.runtime.context import Context
from master_service.runtime.leader_election import Lease
from master_service.saltapi.client import RestSalt, SaltApi, SizeLimits
from master_service.services.accounts import AccountService
from master_service.services.console_tickets import ConsoleTickets
from master_service.services.denial_log import DenialLog
from master_service.services.images import ImageService
from master_service.services.notifier import NoticeDispatcher
from master_service.services.retention import Retention
from master_service.services.vms import VmService
from master_service.store import Store

log = structlog.get_logger()
_AGAIN_S: Final = 5.0
"""Pause before daemons that have ended are started again."""


class Master:
    """One running master. Made by `running`."""

    def __init__(self, parts: Context, lease: Lease) -> None:
        self.context = parts
        self.lease = lease
        self.pusher = Pusher(parts, lambda: lease.held)
        self.poller = Poller(parts, self.pusher)
        self.listener = EventListener(parts, self.pusher, self.poller)
        self.notices = NoticeDispatcher(parts)
        self.retention = Retention(parts)
        self.vms = VmService(parts, self.pusher, self.poller)
        self.pg_notify = PgNotify(parts.store.database, parts.store, parts.changes, self.pusher, self.poller)
        self.images = ImageService(parts)
        self.accounts = AccountService(parts.settings, parts.store, parts.clock)
        self.console_tickets = ConsoleTickets(parts)
        self.denial_log = DenialLog(parts.store.audit, parts.clock)
        self.fault = ""
        """Why the daemons do not work, though it is this master's turn; empty when they do."""

    async def lead(self) -> None:
        """Have the daemons at work while this master has the lease; wait while another has it.

        They work together or not at all: when one of them ends, so do the others. The lease is given back, so that
        another master may do better, and after a pause this one tries again.
        """
        while True:
            try:
                await self.lease.acquire()
                self.fault = ""
                self.fault = await self._work()
            except Exception as err:
                log.exception("lead_failed")
                self.fault = f"taking the lead failed ({type(err).__name__})"
            if self.fault:
                log.error("daemons_ended", why=self.fault, again_in_s=_AGAIN_S)
                await self.lease.give_back()
                await asyncio.sleep(_AGAIN_S)

    async def _work(self) -> str:
        """Until the lease is lost, or a daemon has ended: which one, and why."""
        keeping = _task("Lease", self.lease.keep())
        daemons = _started(self.pusher, self.poller, self.listener, self.notices)
        try:
            ended, _ = await asyncio.wait([keeping, *daemons], return_when=asyncio.FIRST_COMPLETED)
            faults = [task for task in ended if task is not keeping or task.cancelled() or task.exception()]
            return "; ".join(_describe_exit(task) for task in faults)
        finally:
            await _end([keeping, *daemons])


@asynccontextmanager
async def running(settings: Settings, salt: SaltApi | None = None, clock: Clock = utc_now) -> AsyncIterator[Master]:
    """A master with its tables up to date and its daemons at work, until the block ends.

    `salt` and `clock` are given by tests. Raises SettingsError when a secret cannot be read. salt-api may be away: the
    daemons go on trying.
    """
    token = read_secret(settings.admin_token_file, "the administrator's token")
    if salt is None:
        password = read_secret(settings.salt_api_password_file, "the password for salt-api")
        limits = SizeLimits(reply=settings.worker_reply_limit_mib << 20, answer=settings.answer_limit_mib << 20)
        salt = RestSalt(settings.salt_api_url, settings.salt_api_username, password, settings.salt_timeout_s, limits)
    database, term = Database(database_url(settings)), FencingToken()
    lease = Lease(database, term, settings.lease_s)
    tasks: list[asyncio.Task[None]] = []
    try:
        await database.migrate()
        store = Store(database, settings, term)
        master = Master(Context(settings=settings, store=store, salt=salt, clock=clock), lease)
        await master.context.store.accounts.ensure_admin(token, master.context.clock())
        tasks = [_task("Lead", master.lead()), *_started(master.pg_notify, master.retention)]
        yield master
    finally:
        await _end(tasks)
        await lease.give_back()
        await salt.close()
        await database.close()


class _Daemon(Protocol):
    async def run(self) -> None:
        """Work until cancelled."""


def _started(*daemons: _Daemon) -> list[asyncio.Task[None]]:
    return [_task(type(daemon).__name__, daemon.run()) for daemon in daemons]


def _task(name: str, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
    task = asyncio.create_task(work, name=name)
    task.add_done_callback(_log_task_failure)
    return task


async def _end(tasks: list[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def _describe_exit(task: asyncio.Task[None]) -> str:
    error = None if task.cancelled() else task.exception()
    return f"{task.get_name()} has ended ({type(error).__name__ if error else 'without an error'})"


def _log_task_failure(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()):
        log.error("daemon_died", daemon=task.get_name(), exc_info=error)
