"""Somebody else uses virsh on VMs of Saltern: no disk is lost, none forks, and nothing stays behind."""

import re
import subprocess

import pytest

from devstack.guests import read_counter
from tests.lib.support import a_site, eventually, virsh
from worker_service.contract import TRIES
from worker_service.images import image_lock, qemu_img
from worker_service.state.record import Phase

NAMES = (
    "snapped", "snapped-kept", "copied", "copied-kept", "pulled", "grown", "destroyed", "started", "resumed",
    "dropped", "internal", "marked", "listed", "busy", "open", "edited",
)  # fmt: skip


@pytest.fixture(scope="module")
def site(libvirt, bootchain):
    """A worker with VMs that wait for a key, each with one boot on its disk."""
    with a_site(max_parallel_jobs=len(NAMES)) as made:
        image = bootchain("key.raw", folder=made.images, variant="key")
        for name in NAMES:
            assert made.start(name, image)["success"]
        for name in NAMES:
            made.wait(name, "running")
            made.until_counted(name)
        yield made


def record_of(site, name):
    return site.worker.store.find(name=name)


def folder(site, name):
    return site.worker.store.folder(record_of(site, name).uuid)


def chain(site, name):
    return [layer.path for layer in record_of(site, name).disks["hda"].layers("hda")]


def writes(name):
    return int((re.search(r"wr_req (\d+)", virsh("domblkstat", name, "vda")) or [0, "0"])[1])


def boot_again(name):
    """Reset a guest, and wait until it has counted that boot."""
    before = writes(name)
    virsh("reset", name)
    eventually(lambda: writes(name) > before)


def until_kept(site, name):
    site.until(dict, lambda _: record_of(site, name).phase is Phase.KEPT)
    return site.call("status", name=name)


def snapshot(site, name):
    virsh("snapshot-create-as", name, "s", "--disk-only", "--atomic", "--no-metadata")
    boot_again(name)


def copy(site, name):
    file = site.folder / f"{name}.img"
    virsh("blockcopy", name, "vda", str(file), "--pivot", "--transient-job", "--wait")
    site.watcher.look()
    boot_again(name)


MOVES = {"snapped": snapshot, "copied": copy}


@pytest.mark.parametrize("name", MOVES)
def test_disk_is_saved_from_where_the_guest_wrote(site, name):
    MOVES[name](site, name)
    site.press(name)
    reply = site.wait(name, "halted")
    assert (reply["halt_cause"], reply["problem"]) == ("guest shut down", None), reply
    assert read_counter(site.saved_file(name), "qcow2") == 2
    assert [path for path in folder(site, name).iterdir() if path.name.startswith("hda")] == []
    assert not (site.folder / f"{name}.img").exists()


@pytest.mark.parametrize("name", MOVES)
def test_kept_vm_goes_on_where_the_guest_wrote(site, name):
    kept = f"{name}-kept"
    MOVES[name](site, kept)
    virsh("destroy", kept)
    reply = until_kept(site, kept)
    assert reply["disks"]["hda"]["kept"] == str(folder(site, kept) / chain(site, kept)[0])
    assert site.start(kept, site.images / "key.raw")["success"]
    site.wait(kept, "running")
    site.end(kept)
    site.wait(kept, "halted")
    assert read_counter(site.saved_file(kept), "qcow2") == 3


def test_disk_of_an_edited_definition_is_not_trusted(site):
    definition = site.folder / "edited.xml"
    other = site.folder / "other.qcow2"
    qemu_img.create_blank(other, 1 << 20)
    known = f"{folder(site, 'edited')}/hda.qcow2"
    definition.write_text(virsh("dumpxml", "edited", "--inactive").replace(known, str(other)))
    virsh("define", str(definition))
    site.press("edited")
    reply = until_kept(site, "edited")
    assert f"names {other} for hda" in reply["problem"]
    site.call("shutdown", name="edited")
    site.wait("edited", "halted")
    assert read_counter(site.saved_file("edited"), "qcow2") == 1
    assert other.exists()


def test_disk_without_its_base_is_saved(site):
    virsh("blockpull", "pulled", "vda", "--wait")
    site.press("pulled")
    site.wait("pulled", "halted")
    assert read_counter(site.saved_file("pulled"), "qcow2") == 1


def test_disk_that_was_made_larger_is_saved(site):
    virsh("blockresize", "grown", "vda", "2M")
    site.press("grown")
    site.wait("grown", "halted")
    assert read_counter(site.saved_file("grown"), "qcow2") == 1


def test_destroy_removes_all_files_of_a_disk(site):
    outside = site.folder / "outside.qcow2"
    virsh("snapshot-create-as", "destroyed", "s", "--disk-only", "--no-metadata", "--diskspec", f"vda,file={outside}")
    virsh("snapshot-create-as", "destroyed", "t", "--disk-only", "--no-metadata")
    site.watcher.look()
    assert outside.exists()
    here = folder(site, "destroyed")
    assert site.call("destroy", name="destroyed")["success"]
    assert not outside.exists()
    assert not here.exists()


def test_kept_vm_that_somebody_starts_is_running(site):
    virsh("destroy", "started")
    until_kept(site, "started")
    virsh("start", "started")
    assert site.call("status", name="started")["status"] == "running"
    reply = site.call("shutdown", name="started")
    assert (reply["success"], "It was asked to shut down." in reply["message"]) == (True, True)
    assert record_of(site, "started").phase is Phase.UP
    assert (folder(site, "started") / "hda.qcow2").exists()
    site.until_counted("started")
    site.press("started")
    site.wait("started", "halted")
    assert read_counter(site.saved_file("started"), "qcow2") == 2


