"""Saving to a real filesystem that is full or read-only for a while: reported, tried again, and right in the end.

`retry_delay_s` is an hour, so that a try happens only when the test asks for it.
"""

import os
import re
import signal
import subprocess
from pathlib import Path

import pytest

from devstack.guests import read_counter
from tests.lib.faults import faults_until_met, standing
from tests.lib.support import a_site, eventually, helpers_alive, sha256, virsh
from worker_service.contract import TRIES
from worker_service.state.record import Phase, new_uuid
from worker_service.transfer.file import data_of

MIB = 1 << 20


def run(*argv):
    subprocess.run([str(each) for each in argv], check=True, capture_output=True)


def ext4(folder):
    """The options to mount a small ext4 on a loop device."""
    image = folder / "small.img"
    with image.open("wb") as file:
        file.truncate(8 * MIB)
    run("mkfs.ext4", "-q", "-m", "0", image)
    return ("-o", "loop", image)


FILESYSTEMS = {"tmpfs": lambda _: ("-t", "tmpfs", "-o", "size=2m", "tmpfs"), "ext4": ext4}


@pytest.fixture
def site(libvirt):
    with a_site(retry_delay_s=3600.0) as made:
        yield made


@pytest.fixture(params=FILESYSTEMS)
def small(site, request):
    """The folder that disks are saved to is a filesystem of a few MiB."""
    try:
        run("mount", *FILESYSTEMS[request.param](site.folder), site.saved)
    except subprocess.CalledProcessError as err:
        if request.param == "tmpfs":
            raise
        pytest.skip(f"no loop device to mount: {err.stderr.decode()}")
    yield site
    run("umount", "--lazy", site.saved)


def fill(site):
    """Leave nothing free."""
    ballast = site.saved / "ballast"
    with ballast.open("ab", buffering=0) as file:
        for size in (1 << 16, 1 << 12, 1):
            try:
                while True:
                    file.write(b"x" * size)
            except OSError:
                continue
    return ballast


def off(site, bootchain):
    """A VM whose guest has counted its boot and is off; its disk waits to replace that of yesterday. Its uuid."""
    uuid = new_uuid()
    site.put_saved(site.saved_file("small"), bootchain("small.raw", folder=site.images, variant="spin"))
    reply = site.start("small", site.saved_file("small"), mem_size=16, uuid=uuid)
    assert reply["success"], reply
    site.wait("small", "running")
    eventually(lambda: re.search(r"wr_req [1-9]", virsh("domblkstat", uuid, "vda")))  # it has counted
    virsh("destroy", uuid)
    site.until(lambda: site.call("status", uuid=uuid), lambda reply: "kept" in reply["disks"].get("hda", {}))
    eventually(lambda: not helpers_alive(site.settings, uuid))  # one of them could save it as well
    return uuid


def first_try(site, uuid):
    """Ask for the save, wait until its first try fails, and return the status."""
    assert site.call("shutdown", uuid=uuid)["success"]
    return failed(site, uuid, 1)


def failed(site, uuid, number):
    """The status after this try to save has failed."""

    def over(_):  # the answer is of a moment before
        record = site.worker.store.read(uuid)
        if number == TRIES:
            return record.phase is Phase.SAVE_FAILED
        return record.phase is Phase.SAVING and (record.tries, record.try_open) == (number, False)

    site.until(lambda: site.call("status", uuid=uuid), over)
    return site.call("status", uuid=uuid)


def next_try(site, uuid):
    assert site.call("save_retry", uuid=uuid)["success"]


def only_yesterdays(site):
    """The target has no part of the disk, and its old content is unchanged."""
    names = {path.name for path in site.saved.iterdir()} - {"ballast", "lost+found"}
    return names == {"small.qcow2", "small.qcow2.manifest.json"} and is_yesterdays(site)


def is_yesterdays(site):
    return read_counter(site.saved_file("small"), "raw") == 0


def is_home(site, uuid):
    """The flattened disk is at its target, and no other file is there."""
    reply = site.wait("small", "halted")
    disk, target = reply["disks"]["hda"], site.saved_file("small")
    assert disk["saved_to"] == f"file://{target}"
    assert disk["sha256"] == sha256(target)
    assert read_counter(target, "qcow2") == 1
    names = {path.name for path in site.saved.iterdir()} - {"ballast", "lost+found"}
    assert names == {target.name, f"{target.name}.manifest.json"}
    assert site.leftovers() == set()
    assert list(site.worker.store.failed.iterdir()) == []
    return reply["uuid"] == uuid


