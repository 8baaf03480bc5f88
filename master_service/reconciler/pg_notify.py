"""Several masters on one PostgreSQL hear of each other's commits: NOTIFY on one channel, sent by `Database.write`.

One that waits for news also has the one that works ask for them (`Database.ask_for_poll`). A hint only, like every
event here: after each (re)connect everything counts as changed.
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
    """The daemon. Does nothing beside SQLite."""

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
            except Exception as err:  # noqa: BLE001 - the edge of a pass: tried again whatever it was
                log.warning("relay_broken", error=type(err).__name__)
            await asyncio.sleep(_AGAIN_S)

    async def _listen(self, conninfo: str) -> None:
        connection = await psycopg.AsyncConnection.connect(conninfo, autocommit=True)
        async with connection:
            await connection.execute(f"LISTEN {CHANNEL}")
            await self._tell_all()
            async for notice in connection.notifies():
                origin, _, told = notice.payload.partition(" ")
                if origin == self._database.origin:
                    continue
                if told == POLL:
                    self._poller.request()
                elif told == ALL:
                    await self._tell_all()
                else:
                    self._tell(told.split())

    async def _tell_all(self) -> None:
        self._tell([vm.uuid for vm in await self._store.queries.vms()])

    def _tell(self, uuids: Iterable[str]) -> None:
        told = list(uuids)
        self._pusher.wake(told)
        self._changes.publish(told)
