"""Quotas inside the transaction of the change, on real databases and with parallel requests."""

import asyncio
from collections import Counter

from tests.functional.master.conftest import SPEC, running_world
from tests.functional.master.databases import on_both
from worker_service.contract import Status

pytestmark = on_both


async def limited(world, **quota):
    await world.person("uma")
    answer = await world.http.patch("/users/uma", json={"quota": quota})
    assert answer.status_code == 200, answer.text


async def ask(world, name, **more):
    return await world.http.post("/vmachines", json=SPEC | {"name": name} | more, headers=world.of("uma"))


async def test_parallel_creates_stay_within_the_quota(world):
    await limited(world, vms=3)
    answers = await asyncio.gather(*(ask(world, f"vm{n}", mem_size=4) for n in range(10)))
    assert Counter(answer.status_code for answer in answers) == {201: 3, 403: 7}
    refused = next(answer.json() for answer in answers if answer.status_code == 403)
    assert refused["code"] == "quota_exceeded"
    assert "4 VMs of 3 (3 used, 1 more requested)" in refused["detail"]
    quota = (await world.http.get("/users/me/quota", headers=world.of("uma"))).json()
    assert (quota["used"]["vms"], quota["limits"]["vms"], quota["limits"]["cpus"]) == (3, 3, None)


async def test_each_amount_counts_except_of_destroyed_vms(world):
    await limited(world, cpus=2, mem_mib=512, disk_mib=2048)
    assert (await ask(world, "cpu", cpu_count=3)).status_code == 403
    assert (await ask(world, "mem", mem_size=513)).status_code == 403
    assert (await ask(world, "disk", hda_image="blank:3G", hda_save_to="")).status_code == 403
    assert (await ask(world, "fits", hda_image="blank:2G", mem_size=512, cpu_count=2)).status_code == 201
    assert (await ask(world, "more", mem_size=4)).status_code == 403
    assert (await world.http.post("/vmachines/fits/destroy", headers=world.of("uma"))).status_code == 200
    assert (await ask(world, "again")).status_code == 201


async def test_change_that_needs_no_more_is_never_refused(world):
    await limited(world, vms=5)
    assert (await ask(world, "web")).status_code == 201
    await limited(world, vms=0, cpus=0, mem_mib=0, disk_mib=0)
    body = {"hda_save_to": "file:/srv/elsewhere.qcow2"}
    assert (await world.http.post("/vmachines/web/modify", json=body, headers=world.of("uma"))).status_code == 200


async def test_settings_give_quotas_to_accounts_without_any(settings, salt):
    async with running_world(settings.model_copy(update={"quota_vms": 0}), salt) as world:
        await world.create(name="the-admins")
        await world.person("uma")
        assert (await ask(world, "more")).status_code == 403
        await limited(world, vms=None)
        assert (await ask(world, "fits")).status_code == 201


async def test_bad_quotas_are_refused(world):
    await world.person("uma")
    for quota in ({"vms": -1}, {"vms": "3"}, {"gpus": 1}, 5, {}, {"cpus": 2, "vms": -1}):
        assert (await world.http.patch("/users/uma", json={"quota": quota})).status_code == 400


async def test_failed_start_counts_again_when_it_is_started_again(world):
    await limited(world, cpus=2)
    vm = (await ask(world, "first", cpu_count=2)).json()
    await world.status("running", "first")
    assert (await ask(world, "second", cpu_count=2)).status_code == 403
    world.salt.workers["w1"].turn(vm["uuid"], Status.FAILED_TO_START)
    world.salt.report("w1", vm["uuid"])
    await world.status("failed", "first")
    used = (await world.http.get("/users/me/quota", headers=world.of("uma"))).json()["used"]
    assert (used["vms"], used["cpus"]) == (1, 0)
    assert (await ask(world, "second", cpu_count=2)).status_code == 201
    again = await world.http.post("/vmachines/first/start", headers=world.of("uma"))
    assert (again.status_code, again.json()["code"]) == (403, "quota_exceeded")
    assert (await world.http.post("/vmachines/second/destroy", headers=world.of("uma"))).status_code == 200
    assert (await world.http.post("/vmachines/first/start", headers=world.of("uma"))).status_code == 202


async def test_failed_start_is_no_promise_to_its_worker(world):
    """Its event came after the last poll: the room counted as promised until the next one."""
    vm = await world.create(mem_size=8000)
    await world.status("running")
    world.salt.workers["w1"].turn(vm["uuid"], Status.FAILED_TO_START)
    world.salt.report("w1", vm["uuid"])
    await world.status("failed")
    assert (await world.master.context.store.queries.candidates())["w1"].promised_vms == 0
