"""Real requests ask the worker first: what it would refuse for good is refused at once, and nothing is stored."""

import asyncio

import msgspec
import pytest

from master_service.policy.permissions import Role
from master_service.runtime import admission
from tests.functional.master.conftest import SPEC, eventually
from tests.functional.master.databases import on_both
from tests.functional.master.fakes import ROOMY, FakeSalt, FakeWorker
from worker_service.contract import Code

SHADOW = "file:///etc/shadow"


@pytest.fixture
def salt():
    return FakeSalt(FakeWorker("w1"), FakeWorker("w2"))


def refuses(world, worker, code="policy", message="No bridge br0 is here."):
    """Let a worker refuse each plan."""
    answer = {"success": False, "message": message, "code": code}
    world.salt.workers[worker].plan = lambda request: answer | {"request": None}


async def create(world, headers=None, **parameters):
    return await world.http.post("/vmachines", json=SPEC | parameters, headers=headers)


@on_both
async def test_create_that_all_workers_refuse_stores_nothing(world):
    answer = await create(world, hda_image=SHADOW)
    assert (answer.status_code, answer.json()["code"]) == (409, "policy")
    assert f"w1 refuses it: {SHADOW} lies outside the folders" in answer.json()["detail"]
    assert "w2 refuses it" in answer.json()["detail"]
    assert (await world.http.get("/vmachines")).json() == []
    assert (await world.http.get("/operations")).json() == []
    assert world.salt.jobs == []


async def test_worker_that_accepts_gets_the_vm(world):
    """Placement prefers w1, which refuses it for good; the request alone cannot tell."""
    refuses(world, "w1")
    made = (await create(world)).json()
    assert (await world.status("running"))["worker"] == "w2"
    assert list(world.salt.workers["w2"].vms) == [made["uuid"]]
    pinned = await create(world, name="web02", worker="w1")
    assert (pinned.status_code, pinned.json()["detail"]) == (409, "w1 refuses it: No bridge br0 is here.")


@pytest.mark.parametrize("code", ["no_room", "fetch_failed", "hypervisor_unavailable", "internal", "a_new_code"])
async def test_passing_trouble_is_no_refusal(world, code):
    refuses(world, "w1", code)
    assert (await create(world)).status_code == 201
    assert (await world.status("running"))["worker"] == "w1"


async def test_silence_is_no_refusal(world, monkeypatch):
    monkeypatch.setattr(admission, "LONGEST_S", 0.05)
    world.salt.gates["w1"] = asyncio.Event()
    assert (await create(world, worker="w1")).status_code == 201
    world.salt.gates.pop("w1").set()
    monkeypatch.setattr(admission, "LONGEST_S", 60)
    requests = len(world.salt.workers["w1"].plans)
    assert (await create(world, name="soon", worker="w1", hda_image=SHADOW)).status_code == 201  # not asked so soon
    assert len(world.salt.workers["w1"].plans) == requests
    world.master.vms._admission._quiet_until.clear()
    assert (await create(world, name="later", worker="w1", hda_image=SHADOW)).status_code == 409
    world.salt.workers["w1"].capacity = msgspec.structs.replace(ROOMY, features=())
    await world.poll()
    assert (await create(world, name="old", worker="w1", hda_image=SHADOW)).status_code == 201
    world.salt.down = True
    assert (await create(world, name="away", worker="w2", hda_image=SHADOW)).status_code == 201


async def test_many_slow_answers_keep_no_other_request(world, monkeypatch):
    monkeypatch.setattr(admission, "MOST_AT_ONCE", 1)
    world.master.vms._admission = admission.Admission(world.master.context)
    world.salt.gates["w1"] = asyncio.Event()
    slow = asyncio.create_task(create(world, worker="w1"))
    await eventually(world.master.vms._admission._places.locked)
    monkeypatch.setattr(admission, "LONGEST_S", 0.05)
    assert (await create(world, name="other", worker="w2", hda_image=SHADOW)).status_code == 201
    world.salt.gates["w1"].set()
    assert (await slow).status_code == 201


async def test_start_that_its_worker_refuses_stores_nothing(world):
    await world.create(run_policy="manual", worker="w1")
    before = await world.show()
    refuses(world, "w1", "bad_image", "It is damaged.")
    answer = await world.http.post("/vmachines/web01/start")
    assert (answer.status_code, answer.json()["code"]) == (409, "bad_image")
    assert answer.json()["detail"] == "w1 refuses it: It is damaged."
    assert await world.show() == before
    del world.salt.workers["w1"].plan
    assert (await world.http.post("/vmachines/web01/start")).status_code == 202
    await world.status("running")
    requests = len(world.salt.workers["w1"].plans)
    assert (await world.http.post("/vmachines/web01/start")).status_code == 202  # it runs
    assert len(world.salt.workers["w1"].plans) == requests


async def test_what_no_worker_is_or_runs_is_refused(world):
    await world.person("uma")
    await world.person("ola", Role.OPERATOR)
    unknown = await create(world, world.of("uma"), worker="nosuch")
    assert (unknown.status_code, unknown.json()["detail"]) == (404, "There is no worker 'nosuch'.")
    assert "saltern workers" not in unknown.json()["hint"]
    for name, why in (("uma", "no worker runs x86_64 on xen"), ("ola", "w1 has no xen driver (it has kvm)")):
        for query in ("", "?dry_run=true"):
            answer = await world.http.post(
                f"/vmachines{query}", json=SPEC | {"hypervisor": "xen"}, headers=world.of(name)
            )
            assert (answer.status_code, answer.json()["code"]) == (409, Code.UNSUPPORTED)
            assert why in answer.json()["detail"]
    assert (await world.http.get("/vmachines")).json() == []


async def test_change_that_its_worker_refuses_is_not_stored(world):
    await world.create(worker="w1")
    before = await world.status("running")
    answers = world.salt.workers["w1"]
    refuses(world, "w1", message="file:///etc/x lies outside.")
    change = {"hda_save_to": "file:///etc/x"}
    refused = await world.http.post("/vmachines/web01/modify", json=change)
    assert (refused.status_code, refused.json()["detail"]) == (409, "w1 refuses it: file:///etc/x lies outside.")
    assert (await world.show())["version"] == before["version"]
    in_dry_run = await world.ask("modify", json=change, dry_run=True)
    assert (in_dry_run["plan"]["fits"], in_dry_run["plan"]["code"]) == (False, "policy")
    assert (await world.ask("modify", json={"hda_save_to": ""}))["spec"]["hda_save_to"] == ""
    del answers.plan
    assert (await world.ask("modify", json=change, dry_run=True))["plan"] is None
    assert (await world.ask("modify", json=change))["spec"]["hda_save_to"] == "file:///etc/x"
    assert [(request.hda_image, request.hda_save_to) for request in answers.plans[-2:]] == [
        ("blank:1M", "file:///etc/x")
    ] * 2
