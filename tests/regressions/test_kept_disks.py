"""Regression: the disks of a VM that stopped unexpectedly and starts again are its only ones, and must survive."""

import os
import signal
import subprocess
import threading
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest

from devstack.guests import read_counter
from tests.lib.faults import faults_until_met, was_met
from tests.lib.support import Site, eventually, helpers, helpers_alive, sha256, virsh
from worker_service.contract import HaltCause, Spec
from worker_service.helper import launcher
from worker_service.operations import start
from worker_service.operations.status_report import capacity
from worker_service.state.record import Disk, Phase, Record, new_uuid, with_disk

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


@pytest.fixture
def still(tmp_path, monkeypatch):
    """A worker whose helpers do nothing: the tests look at the records that the interfaces write."""
    site = Site(tmp_path, libvirt_uri="test:///default")
    monkeypatch.setattr(launcher, "start_helper", lambda *_: True)
    return site


def settle(site, name, phase, phase_since=NOW, **spec):
    """Make a VM of this name in a settled phase, as an earlier life left it, and return its parameters."""
    given = {"hda_image": f"file://{site.images}/a.raw", "hda_save_to": f"file://{site.saved}/{name}.qcow2", **spec}
    made = Record(
        uuid=new_uuid(),
        spec=Spec(name=name, **given),
        generation=1,
        phase=phase,
        phase_since=phase_since,
        created_at=NOW,
        halt_cause=HaltCause.CRASHED if phase is Phase.KEPT else HaltCause.GUEST,
        disks={slot: Disk(base="d") for slot in ("hda", "hdb") if given.get(f"{slot}_image")},
    )
    assert site.worker.store.create(made) is None
    return {"name": name, **given}


def phase_of(site, name):
    return site.worker.store.find(name=name).phase


def free(site):
    return capacity(site.worker, tuple(site.worker.store.all())).mem_free


