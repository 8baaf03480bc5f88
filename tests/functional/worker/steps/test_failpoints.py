"""The helper dies, or meets a full or broken disk, at every failpoint of a life: no disk is lost or saved twice.

One VM for each failpoint and fault. The guest's own counter on its disk is the oracle: one boot.
"""

import json
import os
import re
import time
from pathlib import Path

import pytest

from devstack.guests import read_counter
from tests.functional.worker.guest_agent.test_agent import POINTS as POINTS_OF_AN_AGENT
from tests.lib.faults import FAULTS, call_with_fault, faults_until_met, message_of, point_of, was_met
from tests.lib.support import a_site, eventually, helpers_alive, sha256
from worker_service.state.record import Phase

SOURCE = Path(__file__).parents[4] / "worker_service"
WRITES_TO_BOOT, WRITES_TO_END = 5, 9
"""Durable writes of the helper that boots a VM, and of the one that saves it."""
WRITES = [f"files.before_rename:{number + 1}" for number in range(WRITES_TO_BOOT + WRITES_TO_END)]
LIFE = (
    "fetch.chunk", "fetch.downloaded", "fetch.cached", "fetch.done", "build.disk_made", "boot.before", "boot.started",
    "flatten.flattened", "flatten.renamed", "save.part_written", "save.staged", "save.renamed", "save.committed",
    "save.noted", "clean.removed", *WRITES,
)  # fmt: skip
ALONE = {"create.named", "failed.moved", "failed.copied", "destroy.before_remove", "save.kept"}
"""Not in every life: each has a test of its own below; between filesystems, in test_failed_to_save.py."""
BEFORE_UP = {Phase.FETCHING, Phase.BUILDING, Phase.BOOTING}
ENDS = ("halted", "failed to start", "failed to save")
AT_ONCE = 6
CASES = [f"{point}={fault}" for point in LIFE for fault in FAULTS]


def vm_name(case):
    return re.sub(r"[^a-z0-9]", "-", case)


def test_every_failpoint_in_the_source_is_tried():
    found = {name for path in SOURCE.rglob("*.py") for name in re.findall(r'failpoint\("([^"]+)"\)', path.read_text())}
    assert found == {point_of(point) for point in LIFE} | ALONE | set(POINTS_OF_AN_AGENT)


@pytest.fixture(scope="module")
def site(libvirt):
    """More slots than VMs: a helper that starts because a slot is free is forked by another one, and meets no fault.

    The slot of a killed helper may become free a moment after its next helper started.
    """
    with a_site(max_parallel_jobs=2 * AT_ONCE) as made:
        yield made


def fault_of(record):
    """The fault of a VM for the helper that is forked now.

    Writes are counted in each helper. Where the guest is off before its first helper looks, that one does it all.
    """
    case = next(case for case in CASES if vm_name(case) == record.name)
    point, _, what = case.partition("=")
    name, _, count = point.partition(":")
    if not count or record.phase in BEFORE_UP:
        return case
    left = int(count) - WRITES_TO_BOOT
    return f"{name}:{left}={what}" if left > 0 else ""


@pytest.fixture(scope="module")
def lives(site, bootchain):
    """Start one VM a case with its fault ahead of it, a few at once; the watcher picks up what fell."""

    def unfinished():
        return [vm["name"] for vm in site.call("list")["vmachines"] if vm["status"] not in ENDS]

    def at_the_end():
        listed = {vm["name"]: vm for vm in site.call("list")["vmachines"]}
        return {case: listed[vm_name(case)] for case in CASES}

    with pytest.MonkeyPatch.context() as patch:
        faults_until_met(patch, site, fault_of)
        for case in CASES:
            site.until(lambda: {"unfinished": unfinished()}, lambda reply: len(reply["unfinished"]) < AT_ONCE)
            image = bootchain(f"{vm_name(case)}.raw", folder=site.images)
            reply = site.start(vm_name(case), image, mem_size=16)
            assert reply["success"], reply
        return site.until(at_the_end, lambda vms: all(vm["status"] in ENDS for vm in vms.values()))


@pytest.mark.parametrize("case", CASES)
def test_vm_reaches_its_right_end(site, lives, case):
    reply, saved = lives[case], site.saved_file(vm_name(case))
    assert was_met(site, reply["uuid"], case), site.logs()
    assert reply["status"] == "halted", site.logs()
    assert read_counter(saved, "qcow2") == 1
    assert reply["disks"]["hda"]["sha256"] == sha256(saved)
    assert json.loads(Path(f"{saved}.manifest.json").read_text())["sha256"] == sha256(saved)


def test_faults_leave_no_files(site, lives):
    assert site.leftovers() == set()
    assert sorted(path.name for path in site.saved.glob("*conflict*")) == []


