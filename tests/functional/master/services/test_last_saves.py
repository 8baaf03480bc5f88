"""A disk is never lost by a surprise: starts go on from the last save, and what is refused is not carried out later."""

import asyncio

import pytest

from master_service.policy.audit import Actor
from tests.functional.master.conftest import SPEC, eventually, running_world
from tests.functional.master.fakes import FakeSalt, FakeWorker, Refused
from worker_service.contract import Code, HaltCause, Status

SAVED = SPEC["hda_save_to"]


def sent(world, verb):
    return [action for _, actions in world.salt.jobs for action in actions if action["verb"] == verb]


async def saved_vm(world, **parameters):
    """A VM that ran, was shut down and is saved."""
    await world.create(**parameters)
    await world.status("running")
    await world.ask("shutdown")
    return await world.status("halted")


async def test_start_goes_on_from_the_last_save(world):
    halted = await saved_vm(world)
    save = halted["saves"]["hda"]
    assert save["uri"] == SAVED
    assert halted["starts_from"] == f"It goes on from its last save, {SAVED}."
    tried = (await world.http.post("/vmachines/web01/start", params={"dry_run": "true"})).json()
    assert tried["vmachine"]["starts_from"] == halted["starts_from"]
    answer = await world.ask("start")
    assert answer["message"] == f"It will be started. It goes on from its last save, {SAVED}."
    running = await world.status("running")
    assert (running["starts_from"], running["saves"]) == ("", halted["saves"])
    first, second = sent(world, "start")
    assert "origin" not in first
    assert second["origin"] == {"hda": f"{SAVED}#sha256={save['sha256']}"}
    plan = world.salt.workers["w1"].plans[-1]
    assert plan.origin == second["origin"]


async def test_start_from_the_image_is_a_new_instance(world):
    await saved_vm(world)
    answer = await world.ask("start", json={"from": "image"})
    assert answer["message"].endswith(f"It starts from its images. Its last save, {SAVED}, stays as it is.")
    await world.status("running")
    assert "origin" not in sent(world, "start")[1]
    refused = await world.http.post("/vmachines/web01/start", json={"from": "image"})
    assert (refused.status_code, refused.json()["code"]) == (409, "conflict")
    assert (await world.http.post("/vmachines/web01/start", json={"from": "tape"})).status_code == 400


async def test_disk_without_a_target_stays_and_boots_again(world):
    await world.create(hda_save_to=None)
    await world.status("running")
    await world.ask("shutdown")
    halted = await world.status("halted")
    assert halted["when_it_halts"] == "Its disk will be kept on its worker when it halts."
    assert halted["starts_from"] == "It goes on from its own disks, which w1 keeps."
    refused = await world.http.post("/vmachines/web01/start", json={"from": "image"})
    assert "keeps the disks of web01" in refused.json()["detail"]
    await world.ask("start")
    assert (await world.status("running"))["worker"] == "w1"


async def test_kept_disk_is_saved_once_it_has_a_target(world):
    await world.create(hda_save_to=None)
    await world.status("running")
    await world.ask("shutdown")
    await world.status("halted")
    changed = await world.ask("modify", json={"hda_save_to": "file:/srv/saved/later.qcow2"})
    assert (changed["pending"], changed["spec"]["hda_save_to"]) == ([], "file:/srv/saved/later.qcow2")
    before = len(sent(world, "shutdown"))
    await world.ask("shutdown")
    await world.until(lambda vm: vm["saves"] and vm["status"] == "halted")
    assert len(sent(world, "shutdown")) == before + 1


async def test_refused_change_is_reported_and_taken_back(world):
    await world.create()
    await world.status("running")
    world.salt.workers["w1"].refusals["modify"] = Code.POLICY
    refused = await world.http.post("/vmachines/web01/modify", json={"hda_save_to": "file:/etc/x"})
    assert refused.status_code == 409, refused.text
    assert refused.json()["detail"] == "w1 refuses this change: modify is refused. web01 keeps its former settings."
    shown = await world.show()
    assert (shown["spec"]["hda_save_to"], shown["pending"]) == (SAVED, [])
    world.salt.workers["w1"].refusals.clear()
    await world.quiet()
    assert (await world.show())["problems"] == []
    await world.ask("shutdown")
    assert (await world.status("halted"))["saves"]["hda"]["uri"] == SAVED