def test_memory_reserved_for_a_kept_vm_is_its_own(still):
    """Its memory counted twice: it was reserved for the kept VM, and missing in the free memory."""
    given = settle(still, "big", Phase.KEPT, phase_since=still.worker.now(), mem_size=free(still) * 2 // 3)
    assert still.call("plan", **{**given, "hda_image": "blank:1M"})["fits"]
    reply = still.call("start", **given)
    assert reply["success"], reply
    assert phase_of(still, "big") is Phase.BUILDING
    other = still.call("start", **{**given, "name": "other"})
    assert other["code"] == "no_room"
    more = settle(still, "more", Phase.KEPT, mem_size=16)
    assert still.call("start", **{**more, "mem_size": given["mem_size"]})["code"] == "no_room"


def test_two_at_once_do_not_both_get_the_last_memory(still, monkeypatch):
    """Only starts of new VMs were admitted one after the other."""
    half = free(still) * 2 // 3
    changes = [settle(still, name, Phase.DONE, mem_size=half) for name in ("one", "two")]

    def slow(*arguments, **keywords):
        check(*arguments, **keywords)
        time.sleep(0.3)

    check = start.require_capacity
    monkeypatch.setattr(start, "require_capacity", slow)
    replies = []
    threads = [threading.Thread(target=lambda g=given: replies.append(still.call("start", **g))) for given in changes]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(reply["success"] for reply in replies) == [False, True], replies


DATA = {"hdb_image": "blank:1M", "hdb_save_to": ""}


@pytest.mark.parametrize(
    ("had", "changes", "words"),
    [
        ({}, DATA, "hdb_image cannot be changed"),
        (DATA, {"hdb_image": None}, "hdb_image cannot be changed"),
        (DATA, {"hdb_image": "blank:2M"}, "hdb_image cannot be changed"),
        ({}, {"hda_image": "blank:1M", "hdb_image": "blank:1M"}, "hda_image, hdb_image cannot be changed"),
    ],
)
def test_restart_cannot_add_or_omit_kept_disks(still, had, changes, words):
    """An added disk broke each helper, and an omitted one was deleted without having been saved."""
    given = settle(still, "same", Phase.KEPT, **had)
    reply = still.call("start", **{**given, **changes})
    assert (reply["code"], words in reply["message"]) == ("conflict", True), reply
    assert "Call shutdown first" in reply["message"]
    assert phase_of(still, "same") is Phase.KEPT
    assert still.call("start", **{**given, "mem_size": 48})["success"]
    assert phase_of(still, "same") is Phase.BUILDING


def test_another_target_is_looked_at_when_it_is_named(still):
    """The VM's own disk at the new target may be overwritten. It is not what lay at the old one when the VM started."""
    given = settle(still, "moved", Phase.KEPT)
    there, uuid = still.saved / "there.qcow2", still.worker.store.find(name="moved").uuid
    still.put_saved(there, uuid=uuid)
    own = (f"file://{there}#sha256={sha256(there)}",)  # by this life, at an earlier halt
    still.worker.store.update(uuid, lambda record: with_disk(record, "hda", own_saves=own))
    assert still.call("start", **{**given, "hda_save_to": f"file://{there}"})["success"]
    disk = still.worker.store.find(name="moved").disks["hda"]
    assert disk.target_version is not None


@pytest.fixture
def crashed(fresh_site, bootchain):
    """Make a VM whose QEMU was killed after its guest had counted one boot. Return its parameters and its disk."""
    site = fresh_site
    image = bootchain("again.raw", folder=site.images, variant="spin")
    uuid = site.start("again", image)["uuid"]
    site.wait("again", "running")
    disk = site.worker.store.folder(uuid) / "hda.qcow2"
    eventually(lambda: counted(disk) == 1)
    os.kill(int(Path("/run/libvirt/qemu/again.pid").read_text()), signal.SIGKILL)
    site.until(lambda: site.call("status", name="again"), lambda reply: "kept" in reply["disks"]["hda"])
    eventually(lambda: not helpers_alive(site.settings, uuid))  # one of them could go on with what is asked for next
    return site, uuid, image, disk


def counted(disk):
    try:
        return read_counter(disk, "qcow2")
    except Exception:  # noqa: BLE001 - QEMU writes to it at this moment
        return None


@pytest.mark.parametrize("saved", [True, False])
def test_shutdown_while_it_is_started_again_saves_it(crashed, saved):
    """Its disk was deleted despite hda_save_to: before it has booted, it counted as never run."""
    site, uuid, image, disk = crashed
    target = site.saved_file("again")
    parameters = {} if saved else {"hda_save_to": ""}
    fault = "files.before_rename=kill"
    with pytest.MonkeyPatch.context() as patch:
        faults_until_met(patch, site, lambda _: fault)
        assert site.start("again", image, **parameters)["success"]  # its helper dies before it has noted anything
    eventually(lambda: was_met(site, uuid, fault) and not helpers(site.settings, uuid))
    assert phase_of(site, "again") is Phase.BUILDING
    assert site.call("shutdown", uuid=uuid)["success"]
    reply = site.wait("again", "halted")
    assert reply["halt_cause"] == "operator shutdown"
    assert target.exists() is saved
    if saved:
        assert reply["disks"]["hda"]["saved_to"] == f"file://{target}"
        assert read_counter(target, "qcow2") == 1
    assert not disk.exists()


def test_name_that_a_foreign_domain_has_taken_leaves_it_kept(crashed):
    """Its phase could not change to `kept`: each helper died of that, and it was starting for ever."""
    site, uuid, image, disk = crashed
    virsh("undefine", "again")
    foreign = "<domain type='qemu'><name>again</name><memory>65536</memory><os><type>hvm</type></os></domain>"
    (site.folder / "foreign.xml").write_text(foreign)
    subprocess.run(["virsh", "-q", "-c", "qemu:///system", "define", site.folder / "foreign.xml"], check=True)
    try:
        assert site.start("again", image)["success"]
        reply = site.wait("again", "halted")
        assert "has a domain named 'again' already" in reply["message"]
        assert reply["disks"]["hda"]["kept"] == str(disk)
        assert read_counter(disk, "qcow2") == 1
    finally:
        virsh("undefine", "again")
    assert site.start("again", image)["success"]
    reply = site.wait("again", "running")
    assert reply["halt_cause"] is None  # `crashed` was still shown of it
    site.call("destroy", uuid=uuid)


def test_missing_kept_disk_is_not_replaced_by_a_fresh_one(crashed):
    site, uuid, image, disk = crashed
    disk.rename(disk.with_suffix(".away"))
    assert site.start("again", image)["success"]
    reply = site.wait("again", "halted")
    assert f"The kept disk {disk} is missing" in reply["message"]
    disk.with_suffix(".away").rename(disk)
    assert site.start("again", image)["success"]
    site.wait("again", "running")
    eventually(lambda: counted(disk) == 2)
    site.call("destroy", uuid=uuid)
