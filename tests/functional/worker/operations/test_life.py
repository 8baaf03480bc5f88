"""Whole lives of real VMs: every status of the contract except `installing`, and every verb."""

import json
import os
import signal
import threading
from pathlib import Path

import pytest
from werkzeug import Response

from devstack.guests import read_counter
from tests.lib.faults import standing
from tests.lib.support import PATIENCE_S, eventually, helpers, sha256, virsh
from worker_service.core.failpoints import ENVIRONMENT
from worker_service.helper import launcher


@pytest.fixture
def short(site, bootchain):
    """A guest that counts its boot and powers off at once."""
    return bootchain("short.raw", folder=site.images)


@pytest.fixture
def steady(site, bootchain):
    """A guest that counts its boot and stays up."""
    return bootchain("steady.raw", folder=site.images, variant="spin")


def test_life_is_saved_and_the_next_goes_on_from_it(site, short):
    observed = site.start("life1", short)
    assert observed["success"]
    assert observed["uuid"]
    reply = site.wait("life1", "halted")
    saved = site.saved_file("life1")
    assert read_counter(saved, "qcow2") == 1
    assert reply["halt_cause"] == "guest shut down"
    assert reply["disks"]["hda"] == {
        "save_to": f"file://{saved}",
        "saved_to": f"file://{saved}",
        "sha256": sha256(saved),
        "size": saved.stat().st_size,
        "fate": "saved",
    }
    manifest = json.loads(Path(f"{saved}.manifest.json").read_text())
    assert manifest["sha256"] == sha256(saved)
    assert manifest["vm"]["name"] == "life1"
    assert site.leftovers() == set()
    assert "life1" not in virsh("list", "--all", "--name").split()

    site.start("life2", saved)
    site.wait("life2", "halted")
    assert read_counter(site.saved_file("life2"), "qcow2") == 2
    assert read_counter(saved, "qcow2") == 1  # an image is never written to

    record = lambda: site.worker.store.find(name="life2")  # noqa: E731
    before = record()
    last = site.call("status", name="life2")["disks"]["hda"]
    again = site.start("life2", short)  # the same VM, a new life from an image: it leaves the save of the former
    assert again["uuid"] == before.uuid
    reply = site.wait("life2", "halted")
    assert record().instance_id != before.instance_id
    assert sha256(site.saved_file("life2")) == last["sha256"]
    other = Path(reply["disks"]["hda"]["saved_to"].removeprefix("file://"))
    assert (other != site.saved_file("life2"), read_counter(other, "qcow2")) == (True, 1)
    assert "Another file lay at the target" in reply["message"]

    origin = {"hda": f"{last['saved_to']}#sha256={last['sha256']}"}
    site.start("life2", saved, origin=origin)  # and one that goes on from it, which may replace it
    reply = site.wait("life2", "halted")
    assert reply["origin"] == origin
    assert reply["disks"]["hda"]["saved_to"] == f"file://{site.saved_file('life2')}"
    assert read_counter(site.saved_file("life2"), "qcow2") == 3
    manifest = json.loads(Path(f"{site.saved_file('life2')}.manifest.json").read_text())
    assert manifest["source"] == origin["hda"]
    assert reply["spec"]["hda_image"] == f"file://{saved}"


def test_disk_without_save_to_is_kept_for_the_next_start(site, short):
    uuid = site.start("stays", short, hda_save_to="keep")["uuid"]
    for boots in (1, 2):
        reply = site.until(lambda: site.call("status", name="stays"), is_kept)
        assert reply["halt_cause"] == "guest shut down"
        kept = Path(reply["disks"]["hda"]["kept"])
        assert read_counter(kept, "qcow2") == boots
        assert reply["message"] == (
            f"It is off; its disks are kept in {kept.parent}. start boots it again, destroy discards them."
        )
        listed = site.call("list")["capacity"]
        assert (listed["kept_vms"], listed["taken"].get("kept")) == (1, None)
        assert listed["kept_bytes"] >= kept.stat().st_blocks * 512
        assert site.call("shutdown", uuid=uuid)["message"] == reply["message"]  # there is nothing to do
        if boots == 1:
            assert site.start("stays", short, hda_save_to="keep")["message"].startswith(
                "Accepted; it is started again from its kept disks."
            )
    place = site.saved_file("stays")
    assert site.call("modify", uuid=uuid, hda_save_to=f"file://{place}")["success"]
    assert site.call("shutdown", uuid=uuid)["success"]
    reply = site.until(lambda: site.call("status", name="stays"), lambda reply: not is_kept(reply))
    assert site.wait("stays", "halted")["disks"]["hda"]["saved_to"] == f"file://{place}"
    assert read_counter(place, "qcow2") == 2
    assert site.leftovers() == set()


