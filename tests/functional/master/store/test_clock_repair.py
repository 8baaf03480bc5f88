"""Jumps of the wall clock: times in the database that lie in the future are repaired, on both databases."""

from datetime import timedelta

from sqlmodel import select

from master_service.db.tables import DeliveryRow, NoticeRow
from tests.functional.master.databases import on_both
from tests.functional.master.services.test_vms import verbs

pytestmark = on_both

DAY = timedelta(days=1)


async def test_clock_set_back_leaves_no_future_times(world):
    await world.create()
    await world.status("running")
    await world.poll()
    store, now = world.master.context.store, world.master.context.clock() - DAY
    before = await store.queries.vm("web01")
    await store.clock_repair.settle(now, jumped=False)
    vm = await store.queries.vm("web01")
    assert (vm.observed.real_at, vm.observed.since, vm.observed.last_progress_at) == (now, now, now)
    assert (vm.dispatch.sent_at, vm.dispatch.next_at, vm.worker.seen_at) == (now, now, now)
    assert (vm.desired, vm.observed.status, vm.dispatch.attempts) == (
        before.desired,
        before.observed.status,
        before.dispatch.attempts,
    )
    await store.clock_repair.settle(now, jumped=False)
    assert await store.queries.vm("web01") == vm
    # It causes no command.
    await world.poll()
    assert verbs(world.salt) == [("start", 1)]


async def test_clock_jump_ahead_restarts_progress_of_steps(world):
    world.salt.by_itself = False
    await world.create()
    await world.status("preparing")
    await world.quiet()
    store, later = world.master.context.store, world.master.context.clock() + DAY
    before = (await store.queries.vm("web01")).observed
    await store.clock_repair.settle(later, jumped=False)
    assert (await store.queries.vm("web01")).observed == before
    await store.clock_repair.settle(later, jumped=True)
    after = (await store.queries.vm("web01")).observed
    assert (after.last_progress_at, after.since, after.real_at) == (later, before.since, before.real_at)


async def test_deliveries_do_not_wait_for_the_clock_either(world):
    # A day ahead of the notifier, which would deliver due notifications at once.
    store, now = world.master.context.store, world.master.context.clock() + DAY
    await world.person("uma")
    async with store.database.write() as session:
        notice = NoticeRow(key="k", at=now, kind="test", owner="uma", uuid="", name="uma", text="")
        session.add(notice)
        await session.flush()
        session.add(DeliveryRow(notice_id=notice.id, user="uma", channel="mail", next_try_at=now + DAY, attempts=1))
    await store.clock_repair.settle(now, jumped=False)
    async with store.database.read() as session:
        (next_try_at,) = await session.exec(select(DeliveryRow.next_try_at))
    assert next_try_at == now
