"""The life of a VM as its user sees it, over HTTP."""

import asyncio

import pytest

from master_service.runtime import admission
from tests.functional.master.conftest import SPEC, eventually, running_world
from tests.functional.master.databases import on_both
from worker_service.contract import Code, HaltCause, Status


def verbs(salt):
    """All commands that were sent, as (verb, generation)."""
    return [(action["verb"], action["generation"]) for _, actions in salt.jobs for action in actions]


async def test_created_runs_and_its_guest_powers_it_off(world, monkeypatch):
    woken = []
    with monkeypatch.context() as held:  # no daemon acts on it before the answer was read
        held.setattr(world.master.pusher, "wake", woken.extend)
        created = await world.create()
    world.master.pusher.wake(woken)
    assert (created["status"], created["assumed"], created["real"]) == ("pending", "starting", None)
    running = await world.status("running")
    assert (running["worker"], running["real"], running["reason"]) == ("w1", "running", "")
    assert verbs(world.salt) == [("start", 1)]
    params = world.salt.jobs[0][1][0]["params"]
    assert params == {key: SPEC[key] for key in params}

    world.salt.workers["w1"].turn(running["uuid"], Status.SAVING, HaltCause.GUEST)
    world.salt.report("w1", running["uuid"])
    await world.status("saving")
    world.salt.advance()
    halted = await world.until(lambda vm: vm["status"] == "halted" and vm["desired"] == "halted")
    assert halted["reason"] == ""
    await world.poll()
    assert verbs(world.salt) == [("start", 1)]  # the user's will: not started again


async def test_preparing_is_shown_while_the_worker_starts_it(world):
    world.salt.by_itself = False
    await world.create()
    preparing = await world.status("preparing")
    assert (preparing["assumed"], preparing["real"]) == ("preparing", "starting")
    world.salt.advance()
    await world.status("running")


@on_both
async def test_every_verb_has_its_effect(world):
    vm = await world.create()
    await world.status("running")
    suspended = await world.ask("suspend")
    assert (suspended["done"], suspended["vmachine"]["status"]) == (True, "paused")
    resumed = await world.ask("resume")
    assert (resumed["done"], resumed["vmachine"]["status"]) == (True, "running")
    assert (await world.ask("shutdown"))["done"] is None
    await world.status("halted")
    gate = world.salt.gates["w1"] = asyncio.Event()
    assert (await world.ask("start"))["vmachine"]["status"] == "pending"
    gate.set()
    await world.status("running")
    assert verbs(world.salt) == [("start", 1), ("suspend", 2), ("resume", 3), ("shutdown", 4), ("start", 5)]
    destroyed = await world.ask("destroy", vm=vm["uuid"])
    assert (destroyed["done"], destroyed["vmachine"]["status"]) == (True, "destroyed")
    assert world.salt.workers["w1"].vms == {}


async def test_repeated_destroy_succeeds_and_frees_the_name(world):
    vm = await world.create()
    await world.status("running")
    for _ in range(2):
        answer = await world.http.delete(f"/vmachines/{vm['uuid']}")
        assert (answer.status_code, answer.json()["vmachine"]["status"]) == (200, "destroyed")
    assert [verb for verb, _ in verbs(world.salt)].count("destroy") == 1
    assert (await world.http.get("/vmachines/web01")).status_code == 404
    assert (await world.http.get("/vmachines")).json() == []
    again = await world.create()
    assert again["uuid"] != vm["uuid"]


async def test_suspended_vm_is_shut_down_by_waking_it_first(world):
    await world.create()
    await world.status("running")
    await world.ask("suspend")
    await world.ask("shutdown")
    await world.status("halted")
    assert verbs(world.salt)[-2:] == [("resume", 3), ("shutdown", 4)]


async def test_modify_reports_differences_and_respects_if_match(world):
    await world.create()
    await world.status("running")
    body = {"hda_save_to": "file:/srv/saved/other.qcow2"}
    stale = await world.http.patch("/vmachines/web01", json=body, headers={"If-Match": '"7"'})
    assert (stale.status_code, stale.json()["code"]) == (412, "changed_meanwhile")
    bare = await world.http.patch("/vmachines/web01", json=body)
    assert (bare.status_code, bare.json()["code"]) == (428, "precondition_required")
    etag = (await world.http.get("/vmachines/web01")).headers["ETag"]
    changed = await world.http.patch("/vmachines/web01", json=body, headers={"If-Match": etag})
    assert changed.json()["spec"]["hda_save_to"] == body["hda_save_to"]
    await eventually(lambda: len(world.salt.jobs) == 2)
    assert world.salt.jobs[1][1][0]["params"] == body
    assert world.salt.workers["w1"].vms[changed.json()["uuid"]].spec.hda_save_to == body["hda_save_to"]


async def test_manual_vms_are_created_off(world):
    created = await world.create(run_policy="manual")
    assert (created["status"], created["desired"]) == ("halted", "halted")
    await world.quiet()
    assert world.salt.jobs == []
    await world.ask("start")
    await world.status("running")