def is_kept(reply):
    return reply["status"] == "halted" and "kept" in reply["disks"]["hda"]


def test_saved_disk_stays_beside_one_that_is_kept(site, short):
    """It is saved at each halt, under one name, and destroy discards what is here alone."""
    data = {"hdb_image": "blank:1M"}
    for boots in (1, 2):
        site.start("mixed", short, **data)
        reply = site.until(lambda: site.call("status", name="mixed"), is_kept)
        disk = reply["disks"]["hda"]
        assert (disk["saved_to"], disk["fate"]) == (f"file://{site.saved_file('mixed')}", "saved, and kept here")
        assert disk["sha256"] == sha256(site.saved_file("mixed"))
        assert read_counter(site.saved_file("mixed"), "qcow2") == boots
        assert (reply["disks"]["hdb"]["fate"], "saved_to" in reply["disks"]["hdb"]) == ("kept here", False)
        assert sorted(path.name for path in Path(disk["kept"]).parent.glob("hd*")) == ["hda.qcow2", "hdb.qcow2"]
    assert site.call("destroy", name="mixed")["success"]
    assert read_counter(site.saved_file("mixed"), "qcow2") == 2
    assert list(site.saved.glob("mixed.conflict*")) == []
    assert site.leftovers() == set()


def test_empty_save_to_discards(site, short):
    reply = site.start("unsaved", short, hda_save_to="")
    assert reply["message"].endswith("Its disk will be discarded when it halts.")
    # It is halted as soon as it is off, and then its disk goes.
    site.until(
        lambda: site.call("status", name="unsaved"),
        lambda reply: reply["status"] == "halted" and "nothing was to be saved" in reply["message"],
    )
    assert not site.saved_file("unsaved").exists()
    assert site.leftovers() == set()


def test_suspend_resume_screen_and_destroy(site, steady):
    uuid = site.start("steady1", steady)["uuid"]
    reply = site.wait("steady1", "running")
    assert reply["vnc"] == f"ws://127.0.0.1:8081/vmachines/{reply['uuid']}/screen"
    assert site.call("suspend", uuid=uuid)["success"]
    assert site.call("status", uuid=uuid)["status"] == "suspended"
    assert site.call("suspend", uuid=uuid)["success"]  # again: it is so already
    assert site.call("resume", name="steady1")["success"]
    assert site.call("status", uuid=uuid)["status"] == "running"
    assert site.call("destroy", name="steady1")["success"]
    assert site.call("status", uuid=uuid)["code"] == "not_found"
    assert not site.saved_file("steady1").exists()
    assert uuid not in virsh("list", "--all", "--uuid")
    assert site.call("destroy", uuid=uuid)["success"]  # again: it is gone already
    site.watcher.look()
    assert (f"vmachines/w1/{uuid}/destroyed", {"uuid": uuid, "generation": 1}) in site.events


def test_equal_starts_are_one_vm_and_different_ones_a_conflict(site, steady):
    first = site.start("twice", steady)
    assert site.start("twice", steady)["uuid"] == first["uuid"]
    other = site.start("twice", steady, mem_size=48)
    assert (other["code"], "mem_size" in other["message"]) == ("conflict", True)
    taken = site.start("twice", steady, uuid="6d6c7f0e-0000-4000-8000-000000000001", generation=1)
    assert taken["code"] == "name_taken"
    site.call("destroy", name="twice")


