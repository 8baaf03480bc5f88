"""The wall clock jumps: what the database has of times that are still to come is put right, on both databases."""

from datetime import timedelta

from sqlalchemy import update
from sqlmodel import select

from master_service.db.tables import AccountRow, DeliveryRow, NoticeRow
from master_service.policy.accounts import LONGEST_LOCK_S
from tests.functional.master.databases import on_both
from tests.functional.master.test_life import verbs

pytestmark = on_both

DAY = timedelta(days=1)


async def test_once_the_clock_went_back_nothing_is_of_tomorrow(world):
    await world.create()
    await world.status("running")
    await world.poll()
    store, now = world.master.parts.store, world.master.parts.clock() - DAY
    before = await store.reading.vm("web01")
    await store.times.settle(now, jumped=False)
    vm = await store.reading.vm("web01")
    assert (vm.real.real_at, vm.real.since, vm.real.moved_at) == (now, now, now)
    assert (vm.push.sent_at, vm.push.next_at, vm.worker.seen_at) == (now, now, now)
    assert (vm.assumed, vm.real.status, vm.push.attempts) == (before.assumed, before.real.status, before.push.attempts)
    await store.times.settle(now, jumped=False)
    assert await store.reading.vm("web01") == vm
    # Nothing is done because of it.
    await world.poll()
    assert verbs(world.salt) == [("start", 1)]


async def test_a_jump_ahead_lets_steps_begin_anew_to_be_without_progress(world):
    world.salt.by_itself = False
    await world.create()
    await world.status("preparing")
    await world.quiet()
    store, later = world.master.parts.store, world.master.parts.clock() + DAY
    before = (await store.reading.vm("web01")).real
    await store.times.settle(later, jumped=False)
    assert (await store.reading.vm("web01")).real == before
    await store.times.settle(later, jumped=True)
    after = (await store.reading.vm("web01")).real
    assert (after.moved_at, after.since, after.real_at) == (later, before.since, before.real_at)


async def test_locks_and_deliveries_do_not_wait_for_the_clock_either(world):
    # A day ahead of the courier, which would take at once what is due.
    store, now = world.master.parts.store, world.master.parts.clock() + DAY
    for name in ("uma", "otto"):
        await world.person(name)
    lock_of = {"uma": now + DAY, "otto": now + timedelta(seconds=LONGEST_LOCK_S)}
    async with store.database.write() as session:
        for name, until in lock_of.items():
            await session.exec(update(AccountRow).where(AccountRow.name == name).values(locked_until=until))
        notice = NoticeRow(key="k", at=now, kind="test", owner="uma", uuid="", name="uma", text="")
        session.add(notice)
        await session.flush()
        session.add(DeliveryRow(notice_id=notice.id, user="uma", channel="mail", next_try_at=now + DAY, attempts=1))
    await store.times.settle(now, jumped=False)
    async with store.database.read() as session:
        ends = dict((await session.exec(select(AccountRow.name, AccountRow.locked_until))).all())
        (next_try_at,) = await session.exec(select(DeliveryRow.next_try_at))
    assert (ends["uma"], ends["otto"], next_try_at) == (now, lock_of["otto"], now)
