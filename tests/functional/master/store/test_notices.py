"""Notifications about failures: one for each incident, to the owner, however often it is reported."""

from master_service.policy.permissions import Role
from tests.functional.master.conftest import SPEC, running_world
from tests.functional.master.databases import on_both
from worker_service.contract import Code, HaltCause, Status

pytestmark = on_both


async def notices(world, actor=None):
    answer = await world.http.get("/notices", headers=world.of(actor) if actor else None)
    assert answer.status_code == 200, answer.text
    return [(notice["kind"], notice["owner"], notice["name"]) for notice in answer.json()]


async def test_each_failure_is_notified_once(world):
    for name in ("uma", "otto"):
        await world.person(name)
    await world.http.post("/vmachines", json=SPEC, headers=world.of("uma"))
    vm = await world.status("running")
    worker = world.salt.workers["w1"]
    worker.turn(vm["uuid"], Status.FAILED_TO_SAVE, HaltCause.GUEST)
    for _ in range(3):
        await world.poll()
    assert await notices(world, "uma") == [("failed_to_save", "uma", "web01")]
    worker.turn(vm["uuid"], Status.FAILED_TO_SAVE, HaltCause.GUEST)
    await world.poll()
    assert len(await notices(world, "uma")) == 2
    assert await notices(world, "otto") == []
    assert len(await notices(world)) == 2


async def test_stuck_step_is_notified_once(settings, salt):
    salt.by_itself = False
    async with running_world(settings.model_copy(update={"stuck_s": 1e-6}), salt) as world:
        await world.create()
        await world.status("preparing")
        for _ in range(3):
            await world.poll()
        assert await notices(world) == [("stuck", "admin", "web01")]


async def test_notifications_are_paged_newest_first(world):
    vm = await world.create()
    await world.status("running")
    for _ in range(3):
        world.salt.workers["w1"].turn(vm["uuid"], Status.FAILED_TO_SAVE, HaltCause.GUEST)
        await world.poll()
    whole = (await world.http.get("/notices")).json()
    first = await world.http.get("/notices", params={"limit": 2})
    second = await world.http.get("/notices", params={"limit": 2, "before": first.headers["X-Next-Cursor"]})
    assert [*first.json(), *second.json()] == whole
    assert sorted((notice["id"] for notice in whole), reverse=True) == [notice["id"] for notice in whole]
    assert (len(first.json()), len(second.json())) == (2, 1)


async def test_permanent_refusal_of_each_start_is_notified_once(world):
    await world.person("uma")
    world.salt.workers["w1"].refusals["start"] = Code.BAD_IMAGE
    await world.http.post("/vmachines", json=SPEC, headers=world.of("uma"))
    await world.status("failed")
    for _ in range(2):
        await world.poll()
    assert await notices(world, "uma") == [("failed_to_start", "uma", "web01")]
    (notice,) = (await world.http.get("/notices", headers=world.of("uma"))).json()
    assert "w1" in notice["text"]
    assert "start is refused" in notice["text"]
    await world.ask("start")
    await world.until(lambda vm: vm["generation"] == 2 and vm["status"] == "failed")
    assert len(await notices(world, "uma")) == 2


async def test_refusal_that_may_pass_is_no_incident(impatient, salt):
    async with running_world(impatient, salt) as world:
        salt.workers["w1"].refusals["start"] = Code.HYPERVISOR
        await world.create()
        await world.until(lambda vm: bool(vm["problems"]))
        assert await notices(world) == []
        del salt.workers["w1"].refusals["start"]
        await world.status("running")
        salt.workers["w1"].refusals["shutdown"] = Code.POLICY  # for good, and yet nothing failed to start
        await world.ask("shutdown")
        await world.until(lambda vm: bool(vm["problems"]))
        assert await notices(world) == []


async def test_worker_that_falls_silent_is_the_administrators(world):
    await world.person("uma")
    await world.person("oscar", Role.OPERATOR)
    world.salt.silent.add("w1")
    for _ in range(2):
        await world.poll()
    assert await notices(world, "oscar") == [("unreachable", "", "w1")]
    assert await notices(world, "uma") == []
    world.salt.silent.clear()
    await world.poll()
    world.salt.silent.add("w1")
    await world.poll()
    assert len(await notices(world)) == 2


async def test_crash_loop_is_notified_when_given_up(settings, salt):
    async with running_world(settings.model_copy(update={"restart_limit": 1}), salt) as world:
        vm = await world.create()
        await world.status("running")
        worker = salt.workers["w1"]
        worker.turn(vm["uuid"], Status.HALTED, HaltCause.CRASHED)
        await world.poll()
        assert await notices(world) == []
        await world.status("running")
        worker.turn(vm["uuid"], Status.HALTED, HaltCause.CRASHED)
        await world.poll()
        assert await notices(world) == [("crash_loop", "admin", "web01")]


async def test_requested_halt_is_no_incident(world):
    await world.create()
    await world.status("running")
    await world.ask("shutdown")
    await world.status("halted")
    await world.poll()
    assert await notices(world) == []
