"""Notifications between masters on one PostgreSQL: `Database.write` sends NOTIFY on one channel after each change.

A master that waits for news also asks the leader for a poll (`Database.ask_for_poll`). Notifications are hints, like
every event here: after each (re)connect all VMs count as changed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Final

import psycopg
import structlog

from master_service.db.engine import ALL, CHANNEL, POLL, Database
from master_service.reconciler.poller import Poller
from master_service.reconciler.pusher import Pusher
from master_service.runtime.change_feed import ChangeFeed
from master_service.store import Store

log = structlog.get_logger()
_AGAIN_S: Final = 2.0


class PgNotify:
    """The daemon. It does nothing with SQLite."""

    def __init__(self, database: Database, store: Store, changes: ChangeFeed, pusher: Pusher, poller: Poller) -> None:
        self._database = database
        self._store = store
        self._changes = changes
        self._pusher = pusher
        self._poller = poller

    async def run(self) -> None:
        """Work until cancelled."""
        conninfo = self._database.conninfo
        while conninfo is not None:
            try:
                await self._listen(conninfo)
            except Exception as err:  # noqa: BLE001 - the edge of a pass, which is tried again after any error
                log.warning("pg_notify_broken", error=type(err).__name__)
            await asyncio.sleep(_AGAIN_S)

    async def _listen(self, conninfo: str) -> None:
        connection = await psycopg.AsyncConnection.connect(conninfo, autocommit=True)
        async with connection:
            await connection.execute(f"LISTEN {CHANNEL}")
            await self._notify_all()
            async for notice in connection.notifies():
                origin, _, words = notice.payload.partition(" ")
                if origin == self._database.origin:
                    continue
                if words == POLL:
                    self._poller.request()
                elif words == ALL:
                    await self._notify_all()
                else:
                    self._notify(words.split())

    async def _notify_all(self) -> None:
        self._notify([vm.uuid for vm in await self._store.queries.vms()])

    def _notify(self, uuids: Iterable[str]) -> None:
        changed = list(uuids)
        self._pusher.wake(changed)
        self._changes.publish(changed)
