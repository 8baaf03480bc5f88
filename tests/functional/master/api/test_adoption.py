"""Adopt VMs that were started past the master: they go on, get their owner, and are refused for a reason."""

from uuid import uuid4

import pytest

from master_service.policy.permissions import Role
from tests.functional.master.conftest import eventually
from tests.functional.master.databases import on_both
from tests.functional.master.fakes import FakeVM
from tests.functional.master.services.test_vms import verbs
from worker_service.contract import HaltCause, Spec, Status

IMAGE = "file:/srv/images/web.qcow2"


@pytest.fixture
async def stray(world):
    """A function that puts a VM on the worker, as `salt` does, and returns its uuid once the master knows it."""
    await world.person("ann")

    async def start(name="web01", status=Status.RUNNING, generation=0, cause=None, **parameters):
        uuid = str(uuid4())
        spec = Spec(name=name, hda_image=IMAGE, **{"mem_size": 256, **parameters})
        world.salt.workers["w1"].vms[uuid] = FakeVM(spec, generation, status, cause)
        await world.poll()
        return uuid

    return start


async def adopt(world, uuid, owner="ann", worker="w1", **query):
    path = f"/workers/{worker}/vmachines/{uuid}/adopt"
    return await world.http.post(path, json={"owner": owner}, params=query)


async def unassigned(world):
    (worker,) = (await world.http.get("/workers")).json()
    return worker["unassigned_vms"]


@on_both
async def test_running_vm_is_adopted_and_keeps_running(world, stray):
    uuid = await stray()
    before = world.salt.workers["w1"].vms[uuid].since
    (listed,) = await unassigned(world)
    assert (listed["name"], listed["state"], listed["owner"]) == ("web01", "running", "")
    assert listed["since"] == before.isoformat()

    dry_run = (await adopt(world, uuid, dry_run="true")).json()
    assert (dry_run["command"], dry_run["vmachine"]["owner"]) == ("modify", "ann")
    assert (await unassigned(world), world.salt.jobs) == ([listed], [])

    answer = await adopt(world, uuid)
    assert (answer.status_code, answer.headers["Location"]) == (201, f"/api/v1/vmachines/{uuid}")
    made = answer.json()
    assert (made["owner"], made["worker"], made["status"], made["desired"]) == ("ann", "w1", "running", "running")
    assert await unassigned(world) == []
    await eventually(lambda: world.salt.workers["w1"].vms[uuid].owner == "ann")
    await world.poll()
    shown = await world.show()
    assert (shown["status"], shown["reason"], shown["problems"]) == ("running", "", [])
    assert verbs(world.salt) == [("modify", 1)]
    assert world.salt.workers["w1"].vms[uuid].since == before
    (entry, *_) = (await world.http.get("/audit", params={"verb": "adopt"})).json()
    assert (entry["verb"], entry["name"], entry["outcome"], entry["actor"]) == ("adopt", "web01", "done", "admin")
    # It is ann's now, and obeys the master.
    assert (await world.http.get("/vmachines/web01", headers=world.of("ann"))).status_code == 200
    assert (await world.ask("suspend"))["done"] is True


async def test_vm_that_is_off_stays_off(world, stray):
    """It crashed, and its disk is kept: a shutdown would discard it, and a start would boot it."""
    uuid = await stray(status=Status.HALTED, cause=HaltCause.CRASHED, generation=3)
    assert (await adopt(world, uuid)).json()["desired"] == "halted"
    await world.poll()
    await world.poll()
    assert world.salt.jobs == []


async def test_state_of_now_counts_not_that_of_the_last_poll(world, stray):
    """It was shut down since. The master would have started it again."""
    uuid = await stray()
    world.salt.workers["w1"].turn(uuid, Status.HALTED, HaltCause.GUEST)
    assert (await adopt(world, uuid)).json()["desired"] == "halted"
    del world.salt.workers["w1"].vms[uuid]
    gone = await adopt(world, str(uuid4()))
    assert (gone.status_code, "w1 has no VM" in gone.text) == (404, True)


@on_both
async def test_refused_adoption_says_why_and_changes_nothing(world, stray):
    taken, large, secret = (
        await stray(), await stray("large", mem_size=512), await stray("masked", hda_save_to="https://h/a?token=x")
    )  # fmt: skip
    ours = await world.create(name="ours", mem_size=16)
    await world.status("running", "ours")
    assert (await adopt(world, taken, "admin")).status_code == 201
    twice = await stray()
    await world.http.patch("/users/ann", json={"quota": {"mem_mib": 300}})
    before = {vm["uuid"] for vm in await unassigned(world)}
    for uuid, owner, status, message in (
        (twice, "ann", 409, "There is a VM named web01 already, and a VM cannot be renamed."),
        (large, "ann", 403, "512 MiB of memory of 300"),
        (secret, "ann", 409, "have a secret (hda_save_to)"),
        (large, "nemo", 404, "There is no user 'nemo'."),
        (ours["uuid"], "ann", 409, "ours is a VM of this master already."),
    ):
        for query in ({}, {"dry_run": "true"}) if uuid != ours["uuid"] else ({},):
            answer = await adopt(world, uuid, owner, **query)
            assert (answer.status_code, message in answer.text) == (status, True), answer.text
    assert {vm["uuid"] for vm in await unassigned(world)} == before
    assert (await adopt(world, large, worker="w9")).status_code in (404, 409)
    world.salt.silent.add("w1")
    silent = await adopt(world, large, "admin")
    assert (silent.status_code, "does not answer" in silent.text) == (503, True)
    world.salt.silent.clear()


async def test_copy_of_a_vm_that_was_destroyed_is_not_adopted(world, stray):
    uuid = await stray()
    vm = world.salt.workers["w1"].vms[uuid]
    await adopt(world, uuid, "admin")
    await world.ask("destroy")
    world.salt.workers["w1"].vms[uuid] = vm
    refused = await adopt(world, uuid, "admin")
    assert (refused.status_code, "was destroyed by this master" in refused.text) == (409, True)


@pytest.mark.parametrize("role", ["operator", "user", "viewer"])
async def test_only_administrators_adopt(world, stray, role):
    uuid = await stray()
    await world.person(role, Role(role))
    path = f"/workers/w1/vmachines/{uuid}/adopt"
    refused = await world.http.post(path, json={"owner": role}, headers=world.of(role))
    assert refused.status_code == 403
