"""A unit of work: one transaction whose effects run after the commit, and never when it is rolled back."""

import asyncio

import pytest
from sqlmodel import select

from master_service.core.errors import NameTaken
from master_service.db.engine import Database, database_method
from master_service.db.tables import WorkerRow
from tests.functional.master.databases import on_both

pytestmark = on_both


@pytest.fixture
async def database(database_url):
    made = Database(database_url)
    yield made
    await made.close()


async def add(database, worker_id):
    async with database.write() as session:
        session.add(WorkerRow(id=worker_id))


async def known(database):
    async with database.read() as session:
        return sorted(await session.exec(select(WorkerRow.id)))


@pytest.fixture
def ran():
    return []


@pytest.fixture
def effect(database, ran):
    async def effect():
        ran.append(await known(database))

    return effect


async def test_effects_run_after_the_commit_in_their_order(database, effect, ran):
    async with database.unit_of_work() as unit:
        await add(database, "w1")
        unit.after_commit(effect)
        await add(database, "w2")
        assert await known(database) == ["w1", "w2"]
        assert ran == []
    assert ran == [["w1", "w2"]]


async def test_exception_rolls_back_and_drops_the_effects(database, effect, ran):
    async def fail_half_way():
        async with database.unit_of_work() as unit:
            await add(database, "w1")
            unit.after_commit(effect)
            raise NameTaken("w1")

    with pytest.raises(NameTaken):
        await fail_half_way()
    assert (await known(database), ran) == ([], [])


async def test_dry_run_rolls_back_and_drops_the_effects(database, effect, ran):
    async with database.unit_of_work(dry_run=True) as unit:
        await add(database, "w1")
        unit.after_commit(effect)
        assert await known(database) == ["w1"]
    assert (await known(database), ran) == ([], [])


async def test_unit_inside_a_dry_run_is_a_part_of_it(database, effect, ran):
    async with database.unit_of_work(dry_run=True):
        async with database.unit_of_work() as unit:
            await add(database, "w1")
            unit.after_commit(effect)
        assert await known(database) == ["w1"]
    assert (await known(database), ran) == ([], [])


async def test_exception_of_an_effect_follows_the_commit(database):
    async def fail():
        raise NameTaken("w1")

    async def add_and_fail():
        async with database.unit_of_work() as unit:
            await add(database, "w1")
            unit.after_commit(fail)

    with pytest.raises(NameTaken):
        await add_and_fail()
    assert await known(database) == ["w1"]


async def test_shielded_method_awaited_by_another_runs_in_its_task():
    tasks = []

    @database_method
    async def inner():
        tasks.append(asyncio.current_task())

    @database_method
    async def outer():
        tasks.append(asyncio.current_task())
        await inner()
        await asyncio.create_task(inner())

    await outer()
    first, nested, started = tasks
    assert first is nested
    assert started is not first
