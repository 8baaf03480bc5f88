"""Dry runs and `GET /plan` ask the worker what a start would do, for a bounded time and outside of any transaction."""

import asyncio
import dataclasses

import msgspec
import pytest

from master_service.planning.vm import DispatchState
from master_service.policy.permissions import Role
from master_service.runtime import worker_plans
from tests.functional.master.conftest import SPEC, eventually
from tests.functional.master.databases import on_both
from tests.functional.master.fakes import ROOMY, FakeSalt, FakeWorker
from worker_service.contract import Code

SHADOW = "file:///etc/shadow"


async def dry_run(world, headers=None, query="dry_run=true", **parameters):
    answer = await world.http.post(f"/vmachines?{query}", json=SPEC | parameters, headers=headers)
    assert answer.status_code == 200, answer.text
    return answer.json()


async def test_dry_run_says_what_would_be_fetched(world):
    await world.person("uma")
    found = await dry_run(world, world.of("uma"), cpu_count=2)
    assert found["plan"] == {
        "worker": "w1", "fits": True, "message": "w1: It would fetch 3 MiB and start", "code": "",
        "bytes_to_fetch": 3 << 20,
        "images": [{"disk": "hda", "uri": SPEC["hda_image"], "cached": False, "size": 3 << 20}],
    }  # fmt: skip
    assert found["message"].endswith("w1: It would fetch 3 MiB and start")
    (request,) = world.salt.workers["w1"].plans
    assert (request.uuid, request.owner, request.cpu_count) == (found["vmachine"]["uuid"], "uma", 2)
    world.salt.workers["w1"].cached[SPEC["hda_image"]] = False
    assert (await dry_run(world))["plan"]["bytes_to_fetch"] == 0
    assert (await world.http.get("/vmachines")).json() == []


async def test_policy_of_the_worker_is_known_before_the_start(world):
    found = await dry_run(world, hda_image=SHADOW)
    assert (found["plan"]["fits"], found["plan"]["code"]) == (False, "policy")
    assert f"w1 refuses it: {SHADOW} lies outside" in found["message"]
    await world.create(hda_image="file:/srv/images/a.raw", run_policy="manual")
    started = await world.ask("start", dry_run=True)
    assert started["plan"]["fits"] is True
    assert (await world.ask("destroy", dry_run=True))["plan"] is None


async def test_numbers_of_a_worker_are_for_those_who_see_it(world):
    """The worker is fuller than its last report says."""
    await world.person("uma")
    await world.person("ola", Role.OPERATOR)
    world.salt.workers["w1"].capacity = msgspec.structs.replace(ROOMY, mem_free=17)
    for name, text in (("uma", "w1: no worker has room for it"), ("ola", "17 of 8192 MiB are free here")):
        found = await dry_run(world, world.of(name))
        assert (found["plan"]["fits"], found["plan"]["code"]) == (False, "no_room")
        assert text in found["plan"]["message"]
        assert ("17" in found["message"]) is (name == "ola")


@on_both
async def test_slow_worker_holds_no_lock_and_is_given_up(world, monkeypatch):
    monkeypatch.setattr(worker_plans, "ANSWER_S", 0.05)
    world.salt.gates["w1"] = asyncio.Event()
    found = await dry_run(world)
    assert (found["plan"]["fits"], found["plan"]["bytes_to_fetch"]) == (None, None)
    assert "w1 did not answer within 0.05 s; what it would do is not known" in found["message"]
    # While one waits, the database takes changes: SQLite has one writer.
    monkeypatch.setattr(worker_plans, "ANSWER_S", 60)
    waiting = asyncio.create_task(dry_run(world))
    await eventually(lambda: bool(world.master.waits._taken))
    await world.create(name="meanwhile", run_policy="manual")
    world.salt.gates["w1"].set()
    assert (await waiting)["plan"]["fits"] is True


async def test_worker_without_an_answer_is_named(world, salt):
    salt.silent.add("w1")
    found = await dry_run(world)
    assert "w1 did not answer within" in found["plan"]["message"]
    salt.silent.clear()
    salt.down = True
    assert "w1 cannot be asked: salt-api does not answer" in (await dry_run(world))["message"]
    salt.down = False
    salt.workers["w1"].plan = lambda _: {"success": True, "images": 5}
    assert "w1 answers in an unknown shape" in (await dry_run(world))["message"]
    salt.workers["w1"].plan = lambda _: "Traceback\nKeyError"
    assert "what it would do is not known" in (await dry_run(world))["message"]
    salt.workers["w1"].capacity = msgspec.structs.replace(ROOMY, features=("owner",))
    await world.poll()
    assert "an older version of Saltern (0.1.0), which cannot be asked" in (await dry_run(world))["message"]
    assert (await dry_run(world, query="dry_run=true&ask_workers=false"))["plan"] is None


async def test_user_may_not_keep_many_workers_waiting(world):
    world.salt.gates["w1"] = asyncio.Event()
    most = world.master.context.settings.waits_per_user
    waiting = [asyncio.create_task(dry_run(world)) for _ in range(most)]
    await eventually(lambda: world.master.waits._taken.total() == most)
    assert (await world.http.post("/vmachines?dry_run=true", json=SPEC)).status_code == 429
    world.salt.gates["w1"].set()
    assert [found["plan"]["fits"] for found in await asyncio.gather(*waiting)] == [True] * most


async def test_plan_of_the_master_asks_for_all_starts(world, monkeypatch):
    monkeypatch.setattr(worker_plans, "MOST_AT_ONCE", 2)
    world.salt.workers["w1"].refusals["start"] = Code.NO_ROOM
    for name in ("a", "b", "c"):
        await world.create(name=name, worker="w1")
        await world.until(lambda found: found["problems"], name)
    # The back-off of all three is over, and the pusher has not looked yet.
    plans = world.master.context.store.queries.vms

    async def due(*words):
        return [dataclasses.replace(vm, dispatch=DispatchState(user_generation=1)) for vm in await plans(*words)]

    monkeypatch.setattr(world.master.context.store.queries, "vms", due)
    found = (await world.http.get("/plan")).json()
    assert [entry["command"] for entry in found] == ["start"] * 3
    assert [entry["plan"] and entry["plan"]["fits"] for entry in found] == [True, True, None]


@pytest.fixture
def salt():
    return FakeSalt(FakeWorker("w1"))
