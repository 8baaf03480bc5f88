"""Floods of logins and of refused requests: they fill neither the audit nor the queue of honest users."""

import asyncio
import threading
from datetime import timedelta

import httpx2
import pytest
from sqlalchemy import func
from sqlmodel import select

from master_service.core.clock import utc_now
from master_service.db.tables import AuditRow
from master_service.policy.audit import ANONYMOUS, Actor
from master_service.store.audit import Search
from tests.functional.master.api.test_users import GOOD, WRONG, create, login
from tests.functional.master.conftest import LIMIT_S, eventually
from tests.functional.master.databases import on_both


@pytest.fixture
def settings(settings):
    """The addresses of callers are those that the test names."""
    return settings.model_copy(update={"trusted_proxies": ["127.0.0.0/8"]})


async def try_from(world, address, user="uma", password=GOOD):
    headers = {"Authorization": "", "X-Forwarded-For": address}
    return await world.http.post("/tokens", json={"user": user, "password": password}, headers=headers)


def hold(world, moment=None):
    """Hold the clock of passwords."""
    world.master.accounts._clock = world.master.denial_log._clock = lambda: moment or hold.now
    hold.now = moment or utc_now()


async def rows(world):
    async with world.master.context.store.database.read() as session:
        return (await session.exec(select(func.count()).select_from(AuditRow))).one()


@on_both
async def test_flood_of_logins_fills_no_audit(world):
    await create(world)
    hold(world)
    before = await rows(world)
    for n in range(60):
        await try_from(world, "198.51.100.7", f"u{n}" if n % 2 else "uma", WRONG)
    assert await rows(world) - before <= 31
    for n in range(100):
        await try_from(world, f"10.0.{n // 250}.{n % 250}", "uma", WRONG)
    assert await rows(world) - before <= 101
    hold.now += timedelta(seconds=10)
    await try_from(world, "192.0.2.99", "uma", WRONG)
    (line,) = await world.master.context.store.audit.page(Search(), None, 1)
    assert "other refusals before had no room here" in line.detail


@on_both
async def test_forged_refusals_fill_no_audit(world):
    hold(world)
    before = await rows(world)
    for n in range(400):
        actor = Actor(name=ANONYMOUS, address=f"2001:db8::{n:x}" if n % 2 else f"10.0.{n // 250}.{n % 250}")
        await world.master.denial_log.record(actor, f"GET /{n}", "no token")
    assert await rows(world) - before <= 100
    await world.master.denial_log.record(Actor(name="uma", address="192.0.2.1"), "GET /workers", "may not")
    (line,) = await world.master.context.store.audit.page(Search(), None, 1)
    assert line.actor == "uma"  # the entries of users have room of their own


async def test_room_does_not_depend_on_the_user(world):
    """Whether an entry is written takes time that a caller can measure: it is the same for users that do not exist."""
    await create(world)
    hold(world)
    added, add = [], world.master.denial_log._audit.add

    async def count(entry):
        added.append(entry.target)
        await add(entry)

    world.master.denial_log._audit.add = count
    for n in range(15):
        await try_from(world, "198.51.100.7", "uma", WRONG)
        await try_from(world, "198.51.100.8", "ghost", WRONG)
        assert added.count("uma") == added.count("") == n + 1


@on_both
async def test_guesses_do_not_lock_a_user_out(world):
    await create(world)
    hold(world)
    for _ in range(30):
        await try_from(world, "198.51.100.7", password=WRONG)
    assert (await try_from(world, "198.51.100.7")).status_code == 429
    assert (await try_from(world, "192.0.2.1")).status_code == 201
    assert (await world.http.get("/users/uma")).json()["locked_until"] is not None


async def test_flood_from_one_address_leaves_places(world, monkeypatch):
    await create(world)
    passwords, go_on = world.master.accounts._passwords, threading.Event()
    await passwords.matches("x", None, "")
    verify = passwords._hash.verify
    monkeypatch.setattr(passwords._hash, "verify", lambda *a: go_on.wait(LIMIT_S) and verify(*a))
    flood = [asyncio.create_task(try_from(world, "198.51.100.7", f"u{n}")) for n in range(20)]
    await eventually(lambda: sum(task.done() for task in flood) == 16)  # four places are theirs
    honest = asyncio.create_task(try_from(world, "192.0.2.1"))
    await eventually(lambda: passwords._waiting["192.0.2.1"] == 1)
    go_on.set()
    assert (await honest).status_code == 201
    assert {answer.status_code for answer in await asyncio.gather(*flood)} == {401, 429}
    assert not passwords._waiting


async def test_login_answers_how_long_to_wait(world):
    hold(world)
    answers = [await login(world, f"u{n}", WRONG) for n in range(21)]
    assert isinstance(answers[-1], httpx2.Response)
    assert (answers[-1].status_code, answers[-1].json()["code"]) == (429, "too_many")
    assert answers[-1].headers["Retry-After"] == "2"
    assert "Try again in 2 s" in answers[-1].json()["hint"]