async def test_crashed_vm_is_started_again(world):
    vm = await world.create()
    await world.status("running")
    world.salt.workers["w1"].turn(vm["uuid"], Status.HALTED, HaltCause.CRASHED)
    world.salt.report("w1", vm["uuid"])
    again = await world.until(lambda observed: observed["status"] == "running" and observed["generation"] == 2)
    assert again["desired"] == "running"
    assert verbs(world.salt) == [("start", 1), ("start", 2)]


async def test_failed_start_is_shown_and_not_repeated(world):
    world.salt.by_itself = False
    vm = await world.create()
    await world.status("preparing")
    world.salt.workers["w1"].turn(vm["uuid"], Status.FAILED_TO_START)
    world.salt.report("w1", vm["uuid"])
    failed = await world.status("failed")
    assert failed["problems"] == [{"code": "failed_to_start", "message": "It is failed to start."}]
    await world.poll()
    assert verbs(world.salt) == [("start", 1)]


async def test_refusal_for_good_fails_with_the_workers_words(world):
    world.salt.workers["w1"].refusals["start"] = Code.POLICY
    await world.create()
    failed = await world.status("failed")
    assert failed["problems"] == [{"code": "policy", "message": "start is refused"}]
    await world.poll()
    assert verbs(world.salt) == [("start", 1)]
    world.salt.workers["w1"].refusals.clear()
    await world.ask("start")
    await world.status("running")
    assert verbs(world.salt) == [("start", 1), ("start", 2)]


async def test_passing_refusal_is_tried_again(impatient, salt):
    salt.workers["w1"].refusals["start"] = Code.NO_ROOM
    async with running_world(impatient, salt) as world:
        await world.create()
        pending = await world.until(lambda vm: vm["status"] == "pending" and vm["problems"] != [])
        refused = "no worker fits: w1 has just refused it for lack of room"  # once it was placed again
        later = "w1 refused the start, which is sent again later: start is refused"
        assert pending["reason"] in ("start is refused", refused, later)  # before that, and when there was no other
        salt.workers["w1"].refusals.clear()
        await world.status("running")


async def test_pending_says_which_worker_is_too_full(world):
    await world.create(name="big", mem_size=8000)
    await world.status("running", "big")
    await world.create(mem_size=4096)
    pending = await world.until(lambda vm: vm["reason"].startswith("no worker fits"))
    assert pending["status"] == "pending"
    assert "w1 has 192 of 8192 MiB memory free, 4096 are needed" in pending["reason"]


@on_both
async def test_parallel_placements_reserve_memory(settings, salt):
    salt.down = True
    async with running_world(settings, salt) as world:
        names = [f"vm{n}" for n in range(4)]
        for name in names:
            await world.create(name=name, mem_size=3000)
        await world.quiet()
        salt.down = False  # and once its stream is open again, all workers are asked
        for name in names[:2]:
            await world.status("running", name)
        full = await world.until(lambda vm: "MiB memory free" in vm["reason"], names[2])
        assert "2192 of 8192 MiB memory free, 3000 are needed" in full["reason"]


async def test_blocking_verb_answers_in_time_with_observed_status(impatient, salt):
    async with running_world(impatient, salt) as world:
        await world.create()
        await world.status("running")
        salt.lose_jobs = True
        answer = await world.http.post("/vmachines/web01/suspend", params={"timeout_s": 0.05})
        body = answer.json()
        assert (answer.status_code, body["done"], body["vmachine"]["status"]) == (202, False, "running")
        assert "not observed within 0.05 s" in body["message"]
        salt.lose_jobs = False
        await world.status("paused")


async def test_many_edits_make_few_jobs(world, monkeypatch):
    monkeypatch.setattr(admission, "LONGEST_S", 0.01)  # the worker answers no plan either
    await world.create()
    await world.status("running")
    before = len(world.salt.jobs)
    gate = world.salt.gates["w1"] = asyncio.Event()
    for n in range(50):
        await world.ask("modify", json={"hda_save_to": f"file:/srv/saved/{n}.qcow2"}, timeout_s=0)
    gate.set()
    uuid = (await world.show())["uuid"]
    worker = world.salt.workers["w1"]
    await eventually(lambda: worker.vms[uuid].spec.hda_save_to == "file:/srv/saved/49.qcow2")
    assert len(world.salt.jobs) - before <= 2


async def test_actions_for_one_worker_share_a_job(world):
    names = [f"vm{n}" for n in range(5)]
    for name in names:
        await world.create(name=name, mem_size=64)
        await world.status("running", name)
    world.salt.silent.add("w1")
    await world.poll()
    for name in names:
        await world.ask("shutdown", name)
    await world.quiet()
    world.salt.silent.clear()
    world.salt.jobs.clear()
    await world.poll()
    for name in names:
        await world.status("halted", name)
    assert [len(actions) for _, actions in world.salt.jobs] == [5]


@pytest.mark.parametrize("verb", ["suspend", "resume"])
async def test_halted_vm_cannot_be_paused(world, verb):
    await world.create()
    await world.status("running")
    await world.ask("shutdown")
    await world.status("halted")
    answer = await world.http.post(f"/vmachines/web01/{verb}")
    assert (answer.status_code, answer.json()["code"]) == (409, "conflict")
    assert "Start it" in answer.json()["hint"]