def test_no_durable_write_of_a_life_is_left_out(site, bootchain):
    """A number above the count is met by no helper: a step with one more write needs more cases."""
    with pytest.MonkeyPatch.context() as patch:
        faults_until_met(patch, site, lambda record: f"files.before_rename:{beyond[record.phase in BEFORE_UP]}=kill")
        beyond = {True: len(WRITES) + 1, False: WRITES_TO_END + 1}
        uuid = site.start("beyond", bootchain("beyond.raw", folder=site.images), mem_size=16)["uuid"]
        site.wait("beyond", "halted")
    assert not was_met(site, uuid, "files.before_rename=kill")


@pytest.mark.parametrize("fault", FAULTS)
def test_moving_to_failed_to_save_survives(fresh_site, bootchain, monkeypatch, fault):
    site = fresh_site
    image = bootchain("aside.raw", folder=site.images, variant="key")
    faults_until_met(monkeypatch, site, lambda _: f"failed.moved={fault}")
    uuid = site.start("aside", image)["uuid"]
    site.wait("aside", "running")
    site.saved.rename(site.folder / "away")
    site.end("aside")
    reply = site.wait("aside", "failed to save")
    assert was_met(site, uuid, f"failed.moved={fault}")
    kept = Path(reply["disks"]["hda"]["kept"])
    assert kept.is_relative_to(site.folder / "data/failed_to_save")
    assert read_counter(kept, "qcow2") == 1
    assert reply["disks"]["hda"]["sha256"] == sha256(kept)
    (site.folder / "away").rename(site.saved)
    assert site.call("save_retry", uuid=uuid)["success"]
    site.wait("aside", "halted")
    assert read_counter(site.saved_file("aside"), "qcow2") == 1


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("point", ["save.committed", "save.noted", "save.kept"])
def test_disk_that_is_saved_and_kept_survives(fresh_site, bootchain, monkeypatch, point, fault):
    """Its other disk stays, so it does. It is saved once, under one name, and boots from its own disk again."""
    site, fault = fresh_site, f"{point}={fault}"
    image, data = bootchain("stays.raw", folder=site.images), {"hdb_image": "blank:1M"}
    faults_until_met(monkeypatch, site, lambda _: fault)
    uuid = site.start("stays", image, **data)["uuid"]
    for boots in (1, 2):
        reply = site.until(
            lambda: site.call("status", uuid=uuid),
            lambda reply: reply["status"] == "halted" and "kept" in reply["disks"]["hda"],
        )
        assert was_met(site, uuid, fault)
        assert reply["disks"]["hda"]["saved_to"] == f"file://{site.saved_file('stays')}"
        assert read_counter(site.saved_file("stays"), "qcow2") == boots
        assert read_counter(Path(reply["disks"]["hda"]["kept"]), "qcow2") == boots
        assert sorted(path.name for path in site.saved.iterdir()) == ["stays.qcow2", "stays.qcow2.manifest.json"]
        if boots == 1:
            assert site.start("stays", image, **data)["success"]


@pytest.mark.parametrize("fault", FAULTS)
def test_destroy_survives(fresh_site, bootchain, monkeypatch, fault):
    site, fault = fresh_site, f"destroy.before_remove={fault}"
    uuid = site.start("gone", bootchain("gone.raw", folder=site.images, variant="spin"))["uuid"]
    site.wait("gone", "running")
    eventually(lambda: not helpers_alive(site.settings, uuid))  # the one that boots it could destroy it as well
    faults_until_met(monkeypatch, site, lambda _: fault)
    with (site.worker.store.folder(uuid) / "helper.log").open() as log:  # it goes with the VM
        site.call("destroy", uuid=uuid, timeout_s=0.3)
        site.until(lambda: site.call("status", uuid=uuid), lambda reply: not reply["success"])
        assert message_of(fault) in log.read()
    site.until(lambda: {"left": site.leftovers()}, lambda reply: not reply["left"])
    assert not site.saved_file("gone").exists()
    assert site.call("list")["foreign"] == []


@pytest.mark.parametrize("what", FAULTS)
def test_fault_before_the_record_means_not_accepted(fresh_site, bootchain, what):
    """In the process that accepts, not in a helper: the name is taken, the record does not have its own yet."""
    site, fault = fresh_site, f"create.named={what}"
    image = bootchain("named.raw", folder=site.images)
    parameters = {"name": "named", "hda_image": f"file://{image}", "hda_save_to": f"file://{site.saved_file('named')}"}
    done = call_with_fault(site.settings, fault, "start", json.dumps(parameters))
    assert message_of(fault) in done.stderr
    assert done.returncode == (-9 if what == "kill" else 0)
    if what != "kill":
        assert json.loads(done.stdout)["success"] is False
    assert site.call("list")["vmachines"] == []
    assert site.call("status", name="named")["code"] == "not_found"
    # A repeated request gets the name.
    assert site.call("start", **parameters)["success"]
    site.wait("named", "halted")
    assert read_counter(site.saved_file("named"), "qcow2") == 1
    for half in site.folder.glob("data/vms/.new-*"):
        os.utime(half, times=(long_ago := time.time() - 3600, long_ago))
    site.watcher.look()
    assert site.leftovers() == set()