def is_kept(site, reply):
    """It could not be saved, and lies whole where the program never deletes."""
    disk = reply["disks"]["hda"]
    assert Path(disk["kept"]).is_relative_to(site.worker.store.failed)
    assert disk["sha256"] == sha256(Path(disk["kept"]))
    return read_counter(Path(disk["kept"]), "qcow2") == 1


def test_full_target_freed_in_time_gets_the_disk(small, bootchain):
    site, uuid = small, off(small, bootchain)
    ballast = fill(site)
    reply = first_try(site, uuid)
    assert (reply["status"], reply["save_try"]) == ("saving", 2)
    assert "No space left on device" in reply["problem"]
    assert str(site.saved_file("small")) in reply["problem"]
    assert only_yesterdays(site)
    ballast.unlink()
    next_try(site, uuid)
    assert is_home(site, uuid)


def test_full_target_freed_too_late_fails_the_save(small, bootchain):
    site, uuid = small, off(small, bootchain)
    ballast = fill(site)
    first_try(site, uuid)
    for number in range(2, TRIES + 1):
        next_try(site, uuid)
        reply = failed(site, uuid, number)
        assert only_yesterdays(site)
    assert reply["status"] == "failed to save"
    for words in ("Saving failed 3 times", "No space left on device", str(site.saved_file("small")), "save_retry"):
        assert words in reply["message"]
    assert is_kept(site, reply)
    ballast.unlink()
    next_try(site, uuid)
    assert is_home(site, uuid)


@pytest.mark.parametrize("small", ["tmpfs"], indirect=True)  # of which it is known what fits
def test_room_for_the_disk_and_not_for_its_manifest(small, bootchain):
    """It has its name already when the try fails; the next ones know it again, and save it once."""
    site, uuid = small, off(small, bootchain)
    for path in (site.saved_file("small"), Path(f"{site.saved_file('small')}.manifest.json")):
        path.unlink()
    ballast = fill(site)
    first_try(site, uuid)
    flat = site.worker.store.folder(uuid) / site.worker.store.read(uuid).disks["hda"].flat_name("hda")
    with flat.open("rb") as file:  # its holes take no room
        parts = list(data_of(file.fileno(), flat.stat().st_size))
    os.truncate(ballast, ballast.stat().st_size - sum(-(-(end - start) // 4096) * 4096 for start, end in parts))
    next_try(site, uuid)
    assert "No space left on device" in failed(site, uuid, 2)["problem"]
    assert read_counter(site.saved_file("small"), "qcow2") == 1
    next_try(site, uuid)
    reply = site.wait("small", "halted")
    assert "small.qcow2 could not be written" in reply["message"]
    assert "No space left on device. Free space there." in reply["message"]
    assert read_counter(site.saved_file("small"), "qcow2") == 1


@pytest.mark.parametrize("in_time", [True, False], ids=["for one try", "for all tries"])
def test_target_read_only_during_a_write_fails_the_try(small, bootchain, monkeypatch, in_time):
    site, uuid = small, off(small, bootchain)
    faults_until_met(monkeypatch, site, lambda _: "save.part_written=stop")
    assert site.call("shutdown", uuid=uuid)["success"]
    site.until(lambda: site.call("status", uuid=uuid), lambda _: standing(site.settings, uuid))
    run("mount", "-o", "remount,ro", site.saved)
    (held,) = standing(site.settings, uuid)
    os.kill(held, signal.SIGCONT)
    assert "Read-only file system" in failed(site, uuid, 1)["problem"]
    assert is_yesterdays(site)
    if not in_time:
        for number in range(2, TRIES + 1):
            next_try(site, uuid)
            reply = failed(site, uuid, number)
        assert "Read-only file system" in reply["message"]
        assert is_yesterdays(site)
        assert is_kept(site, reply)
    run("mount", "-o", "remount,rw", site.saved)
    next_try(site, uuid)
    assert is_home(site, uuid)
