"""On PostgreSQL the pusher locked a VM's rows in another order than the listener: one was aborted, its event lost."""

import asyncio
from dataclasses import replace
from datetime import timedelta

import psycopg
import pytest

from master_service.core.clock import utc_now
from master_service.core.settings import Settings
from master_service.db.engine import Database
from master_service.planning.vm import Command
from master_service.policy.audit import Actor
from master_service.store import Store
from master_service.store.desired import ChangeRequest
from master_service.store.dispatch import PendingCommand
from tests.lib.postgresql import Cluster
from tests.unit.master.builders import UUID, vm

LIMIT_S = 30
LOCK_VM = "SELECT uuid FROM vmachine WHERE uuid = %s FOR UPDATE"
WRITE_DISPATCH = "UPDATE dispatch SET accepted = 1 WHERE uuid = %s"


@pytest.fixture(scope="module")
def cluster():
    made = Cluster()
    yield made
    made.close()


@pytest.fixture
async def store(cluster):
    """A store with one VM whose command was just sent."""
    database = Database(cluster.url(cluster.make()))
    await database.migrate()
    made = Store(database, Settings())
    subject, now = vm(), utc_now()
    await made.accounts.ensure_admin("a token", now)
    admin = await made.accounts.account("admin")
    subject = replace(subject, desired=replace(subject.desired, owner=admin.name, owner_id=admin.id))
    actor = Actor(name=admin.name, account_id=admin.id)
    await made.desired.create(subject.desired, ChangeRequest(actor=actor, verb="create", at=now))
    pending = PendingCommand(
        vm=subject, command=Command(verb="start", generation=1), worker="w1", again_in=timedelta(minutes=1)
    )
    await made.dispatch.sending([pending], now)
    yield made
    await database.close()


async def until_blocked(connection):
    """Wait until some other session waits for a lock."""
    query = (
        "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
        " AND pid <> pg_backend_pid()"
    )
    async with asyncio.timeout(LIMIT_S):
        while not (await (await connection.execute(query)).fetchone())[0]:
            await connection.execute("SELECT pg_stat_clear_snapshot()")
            await asyncio.sleep(0.01)


async def meet(store, first, second):
    """Run `first` in a transaction of its own, let the pusher note a job meanwhile, then run `second` in it."""
    async with await psycopg.AsyncConnection.connect(store.database.conninfo) as other:
        await other.execute("SET LOCAL deadlock_timeout = '1min'")  # so the pusher is the one that is aborted
        await other.execute(first, [UUID])
        sent = asyncio.create_task(store.dispatch.sent([UUID], "20261129000000000000"))
        await until_blocked(other)
        await other.execute(second, [UUID])
        await other.commit()
    async with asyncio.timeout(LIMIT_S):
        await sent
    (found,) = await store.queries.vms([UUID])
    return found.dispatch.jid, found.dispatch.accepted


async def test_pusher_locks_in_the_listener_s_order(store, monkeypatch):
    monkeypatch.setattr("master_service.db.engine._RETRIED", frozenset(), raising=False)
    assert await meet(store, LOCK_VM, WRITE_DISPATCH) == ("20261129000000000000", 1)


async def test_transaction_aborted_by_the_database_is_retried(store):
    assert await meet(store, WRITE_DISPATCH, LOCK_VM) == ("20261129000000000000", 1)
