"""A VM is destroyed at every point of its life: it leaves nothing behind, and disks saved before stay.

At each failpoint a helper is stopped while destroy is called. Then it continues, or dies there. A file that lay at the
target before stays, unless the disk had its name already.
"""

import json
import os
import re
import signal
from pathlib import Path

import pytest

from devstack.guests import read_counter
from tests.lib.faults import faults_until_met, standing
from tests.lib.support import a_site, eventually, sha256, virsh
from worker_service.operations import verbs
from worker_service.state.record import Phase, new_uuid

BEFORE_IT_IS_SAVED = (
    "fetch.chunk", "fetch.downloaded", "fetch.cached", "fetch.done", "build.disk_made", "boot.before", "boot.started",
    "flatten.flattened", "flatten.renamed", "save.part_written", "save.staged",
)  # fmt: skip
SAVED = ("save.renamed", "save.committed", "save.noted", "clean.removed")
POINTS = (*BEFORE_IT_IS_SAVED, *SAVED)
HOW = {"goes on": signal.SIGCONT, "dies": signal.SIGKILL}
CASES = [f"{point} {how}" for point in POINTS for how in HOW]


def vm_name(case):
    return re.sub(r"[^a-z0-9]", "-", case)


@pytest.fixture(scope="module")
def site(libvirt):
    """A slot for each VM: its helper stays in it."""
    with a_site(max_parallel_jobs=len(CASES)) as made:
        yield made


def start(site, name, image, **parameters):
    """Start a VM from the disk that lies at its target since yesterday, which it may replace; return its uuid."""
    uuid = new_uuid()
    site.put_saved(site.saved_file(name), image)
    reply = site.start(name, site.saved_file(name), mem_size=16, uuid=uuid, **parameters)
    assert reply["success"], reply
    return uuid


def nothing_stays(site, uuid, name):
    """Of a VM that is destroyed."""
    assert site.call("status", name=name)["code"] == "not_found"
    assert site.worker.store.tombstones.generation(uuid) == 1
    assert site.start(name, site.images / "none.raw", uuid=uuid, generation=1)["code"] == "destroyed"
    assert site.call("destroy", uuid=uuid)["success"]  # again: it is gone already
    assert uuid not in virsh("list", "--all", "--uuid").split()
    assert not [path for path in site.saved.iterdir() if path.name.startswith(f".{name}.")]
    assert not list(site.saved.glob(f"{name}.conflict*"))
    site.watcher.look()
    assert (f"vmachines/w1/{uuid}/destroyed", {"uuid": uuid, "generation": 1}) in site.events
    return True


def is_as_before(site, name):
    target = site.saved_file(name)
    manifest = json.loads(Path(f"{target}.manifest.json").read_text())
    return read_counter(target, "raw") == 0 and manifest["sha256"] == sha256(target)


@pytest.fixture(scope="module")
def destroyed(site, bootchain):
    """The uuid of each case's VM, destroyed while its helper stood still, with what destroy answered meanwhile."""
    cases = {vm_name(case): case for case in CASES}
    with pytest.MonkeyPatch.context() as patch:
        faults_until_met(patch, site, lambda record: f"{cases[record.name].split()[0]}=stop")
        uuids = {name: start(site, name, bootchain(f"{name}.raw", folder=site.images)) for name in cases}
        waiting = set(uuids)

        def are_held():
            site.watcher.look()
            waiting.difference_update([name for name in waiting if standing(site.settings, uuids[name])])
            return not waiting

        eventually(are_held)
    answers = {name: site.call("destroy", uuid=uuid, timeout_s=0) for name, uuid in uuids.items()}
    for name, case in cases.items():
        (held,) = standing(site.settings, uuids[name])
        os.kill(held, HOW[case.partition(" ")[2]])
    site.until(lambda: site.call("list"), lambda reply: not reply["vmachines"])
    return {case: (uuids[name], answers[name]) for name, case in cases.items()}


@pytest.mark.parametrize("case", CASES)
def test_destroy_at_each_failpoint_leaves_nothing(site, destroyed, case):
    (uuid, answer), name = destroyed[case], vm_name(case)
    assert answer["code"] == "timeout", answer  # a helper was at work, and the work continued by itself
    assert nothing_stays(site, uuid, name)
    if case.split()[0] in BEFORE_IT_IS_SAVED:
        assert is_as_before(site, name)
    else:
        assert read_counter(site.saved_file(name), "qcow2") == 1