def test_older_generation_is_refused(site, steady):
    uuid = "6d6c7f0e-0000-4000-8000-000000000002"
    assert site.start("gen", steady, uuid=uuid, generation=5)["success"]
    site.wait("gen", "running")
    assert site.call("suspend", uuid=uuid, generation=4)["code"] == "stale_generation"
    assert site.call("status", uuid=uuid)["status"] == "running"
    assert site.call("suspend", uuid=uuid, generation=6)["success"]
    assert site.call("status", uuid=uuid)["generation"] == 6
    assert site.call("destroy", uuid=uuid, generation=5)["code"] == "stale_generation"
    assert site.call("destroy", uuid=uuid, generation=7)["success"]
    late = site.start("gen", steady, uuid=uuid, generation=6)
    assert late["code"] == "destroyed"
    assert site.call("list", tombstones=True)["tombstones"][uuid] == 7
    assert list(site.call("list"))[:3] == ["vmachines", "foreign", "capacity"]
    assert "tombstones" not in site.call("list")
    assert site.start("gen", steady, uuid=uuid, generation=8)["success"]
    site.call("destroy", uuid=uuid, generation=9)


def test_apply_does_each_command_and_says_so(site, steady):
    uuid = "6d6c7f0e-0000-4000-8000-000000000003"
    start = {
        "verb": "start",
        "uuid": uuid,
        "generation": 1,
        "params": {"name": "batch", "hda_image": f"file://{steady}"},
    }
    missing = {"verb": "suspend", "uuid": "6d6c7f0e-0000-4000-8000-00000000000f", "generation": 1}
    reply = site.call("apply", actions=[start, missing])
    assert not reply["success"]
    assert [result["success"] for result in reply["results"]] == [True, False]
    assert [result["uuid"] for result in reply["results"]] == [uuid, missing["uuid"]]
    assert reply["results"][1]["code"] == "not_found"
    site.call("destroy", uuid=uuid)


def test_three_tries_then_failed_to_save_then_save_retry(site, bootchain):
    image = bootchain("fails.raw", folder=site.images, variant="key")
    uuid = site.start("fails", image)["uuid"]
    site.wait("fails", "running")
    site.saved.rename(site.folder / "away")
    site.end("fails")
    reply = site.wait("fails", "failed to save")
    assert "3 times" in reply["message"]
    kept = Path(reply["disks"]["hda"]["kept"])
    assert kept.parent.parent == site.folder / "data/failed_to_save"
    assert read_counter(kept, "qcow2") == 1
    log = (kept.parent / "helper.log").read_text()
    assert log.count("save disks, try") == 3
    assert site.call("start", name="fails", hda_image=f"file://{image}", mem_size=32)["code"] == "conflict"

    (site.folder / "away").rename(site.saved)
    assert site.call("save_retry", uuid=uuid)["success"]
    site.wait("fails", "halted")
    assert read_counter(site.saved_file("fails"), "qcow2") == 1
    assert list((site.folder / "data/failed_to_save").iterdir()) == []


def test_destroy_after_a_failed_save_keeps_the_folder(site, bootchain):
    site.start("precious", bootchain("precious.raw", folder=site.images, variant="key"))
    site.wait("precious", "running")
    site.saved.rename(site.folder / "away")
    site.end("precious")
    kept = Path(site.wait("precious", "failed to save")["disks"]["hda"]["kept"])
    (site.folder / "away").rename(site.saved)
    reply = site.call("destroy", name="precious")
    assert reply["success"]
    assert str(kept.parent) in reply["message"]
    assert read_counter(kept, "qcow2") == 1
    assert site.call("status", name="precious")["code"] == "not_found"


def test_changed_target_is_kept_and_a_conflict_name_used(site, bootchain):
    site.start("conflict", bootchain("conflict.raw", folder=site.images, variant="key"))
    site.wait("conflict", "running")
    site.saved_file("conflict").write_text("somebody else's work")
    site.end("conflict")
    reply = site.wait("conflict", "halted")
    assert site.saved_file("conflict").read_text() == "somebody else's work"
    other = Path(reply["disks"]["hda"]["saved_to"].removeprefix("file://"))
    assert other != site.saved_file("conflict")
    assert read_counter(other, "qcow2") == 1
    assert "changed meanwhile" in reply["message"]


def test_modify_changes_where_it_is_saved(site, bootchain):
    site.start("moved", bootchain("moved.raw", folder=site.images, variant="key"))
    site.wait("moved", "running")
    other = site.saved / "elsewhere.qcow2"
    assert site.call("modify", name="moved", hda_save_to=f"file://{other}")["success"]
    assert site.call("modify", name="moved", hda_save_to="file:///etc/cron.d/x")["code"] == "policy"
    site.end("moved")
    site.wait("moved", "halted")
    assert read_counter(other, "qcow2") == 1
    assert not site.saved_file("moved").exists()
    assert site.call("modify", name="moved", hda_save_to="")["code"] == "conflict"


