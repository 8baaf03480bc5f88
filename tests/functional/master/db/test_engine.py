"""Migrations and transactions on SQLite and PostgreSQL, and the options of SQLite."""

import asyncio

import pytest
from alembic import command
from alembic.script import ScriptDirectory
from sqlalchemy import insert, inspect, text
from sqlalchemy.exc import IntegrityError
from sqlmodel import select

from master_service.core.clock import utc_now
from master_service.db.engine import Database, config, database_method
from master_service.db.tables import Table, WorkerRow
from master_service.policy.accounts import digest
from master_service.policy.permissions import Scope
from master_service.store.tokens import TokenStore
from tests.functional.master.conftest import TOKEN, running_world
from tests.functional.master.databases import on_both

pytestmark = on_both


@pytest.fixture(params=["sqlite", "postgresql"])
def bare_url(request, tmp_path):
    """A database without any tables."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path}/sub/folder/master.db"
        return
    cluster = request.getfixturevalue("postgresql")
    name = cluster.make()
    yield cluster.url(name)
    cluster.drop(name)


@pytest.fixture
async def bare(bare_url):
    made = Database(bare_url)
    yield made
    await made.close()


@pytest.fixture
async def database(database_url):
    made = Database(database_url)
    yield made
    await made.close()


async def test_fresh_database_matches_the_tables(bare):
    await bare.migrate()
    async with bare.engine.connect() as connection:
        await connection.run_sync(lambda sync: command.check(config(sync)))  # raises where they differ


async def test_database_error_hides_statement_parameters(database):
    """Errors go to the log, and parameters of statements include webhook secrets and password digests."""
    twice = insert(WorkerRow), [{"id": "w1", "version": "c4nary", "foreign": [], "unassigned_vms": []}] * 2
    async with database.engine.connect() as connection:
        with pytest.raises(IntegrityError) as caught:
            await connection.execute(*twice)
    assert "c4nary" not in str(caught.value)


async def test_migrating_twice_changes_nothing_and_down_removes_all(bare):
    await bare.migrate()
    await bare.migrate()
    async with bare.engine.connect() as connection:
        await connection.run_sync(lambda sync: command.downgrade(config(sync), "base"))
        await connection.commit()
        left = await connection.run_sync(lambda sync: inspect(sync).get_table_names())
    assert set(left) & set(Table.metadata.tables) == set()


async def test_each_revision_goes_up_down_and_up_again(bare):
    revisions = [script.revision for script in ScriptDirectory.from_config(config()).walk_revisions()][::-1]
    async with bare.engine.connect() as connection:
        for revision in revisions:
            for step in (command.upgrade, command.downgrade, command.upgrade):
                target = "-1" if step is command.downgrade else revision
                await connection.run_sync(lambda sync, step=step, to=target: step(config(sync), to))
                await connection.commit()
        await connection.run_sync(lambda sync: command.check(config(sync)))


async def test_sqlite_is_durable_and_checks_foreign_keys(tmp_path):
    database = Database(f"sqlite:///{tmp_path}/master.db")
    async with database.read() as session:
        pragmas = {
            name: (await session.exec(text(f"PRAGMA {name}"))).scalar()
            for name in ("journal_mode", "synchronous", "foreign_keys", "busy_timeout")
        }
    await database.close()
    assert pragmas == {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1, "busy_timeout": 10_000}


async def test_transaction_that_raises_leaves_nothing(database):
    async def fail_half_way():
        async with database.write() as session:
            session.add(WorkerRow(id="w1"))
            await session.flush()
            raise RuntimeError

    with pytest.raises(RuntimeError):
        await fail_half_way()
    async with database.read() as session:
        assert (await session.exec(select(WorkerRow))).all() == []


async def test_cancelled_caller_does_not_interrupt_a_transaction(database):
    reached, go_on = asyncio.Event(), asyncio.Event()

    @database_method
    async def add_worker():
        async with database.write() as session:
            reached.set()
            await go_on.wait()
            session.add(WorkerRow(id="w1"))

    caller = asyncio.create_task(add_worker())
    await reached.wait()
    caller.cancel()
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await caller
    async with database.read() as session:
        assert [row.id for row in await session.exec(select(WorkerRow))] == ["w1"]


async def dump(url):
    """Every row of every table, as text."""
    database = Database(url)
    async with database.read() as session:
        tables = Table.metadata.sorted_tables
        rows = [str(row) for table in tables for row in await session.exec(table.select())]
    await database.close()
    return "\n".join(rows)


async def test_admin_token_is_kept_as_a_digest_only(settings, salt):
    async with running_world(settings, salt) as world:
        assert (await world.http.get("/vmachines")).status_code == 200
    everything = await dump(settings.database_url)
    assert "admin" in everything
    assert TOKEN not in everything
    # Another token in the file takes the place of the old one.
    settings.admin_token_file.write_text("another")
    async with running_world(settings, salt) as world:
        assert (await world.http.get("/vmachines")).status_code == 401
        world.http.headers["Authorization"] = "Bearer another"
        assert (await world.http.get("/vmachines")).status_code == 200


async def test_tokens_from_before_there_were_scopes_open_everything(database_url):
    database = Database(database_url)
    try:
        async with database.engine.connect() as connection:
            await connection.run_sync(lambda sync: command.downgrade(config(sync), "0005"))
            for label, sha256 in (("settings", digest("one")), ("", digest("two"))):
                if label:
                    insert = "INSERT INTO account (name, role, created_at) VALUES ('admin', 'admin', '2026-01-01')"
                    await connection.execute(text(insert))
                values = f"('{sha256}', 'admin', '{label}', '2026-01-01')"
                insert = f'INSERT INTO token (sha256, "user", label, created_at) VALUES {values}'
                await connection.execute(text(insert))
            await connection.run_sync(lambda sync: command.upgrade(config(sync), "head"))
            await connection.commit()
        for secret, kind in (("one", "settings"), ("two", "token")):
            found = await TokenStore(database).bearer(secret, utc_now())
            assert (found.name, found.token.kind, found.token.scopes) == ("admin", kind, frozenset(Scope))
    finally:
        await database.close()
