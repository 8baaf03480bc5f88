"""The helper dies, or meets a full or a broken disk, at every checkpoint of a life: nothing is lost or done twice.

One VM for each checkpoint and fault, all at once; the guest's own counter on its disk is the oracle: one boot.
"""

import re
from pathlib import Path

import pytest

from devstack.guests import read_counter
from tests.support import sha256
from worker_service.checkpoints import ENVIRONMENT

SOURCE = Path(__file__).parents[3] / "worker_service"
ELSEWHERE = {
    "create.named": "in the process that accepts, not in a helper: tests/unit/worker/test_store.py",
    "aside.moved": "only after three failed saves: below",
    "destroy.before_remove": "only when destroyed: below",
}
LIFE = (
    "fetch.chunk", "fetch.downloaded", "fetch.cached", "fetch.done", "build.disk_made", "boot.before", "boot.started",
    "seal.flattened", "seal.renamed", "save.part_written", "save.staged", "save.renamed", "save.committed",
    "save.noted", "clean.removed", "durable.before_rename", "durable.before_rename:3", "durable.before_rename:6",
    "durable.before_rename:9",
)  # fmt: skip
FAULTS = ("kill", "enospc", "eio")
CASES = [f"{point}={fault}" for point in LIFE for fault in FAULTS]


def vm_name(case):
    return re.sub(r"[^a-z0-9]", "-", case)


def test_every_checkpoint_in_the_source_is_tried():
    found = {name for path in SOURCE.rglob("*.py") for name in re.findall(r'checkpoint\("([^"]+)"\)', path.read_text())}
    assert found == {point.partition(":")[0] for point in LIFE} | set(ELSEWHERE)


@pytest.fixture(scope="module")
def lives(site, bootchain):
    """Start one VM a case with its fault ahead of it, then let the watcher pick up what fell."""
    for case in CASES:
        image = bootchain(f"{vm_name(case)}.raw", folder=site.images)
        with pytest.MonkeyPatch.context() as patch:
            with_fault(patch, site, case)
            reply = site.start(vm_name(case), image, mem_size=16)
        assert reply["success"], reply

    def at_the_end():
        listed = {vm["name"]: vm for vm in site.call("list")["vmachines"]}
        return {case: listed[vm_name(case)] for case in CASES}

    ends = ("halted", "failed to start", "failed to save")
    return site.until(at_the_end, lambda vms: all(vm["status"] in ends for vm in vms.values()), within_s=400)


@pytest.mark.parametrize("case", CASES)
def test_the_vm_reaches_its_right_end(site, lives, case):
    reply, saved = lives[case], site.saved_file(vm_name(case))
    assert reply["status"] == "halted", site.logs()
    assert read_counter(saved, "qcow2") == 1
    assert reply["disks"]["hda"]["sha256"] == sha256(saved)
    assert Path(f"{saved}.manifest.json").exists()


def test_nothing_is_left_behind(site, lives):
    assert site.leftovers() == set()
    assert sorted(path.name for path in site.saved.glob("*conflict*")) == []


def with_fault(monkeypatch, site, fault):
    """Every helper forked from now on meets the fault."""
    fork = site.worker.fork_helper

    def fork_with_fault(uuid):
        monkeypatch.setenv(ENVIRONMENT, fault)
        fork(uuid)
        monkeypatch.delenv(ENVIRONMENT)

    monkeypatch.setattr(site.worker, "fork_helper", fork_with_fault)


@pytest.mark.parametrize("fault", FAULTS)
def test_moving_to_failed_to_save_survives(fresh_site, bootchain, monkeypatch, fault):
    site = fresh_site
    image = bootchain("aside.raw", folder=site.images, seconds=1)
    site.start("aside", image)
    site.wait("aside", "running")
    site.saved.rename(site.folder / "away")
    with_fault(monkeypatch, site, f"aside.moved={fault}")
    site.until(lambda: {"moved": list(site.folder.glob("data/failed_to_save/*"))}, lambda reply: reply["moved"])
    monkeypatch.undo()
    reply = site.wait("aside", "failed to save")
    assert read_counter(Path(reply["disks"]["hda"]["kept"]), "qcow2") == 1


@pytest.mark.parametrize("fault", FAULTS)
def test_destroy_survives(fresh_site, bootchain, monkeypatch, fault):
    site = fresh_site
    uuid = site.start("gone", bootchain("gone.raw", folder=site.images, variant="spin"))["uuid"]
    site.wait("gone", "running")
    with_fault(monkeypatch, site, f"destroy.before_remove={fault}")
    site.call("destroy", uuid=uuid, timeout_s=0.3)
    monkeypatch.undo()
    site.until(lambda: site.call("status", uuid=uuid), lambda reply: not reply["success"])
    site.until(lambda: {"left": site.leftovers()}, lambda reply: not reply["left"])
    assert not site.saved_file("gone").exists()