def test_destroy_wins_over_a_start_under_way(site, short, httpserver):
    enough = threading.Event()
    httpserver.expect_request("/never.raw").respond_with_handler(lambda _request: _drip(enough))
    uuid = site.call("start", name="slow", hda_image=httpserver.url_for("/never.raw"))["uuid"]
    site.until(lambda: site.call("status", name="slow"), lambda reply: reply.get("progress"))
    assert site.call("destroy", uuid=uuid)["success"]
    assert site.call("status", uuid=uuid)["code"] == "not_found"
    site.until(lambda: {"helpers": helpers(site.settings, uuid)}, lambda reply: not reply["helpers"])
    enough.set()


def test_destroy_wins_over_a_server_that_says_nothing(site, httpserver):
    arrived, enough = threading.Event(), threading.Event()

    def mute(_request):
        arrived.set()
        enough.wait(PATIENCE_S)
        return Response()

    httpserver.expect_request("/mute.raw").respond_with_handler(mute)
    uuid = site.call("start", name="mute", hda_image=httpserver.url_for("/mute.raw"))["uuid"]
    assert arrived.wait(PATIENCE_S)
    reply = site.call("destroy", uuid=uuid)
    enough.set()
    assert reply["success"], reply
    assert site.call("status", uuid=uuid)["code"] == "not_found"


def _drip(enough):
    """A server that sends a byte now and then, and finishes on request only."""

    def chunks():
        while not enough.wait(0.1):
            yield b"x" * 4096

    return Response(chunks(), headers={"Content-Length": str(1 << 30)})


def test_many_looks_fork_one_helper(site, short, monkeypatch):
    """Regression: each look in the time that a helper needs to start forked another one."""
    started, start_process = [], launcher._start_process
    monkeypatch.setattr(launcher, "_start_process", lambda *how: started.append(how[1]) or start_process(*how))
    with monkeypatch.context() as patch:
        patch.setattr(launcher.forkserver_client, "request_fork", lambda *_: False)
        patch.setenv(ENVIRONMENT, "fetch.done=stop")  # still starting while they look
        uuid = site.start("looked-at", short)["uuid"]
        for _ in range(20):
            site.call("status", name="looked-at")
            site.watcher.look()
        assert [job.uuid for job in started] == [uuid]
    (held,) = eventually(lambda: standing(site.settings, uuid))
    os.kill(held, signal.SIGCONT)
    site.wait("looked-at", "halted")


def test_plan_describes_a_start_and_changes_nothing(site, bootchain):
    image = bootchain("planned.raw", folder=site.images, variant="spin")
    parameters = {"name": "planned", "hda_image": f"file://{image}", "mem_size": 32}
    before = site.call("plan", **parameters)
    assert (before["fits"], before["bytes_to_fetch"], before["exists"]) == (True, image.stat().st_size, None)
    assert site.call("status", name="planned")["code"] == "not_found"
    uuid = site.call("start", **parameters)["uuid"]
    site.wait("planned", "running")
    after = site.call("plan", **parameters)
    assert (after["bytes_to_fetch"], after["exists"]) == (0, uuid)
    assert after["images"][0]["cached"]
    (entry,) = [entry for entry in site.call("cache")["images"] if f"file://{image}" in entry["uris"]]
    assert "planned" in entry["used_by"]
    assert entry["sha256"] == sha256(image)
    assert entry["sha256"] not in [gone["sha256"] for gone in site.call("cache_clean", preview=True)["images"]]
    too_big = site.call("plan", **{**parameters, "mem_size": 10**7})
    assert (too_big["success"], too_big["fits"], "10000000 MiB" in too_big["message"]) == (True, False, True)
    assert site.call("plan", **{**parameters, "hda_image": "ftp://x/y"})["code"] == "bad_request"
    site.call("destroy", name="planned")


def test_capabilities_describe_the_host(site):
    capabilities = site.call("capabilities")
    assert capabilities["hypervisors"]["kvm"]["acceleration"] == "tcg"
    assert {"file", "http", "https", "blank"} <= set(capabilities["fetch"])
    assert "file" in capabilities["save"]