def test_no_disk_and_no_half_is_left(site, destroyed):
    assert site.leftovers() == set()
    assert list(site.worker.store.vms.iterdir()) == []
    assert list(site.worker.store.failed.iterdir()) == []


def suspended(site, uuid):
    site.wait(site.worker.store.read(uuid).name, "running")
    assert site.call("suspend", uuid=uuid)["success"]
    return site.call("status", uuid=uuid)


def shutting_down(site, uuid):
    site.wait(site.worker.store.read(uuid).name, "running")
    assert site.call("shutdown", uuid=uuid)["success"]
    return site.call("status", uuid=uuid)


def kept(site, uuid):
    site.wait(site.worker.store.read(uuid).name, "running")
    virsh("destroy", uuid)
    return site.until(lambda: site.call("status", uuid=uuid), lambda reply: "kept" in reply["disks"].get("hda", {}))


@pytest.mark.parametrize(
    ("reach", "status"),
    [(suspended, "suspended"), (shutting_down, "running"), (kept, "halted")],
)
def test_destroy_without_a_helper_leaves_nothing(fresh_site, bootchain, reach, status):
    site, name = fresh_site, "still"
    uuid = start(site, name, bootchain("still.raw", folder=site.images, variant="spin"))
    assert reach(site, uuid)["status"] == status
    answer = site.call("destroy", uuid=uuid)
    assert answer["success"], answer
    assert nothing_stays(site, uuid, name)
    assert is_as_before(site, name)
    assert site.leftovers() == set()


def test_destroy_keeps_saved_disks(fresh_site, bootchain):
    site = fresh_site
    uuid = start(site, "saved", bootchain("saved.raw", folder=site.images))
    digest = site.wait("saved", "halted")["disks"]["hda"]["sha256"]
    assert site.call("destroy", uuid=uuid)["success"]
    assert nothing_stays(site, uuid, "saved")
    assert sha256(site.saved_file("saved")) == digest
    assert Path(f"{site.saved_file('saved')}.manifest.json").exists()


def go_on_when_awaited(monkeypatch, helper):
    """Continue a stopped helper once the next destroy is recorded: not before, or the helper might end first."""
    wait = verbs._wait

    def awaited(*arguments):
        os.kill(helper, signal.SIGCONT)
        wait(*arguments)

    monkeypatch.setattr(verbs, "_wait", awaited)


@pytest.mark.parametrize("uploads", [True, False], ids=["while the second try uploads", "between two tries"])
def test_save_that_has_failed_once(libvirt, bootchain, monkeypatch, uploads):
    with a_site(retry_delay_s=3600.0) as site:  # the second try comes when it is asked for
        faults_until_met(monkeypatch, site, lambda _: "save.part_written=stop")
        record = site.worker.store.read
        uuid = start(site, "twice", bootchain("twice.raw", folder=site.images, variant="spin"))
        assert kept(site, uuid)
        site.saved.rename(site.folder / "away")
        assert site.call("shutdown", uuid=uuid)["success"]
        site.until(lambda: site.call("status", uuid=uuid), lambda _: record(uuid).phase is Phase.SAVING)
        site.until(lambda: site.call("status", uuid=uuid), lambda reply: reply["problem"])
        assert (record(uuid).tries, record(uuid).try_open) == (1, False)
        (site.folder / "away").rename(site.saved)
        if uploads:
            assert site.call("save_retry", uuid=uuid)["success"]
            eventually(lambda: standing(site.settings, uuid))
            assert (record(uuid).tries, record(uuid).try_open) == (2, True)
            assert list(site.saved.glob(".twice.*.part-*"))
            assert site.call("destroy", uuid=uuid, timeout_s=0)["code"] == "timeout"
            (held,) = standing(site.settings, uuid)
            go_on_when_awaited(monkeypatch, held)
        answer = site.call("destroy", uuid=uuid)
        assert answer["success"], answer
        assert "nothing was saved" in answer["message"]
        assert nothing_stays(site, uuid, "twice")
        assert is_as_before(site, "twice")
        assert site.leftovers() == set()
