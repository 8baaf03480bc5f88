"""Migrations, and what SQLite is told."""

import asyncio
import sqlite3

import pytest
from alembic import command
from sqlalchemy import text
from sqlmodel import select

from master_service.database import Database, config, uninterrupted
from master_service.models import Table, WorkerRow
from tests.functional.master.conftest import TOKEN, running_world


@pytest.fixture
async def database(tmp_path):
    made = Database(f"sqlite+aiosqlite:///{tmp_path}/sub/folder/master.db")
    yield made
    await made.close()


async def test_a_fresh_database_is_what_the_models_say(database):
    await database.migrate()
    async with database.engine.connect() as connection:
        await connection.run_sync(lambda sync: command.check(config(sync)))  # raises where they differ


async def test_migrating_again_changes_nothing_and_down_leaves_nothing(database, tmp_path):
    await database.migrate()
    await database.migrate()
    async with database.engine.connect() as connection:
        await connection.run_sync(lambda sync: command.downgrade(config(sync), "base"))
        await connection.commit()
    tables = sqlite3.connect(tmp_path / "sub/folder/master.db").execute("SELECT name FROM sqlite_master").fetchall()
    assert {name for (name,) in tables} & set(Table.metadata.tables) == set()


async def test_sqlite_is_durable_and_checks_foreign_keys(database):
    async with database.read() as session:
        pragmas = {
            name: (await session.exec(text(f"PRAGMA {name}"))).scalar()
            for name in ("journal_mode", "synchronous", "foreign_keys", "busy_timeout")
        }
    assert pragmas == {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1, "busy_timeout": 10_000}


async def test_a_transaction_that_raises_leaves_nothing(database):
    await database.migrate()

    async def fail_half_way():
        async with database.write() as session:
            session.add(WorkerRow(id="w1"))
            await session.flush()
            raise RuntimeError

    with pytest.raises(RuntimeError):
        await fail_half_way()
    async with database.read() as session:
        assert (await session.exec(select(WorkerRow))).all() == []


async def test_a_caller_that_is_cancelled_does_not_interrupt_a_transaction(database):
    await database.migrate()
    reached, go_on = asyncio.Event(), asyncio.Event()

    @uninterrupted
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


async def test_only_the_digest_of_the_administrators_token_is_kept(settings, salt, tmp_path):
    async with running_world(settings, salt) as world:
        assert (await world.http.get("/vmachines")).status_code == 200
    everything = b"".join(path.read_bytes() for path in tmp_path.glob("master.db*"))
    assert TOKEN.encode() not in everything
    # Another token in the file takes the place of the old one.
    settings.admin_token_file.write_text("another")
    async with running_world(settings, salt) as world:
        assert (await world.http.get("/vmachines")).status_code == 401
        world.http.headers["Authorization"] = "Bearer another"
        assert (await world.http.get("/vmachines")).status_code == 200