async def test_disk_whose_target_is_refused_stays_at_a_shutdown(world):
    """The user did not wait for the answer. The disk would have been discarded before the change."""
    await world.create(hda_save_to="")
    await world.status("running")
    worker = world.salt.workers["w1"]
    gate = world.salt.gates["w1"] = asyncio.Event()
    worker.refusals["modify"] = Code.POLICY
    changed = await world.ask("modify", json={"hda_save_to": "file:/etc/x"}, timeout_s=0)
    assert changed["pending"] == ["hda_save_to"]
    await world.ask("shutdown")
    gate.set()
    taken_back = await world.until(lambda vm: vm["spec"]["hda_save_to"] is None)
    assert taken_back["desired"] == "halted"
    worker.refusals.clear()
    halted = await world.status("halted")
    assert halted["starts_from"] == "It goes on from its own disks, which w1 keeps."
    (uuid,) = worker.vms
    assert worker.vms[uuid].spec.hda_save_to is None
    assert sent(world, "shutdown")[-1]["generation"] > sent(world, "modify")[-1]["generation"]


async def test_refusal_takes_no_later_change_back(world, monkeypatch):
    """Its user has corrected the place before the worker refused the former one."""
    await world.create(hda_save_to="")
    uuid = (await world.status("running"))["uuid"]
    worker = world.salt.workers["w1"]
    accept = worker._modify

    def refuse_etc(action):
        if (action.params.hda_save_to or "").startswith("file:/etc"):
            raise Refused(Code.POLICY)
        accept(action)

    monkeypatch.setattr(worker, "_modify", refuse_etc)
    gate = world.salt.gates["w1"] = asyncio.Event()
    await world.ask("modify", json={"hda_save_to": "file:/etc/x"}, timeout_s=0)
    await eventually(lambda: not world.master.pusher.idle)
    await world.ask("modify", json={"hda_save_to": SAVED}, timeout_s=0)
    gate.set()
    shown = await world.until(lambda vm: not vm["pending"])
    assert (shown["spec"]["hda_save_to"], worker.vms[uuid].spec.hda_save_to) == (SAVED, SAVED)


async def test_start_of_what_could_not_be_saved_is_refused(world):
    await world.create()
    uuid = (await world.status("running"))["uuid"]
    worker = world.salt.workers["w1"]
    worker.turn(uuid, Status.FAILED_TO_SAVE, HaltCause.GUEST)
    world.salt.report("w1", uuid)
    await world.until(lambda vm: vm["desired"] == "halted")
    refused = await world.http.post("/vmachines/web01/start")
    assert refused.status_code == 409, refused.text
    assert "could not be saved" in refused.json()["detail"]
    await world.ask("save_retry")
    await world.quiet()
    assert ((await world.show())["status"], len(sent(world, "start"))) == ("halted", 1)


@pytest.mark.parametrize("verb", ["start", "shutdown"])
async def test_refused_start_is_not_carried_out_later(served, saltern, verb):
    await saved_vm(served)
    worker = served.salt.workers["w1"]
    worker.refusals["start"] = Code.POLICY
    code, _, err = await saltern("start", "web01")
    assert (code, "w1 refused to start it: start is refused" in err) == (1, True), err
    worker.refusals.clear()
    await served.quiet()
    shown = await served.show()
    assert (shown["desired"], shown["status"], shown["refused"]) == ("halted", "halted", True)
    await served.ask("modify", json={"hda_save_to": "file:/srv/saved/other.qcow2"})
    await served.quiet()
    assert (await served.show())["status"] == "halted"
    code, out, err = await saltern(verb, "web01")
    assert code == 0, err
    assert out.startswith(f"web01 is {'running' if verb == 'start' else 'halted'}")


async def test_command_says_what_becomes_of_the_disk(served, saltern):
    image = ("--hda-image", SPEC["hda_image"])
    code, out, _ = await saltern("create", "web01", *image, "--discard")
    assert (code, out) == (0, "web01 is running on w1. Its disk will be discarded when it halts.\n")
    _, out, _ = await saltern("shutdown", "web01", "--dry-run")
    assert "Its disk will be discarded when it halts." in out
    code, out, err = await saltern("modify", "web01", "--hda-save-to", "keep")
    assert (code, out) == (
        0,
        "web01 was modified: --hda-save-to. Its disk will be kept on its worker when it halts.\n",
    ), err
    served.salt.lose_jobs = True
    code, _, err = await saltern("modify", "web01", "--hda-save-to", SAVED, "--timeout", "0.1")
    assert code == 4
    assert "w1 did not accept the change of --hda-save-to within 0.1 s" in err
    code, _, err = await saltern("create", "web02", *image, "--discard", "--hda-save-to", SAVED)
    assert (code, "leave --discard out" in err) == (2, True)


