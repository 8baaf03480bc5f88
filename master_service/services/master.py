"""The whole master: assemble its parts, start and stop its daemons."""

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
from master_service.saltapi.client import GateClient, SaltApi, SizeLimits
from master_service.services.accounts import AccountService
from master_service.services.adoption import AdoptionService
from master_service.services.console_tickets import ConsoleTickets
from master_service.services.denial_log import DenialLog
from master_service.services.images import ImageService
from master_service.services.notifier import NoticeDispatcher
from master_service.services.retention import Retention
from master_service.services.user_slots import UserSlots
from master_service.services.vms import VmService
from master_service.store import Store

log = structlog.get_logger()
_DOWNLOADS: Final = 2
"""Disks that one user may download at the same time."""
_AGAIN_S: Final = 5.0
"""Pause before the master starts ended daemons again."""


class Master:
    """One running master, created by `running`."""

    def __init__(self, context: Context, lease: Lease) -> None:
        self.context = context
        self.lease = lease
        self.pusher = Pusher(context, lambda: lease.held)
        self.poller = Poller(context, self.pusher)
        self.listener = EventListener(context, self.pusher, self.poller)
        self.notices = NoticeDispatcher(context)
        self.retention = Retention(context)
        self.vms = VmService(context, self.pusher, self.poller)
        self.adoption = AdoptionService(context, self.pusher)
        self.pg_notify = PgNotify(context.store.database, context.store, context.changes, self.pusher, self.poller)
        self.images = ImageService(context)
        self.console_tickets = ConsoleTickets(context)
        self.denial_log = DenialLog(context.store.audit, context.clock)
        self.accounts = AccountService(context.settings, context.store, context.clock, self.denial_log)
        self.streams = UserSlots(context.settings.streams_per_user, "open event streams")
        self.downloads = UserSlots(_DOWNLOADS, "downloads")
        self.waits = UserSlots(context.settings.waits_per_user, "requests that wait")
        self.fault = ""
        """Why the daemons do not run although this master is the leader; empty otherwise."""

    async def lead(self) -> None:
        """Run the daemons while this master has the lease, and wait while another one has it.

        When one daemon ends, the others are stopped too. The lease is released so that another master can take over,
        and after a pause this one tries again.
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
        """Run until the lease is lost or a daemon ends; return which one, and why."""
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
    """Run a master until the block ends: upgrade the tables, then start the daemons.

    Tests pass `salt` and `clock`. Raises SettingsError when a secret cannot be read. salt-api need not run yet: the
    daemons retry.
    """
    token = read_secret(settings.admin_token_file, "the administrator's token")
    if salt is None:
        limits = SizeLimits(reply=settings.worker_reply_limit_mib << 20, answer=settings.answer_limit_mib << 20)
        salt = GateClient(settings.gate_socket, settings.salt_timeout_s, limits)
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
        log.error("daemon_failed", daemon=task.get_name(), exc_info=error)
