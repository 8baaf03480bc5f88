"""Drain, fence and full workers: where VMs move, and when they stay."""

import pytest

from master_service.core.errors import BadRequest, Conflict, NotFound
from master_service.policy.audit import Actor
from tests.functional.master.conftest import eventually, running_world
from tests.functional.master.databases import on_both
from tests.functional.master.fakes import FakeSalt, FakeWorker
from tests.functional.master.services.test_vms import verbs
from worker_service.contract import Code, HaltCause, Status

pytestmark = on_both

ADMIN = Actor(name="admin")


@pytest.fixture
def salt():
    return FakeSalt(FakeWorker("w1"), FakeWorker("w2"))


async def test_drained_worker_keeps_its_vms_and_gets_no_new_ones(world):
    await world.create(name="old", worker="w1")
    await world.status("running", "old")
    await world.master.vms.drain("w1", ADMIN)
    await world.create(name="new")
    assert (await world.status("running", "new"))["worker"] == "w2"
    await world.poll()
    assert (await world.show("old"))["worker"] == "w1"
    assert (await world.http.get("/workers/w1")).json()["draining"] is True
    await world.create(name="pinned", worker="w1")
    pending = await world.until(lambda vm: "drained" in vm["reason"], "pinned")
    assert pending["status"] == "pending"
    await world.master.vms.undrain("w1", ADMIN)
    await world.status("running", "pinned")


async def test_fence_moves_only_vms_that_should_run(world):
    vm = await world.create(worker=None)
    running = await world.status("running")
    home, other = running["worker"], {"w1": "w2", "w2": "w1"}[running["worker"]]
    world.salt.silent.add(home)
    for _ in range(5):
        await world.poll()
    assert (await world.show())["worker"] == home  # silence moves nothing
    assert await world.master.vms.fence(home, home, ADMIN) == [vm["uuid"]]
    moved = await world.until(lambda observed: observed["worker"] == other and observed["status"] == "running")
    assert moved["generation"] == 2  # a command of its own: a late copy of the old one is refused
    assert (await world.http.get(f"/workers/{home}")).json()["fenced_at"] is not None
    # The fence was wrong: the VMs that come back are reported, and neither touched nor believed.
    world.salt.silent.clear()
    world.salt.workers[home].turn(vm["uuid"], Status.HALTED, HaltCause.CRASHED)
    world.salt.report(home, vm["uuid"])
    await world.poll()
    back = (await world.http.get(f"/workers/{home}")).json()
    assert (back["reachable"], [unassigned["uuid"] for unassigned in back["unassigned_vms"]]) == (True, [vm["uuid"]])
    assert "it was fenced, and yet it answers" in back["problem"]
    assert (await world.show())["status"] == "running"
    assert vm["uuid"] in world.salt.workers[home].vms
    await world.create(name="next")
    assert (await world.status("running", "next"))["worker"] == other


async def test_fence_needs_a_silent_worker_and_a_confirmation(world):
    service = world.master.vms
    with pytest.raises(BadRequest):
        await service.fence("w1", "w2", ADMIN)
    with pytest.raises(Conflict, match="it is not off"):
        await service.fence("w1", "w1", ADMIN)
    with pytest.raises(NotFound):
        await service.fence("w9", "w9", ADMIN)
    with pytest.raises(NotFound):
        await service.drain("w9", ADMIN)


async def test_start_refused_for_lack_of_room_moves_on(world):
    world.salt.workers["w1"].refusals["start"] = Code.NO_ROOM
    await world.create()
    assert (await world.status("running"))["worker"] == "w2"
    assert verbs(world.salt) == [("start", 1), ("start", 2)]


async def test_start_that_all_refuse_stays_and_is_tried_again_later(impatient):
    workers = [FakeWorker(f"w{n}") for n in range(5)]
    for worker in workers:
        worker.refusals["start"] = Code.NO_ROOM
    salt = FakeSalt(*workers)
    publish = salt.publish

    async def and_answer(*arguments):
        """On a slow machine too, a reply comes before the same command is sent again."""
        jid = await publish(*arguments)
        await eventually(lambda: salt.read)
        return jid

    salt.publish = and_answer
    async with running_world(impatient, salt) as world:
        await world.create()
        await world.until(lambda vm: vm["attempts"] >= 3)
        polled = [worker for worker, _ in salt.jobs]
        assert list(dict.fromkeys(polled)) == ["w0", "w1", "w2"]  # bounded: no tour of all workers
        salt.workers["w2"].refusals.clear()
        assert (await world.status("running"))["worker"] == "w2"


async def test_owner_of_a_vm_goes_to_its_worker(world):
    vm = await world.create(worker=None)
    home = (await world.status("running"))["worker"]
    assert world.salt.workers[home].vms[vm["uuid"]].owner == vm["owner"] == "admin"
    world.salt.workers[home].vms[vm["uuid"]].owner = ""  # as an older master started it
    await world.poll()
    await eventually(lambda: world.salt.workers[home].vms[vm["uuid"]].owner == "admin")