def test_vm_that_somebody_starts_between_two_tries_runs(libvirt, bootchain):
    with a_site(retry_delay_s=3600.0) as site:
        site.start("ended", bootchain("ended.raw", folder=site.images, variant="key"))
        site.wait("ended", "running")
        site.saved.rename(site.folder / "away")
        site.end("ended")
        site.until(lambda: site.call("status", name="ended"), lambda reply: "try 2" in reply["message"])
        (site.folder / "away").rename(site.saved)
        flat = folder(site, "ended") / record_of(site, "ended").disks["hda"].flat_name("hda")
        assert flat.exists()
        virsh("start", "ended")
        site.wait("ended", "running")
        site.until(dict, lambda _: record_of(site, "ended").phase is Phase.UP)
        assert not flat.exists()
        site.end("ended")
        site.wait("ended", "halted")
        assert read_counter(site.saved_file("ended"), "qcow2") == 2


def test_guest_that_sleeps_is_woken(site, bootchain):
    site.start("asleep", bootchain("asleep.raw", folder=site.images, variant="sleep"))
    site.until(lambda: site.call("status", name="asleep"), lambda reply: reply["problem"])
    reply = site.call("status", name="asleep")
    assert (reply["status"], reply["message"][:18]) == ("running", "The guest sleeps: "), reply
    assert site.call("resume", name="asleep")["success"]
    eventually(lambda: writes("asleep") > 1)  # this guest boots when it is woken
    site.call("destroy", name="asleep")


def test_saved_memory_is_resumed(site):
    virsh("managedsave", "resumed")
    reply = until_kept(site, "resumed")
    assert reply["halt_cause"] == "memory saved"
    assert "start resumes it" in reply["message"]
    other = site.start("resumed", site.images / "key.raw", mem_size=64)
    assert (other["success"], other["code"]) == (False, "conflict"), other
    assert site.start("resumed", site.images / "key.raw")["success"]
    site.wait("resumed", "running")
    site.press("resumed")
    site.wait("resumed", "halted")
    assert read_counter(site.saved_file("resumed"), "qcow2") == 1


def test_saved_memory_is_dropped_by_a_shutdown_only(site):
    virsh("managedsave", "dropped")
    until_kept(site, "dropped")
    reply = site.call("shutdown", name="dropped")
    assert "Its saved memory is dropped." in reply["message"]
    site.wait("dropped", "halted")
    assert read_counter(site.saved_file("dropped"), "qcow2") == 1
    assert "dropped" not in virsh("list", "--all", "--name").split()


def test_vm_with_a_snapshot_ends_well(site):
    virsh("snapshot-create-as", "internal", "s1")
    site.press("internal")
    reply = site.wait("internal", "halted")
    assert "Its snapshots were dropped: s1." in reply["message"]
    assert read_counter(site.saved_file("internal"), "qcow2") == 1


def test_vm_with_a_backup_mark_starts_again_and_ends(site):
    virsh("checkpoint-create-as", "marked", "c1")
    virsh("destroy", "marked")
    until_kept(site, "marked")
    assert site.start("marked", site.images / "key.raw")["success"]
    site.wait("marked", "running")
    site.end("marked")
    site.wait("marked", "halted")
    assert read_counter(site.saved_file("marked"), "qcow2") == 2


def test_vm_with_a_snapshot_and_a_mark_is_destroyed(site):
    virsh("checkpoint-create-as", "listed", "c1")
    virsh("snapshot-create-as", "listed", "s1", "--disk-only")
    assert site.call("destroy", name="listed")["success"]
    assert "listed" not in virsh("list", "--all", "--name").split()


def test_vm_that_libvirt_works_on_is_left_alone(site):
    job = site.folder / "backup.xml"
    socket = site.folder / "nbd.sock"
    job.write_text(f"<domainbackup mode='pull'><server transport='unix' socket='{socket}'/></domainbackup>")
    site.folder.chmod(0o777)  # QEMU makes its socket there
    virsh("backup-begin", "busy", str(job))
    reply = site.call("status", name="busy")
    assert (reply["status"], reply["job"]) == ("running", "backup")
    for verb in ("suspend", "resume", "destroy"):
        refused = site.call(verb, name="busy")
        assert (refused["success"], refused["code"]) == (False, "conflict"), refused
        assert "virsh domjobabort busy" in refused["message"]
    virsh("domjobabort", "busy")
    site.until(lambda: site.call("status", name="busy"), lambda reply: reply["job"] == "")
    assert site.call("destroy", name="busy")["success"]


def test_disk_that_another_process_has_open_waits(site):
    virsh("destroy", "open")
    until_kept(site, "open")
    disk = folder(site, "open") / "hda.qcow2"
    with subprocess.Popen(["qemu-io", "-f", "qcow2", disk], stdin=subprocess.PIPE) as process:
        eventually(lambda: image_lock.is_written(disk))
        site.call("shutdown", name="open")
        reply = site.until(lambda: site.call("status", name="open"), lambda reply: reply["problem"])
        assert "fuser -v" in reply["problem"]
        for _ in range(TRIES + 1):
            record = record_of(site, "open")
            site.until(dict, lambda _, at=record.next_try_at: record_of(site, "open").next_try_at != at)
        assert record_of(site, "open").phase is Phase.FLATTENING
        process.communicate(b"quit\n")
    site.wait("open", "halted")
    assert read_counter(site.saved_file("open"), "qcow2") == 1