async def test_command_waits_for_the_save_of_a_kept_disk(served, saltern):
    await served.create(hda_save_to=None)
    await served.status("running")
    await served.ask("shutdown")
    await served.status("halted")
    await served.ask("modify", json={"hda_save_to": SAVED})
    gate = served.salt.gates["w1"] = asyncio.Event()
    shutdown = asyncio.create_task(saltern("shutdown", "web01"))
    await served.until(lambda vm: vm["awaited"])
    assert not shutdown.done()
    gate.set()
    code, out, err = await shutdown
    assert (code, out) == (0, "web01 is halted on w1.\n"), err
    assert (await served.show())["saves"]["hda"]["uri"] == SAVED


async def test_start_of_a_vm_that_is_being_saved_waits_for_it(served, saltern):
    """Its disks may not be saved, and then it does not start."""
    uuid = (await served.create())["uuid"]
    await served.status("running")
    served.salt.by_itself = False
    worker = served.salt.workers["w1"]
    worker.turn(uuid, Status.SAVING, HaltCause.GUEST)
    served.salt.report("w1", uuid)
    await served.status("saving")
    start = asyncio.create_task(saltern("start", "web01"))
    await served.until(lambda vm: vm["awaited"])
    await served.quiet()
    worker.turn(uuid, Status.FAILED_TO_SAVE, HaltCause.GUEST)
    served.salt.report("w1", uuid)
    code, out, err = await start
    assert (code, out) == (1, ""), out
    assert "web01 is failed: " in err


async def test_file_of_vms_distinguishes_kept_from_discarded(served, saltern, tmp_path):
    await served.create(hda_save_to="")
    await served.status("running")
    _, out, _ = await saltern("export", "web01")
    assert "hda_save_to: ''" in out
    file = tmp_path / "vms.yaml"
    for value, stored in (("null", None), ("''", ""), ("keep", None), (SAVED, SAVED)):
        file.write_text(out.replace("hda_save_to: ''", f"hda_save_to: {value}"))
        code, said, err = await saltern("apply", "-f", str(file), "--yes")
        assert code == 0, said + err
        assert (await served.show())["spec"]["hda_save_to"] == stored
        assert "All VMs are in the state of the file" in (await saltern("apply", "-f", str(file), "--yes"))[1]


async def test_last_save_is_known_after_a_fence(settings):
    """The worker is lost, and the saved disk is not: it lies at its target."""
    remote = "http://store.test/web.qcow2"
    async with running_world(settings, FakeSalt(FakeWorker("w1"), FakeWorker("w2"))) as world:
        halted = await saved_vm(world, hda_save_to=remote)
        home, other = halted["worker"], {"w1": "w2", "w2": "w1"}[halted["worker"]]
        world.salt.silent.add(home)
        await world.poll()
        await world.master.vms.fence(home, home, Actor(name="admin"))
        moved = await world.show()
        assert (moved["worker"], moved["saves"]) == (None, halted["saves"])
        assert moved["starts_from"] == f"It goes on from its last save, {remote}."
        await world.ask("start")
        assert (await world.status("running"))["worker"] == other
        assert sent(world, "start")[-1]["origin"] == {"hda": f"{remote}#sha256={halted['saves']['hda']['sha256']}"}


async def test_save_is_retried_right_after_a_change_of_its_target(world, monkeypatch):
    """The worker has accepted the other place, and its report of that is still on its way."""
    await world.create()
    uuid = (await world.status("running"))["uuid"]
    worker = world.salt.workers["w1"]
    worker.turn(uuid, Status.FAILED_TO_SAVE, HaltCause.GUEST)
    world.salt.report("w1", uuid)
    await world.until(lambda vm: vm["desired"] == "halted")
    monkeypatch.setattr(world.salt, "report", lambda *_: None)
    changed = await world.ask("modify", json={"hda_save_to": "file:/srv/saved/other.qcow2"})
    assert changed["pending"] == []
    answer = await world.ask("save_retry", timeout_s=0)
    assert worker.vms[uuid].status is not Status.FAILED_TO_SAVE, answer
