"""Disks that could not be saved, with `failed_to_save` on another filesystem, a full one, or a read-only one."""

import os
import subprocess
from pathlib import Path

import pytest

from devstack.guests import read_counter
from tests.lib.faults import FAULTS, faults_until_met, was_met
from tests.lib.support import eventually, helpers_alive, sha256
from worker_service.images.cache import _YOUNG_S


def run(*argv):
    subprocess.run([str(each) for each in argv], check=True)


@pytest.fixture
def mounted():
    """Mounts something on a folder, and takes it away in the end."""
    places = []

    def mount(place, *options):
        run("mount", *options, place)
        places.append(place)

    yield mount
    for place in reversed(places):
        run("umount", "--lazy", place)


@pytest.fixture
def failing(fresh_site, bootchain):
    """Starts a VM, lets `before` happen while its guest runs, and lets all its saves fail; the reply once they did."""
    site = fresh_site

    def fail(name, before=lambda uuid: None):
        uuid = site.start(name, bootchain(f"{name}.raw", folder=site.images, variant="key"))["uuid"]
        site.wait(name, "running")
        eventually(lambda: not helpers_alive(site.settings, uuid))  # the one that booted it could save it as well
        site.saved.rename(site.folder / "away")
        before(uuid)
        site.end(name)
        return site.wait(name, "failed to save")

    return fail


def is_saved(site, reply):
    """Mend the target, ask for another round of tries, and see that the disk comes home."""
    (site.folder / "away").rename(site.saved)
    assert site.call("save_retry", uuid=reply["uuid"])["success"]
    site.wait(reply["name"], "halted")
    assert read_counter(site.saved_file(reply["name"]), "qcow2") == 1
    assert site.leftovers() == set()
    return True


def kept(reply):
    return Path(reply["disks"]["hda"]["kept"])


def test_disks_move_to_another_filesystem(fresh_site, failing, mounted):
    site, failed = fresh_site, fresh_site.worker.store.failed
    mounted(failed, "-t", "tmpfs", "-o", "size=64m,mode=711", "tmpfs")
    reply = failing("far")
    assert kept(reply).parent.parent == failed
    assert kept(reply).stat().st_dev != site.worker.store.vms.stat().st_dev
    assert read_counter(kept(reply), "qcow2") == 1
    assert (kept(reply).parent / "hda.manifest.json").exists()
    assert list(site.worker.store.vms.iterdir()) == []
    assert is_saved(site, reply)
    assert list(failed.iterdir()) == []
    assert [path.name for path in site.worker.store.vms.iterdir()] == [reply["uuid"]]


@pytest.mark.parametrize("fault", FAULTS)
def test_interrupted_move_is_finished(fresh_site, failing, mounted, fault):
    site, failed = fresh_site, fresh_site.worker.store.failed
    mounted(failed, "-t", "tmpfs", "-o", "size=64m,mode=711", "tmpfs")
    with pytest.MonkeyPatch.context() as patch:
        reply = failing("cut", lambda uuid: faults_until_met(patch, site, lambda _: f"failed.copied={fault}"))
    assert was_met(site, reply["uuid"], f"failed.copied={fault}")
    assert [vm["name"] for vm in site.call("list")["vmachines"]] == ["cut"]
    assert read_counter(kept(reply), "qcow2") == 1
    assert is_saved(site, reply)
    assert list(failed.iterdir()) == []


def stays_in_place(site, reply):
    assert kept(reply).parent == site.worker.store.vms / reply["uuid"]
    assert "Saving failed 3 times" in reply["message"]
    assert f"safe in {kept(reply).parent}, in place: they could not be moved to" in reply["message"]
    assert read_counter(kept(reply), "qcow2") == 1
    return True


def test_too_small_failed_to_save_keeps_disks_in_place(fresh_site, failing, mounted):
    site, failed = fresh_site, fresh_site.worker.store.failed
    mounted(failed, "-t", "tmpfs", "-o", "size=64k,mode=711", "tmpfs")
    reply = failing("full")
    assert stays_in_place(site, reply)
    assert "No space left" in reply["message"]
    assert list(failed.iterdir()) == []
    assert is_saved(site, reply)


def test_read_only_failed_to_save_keeps_disks_in_place(fresh_site, failing, mounted):
    site, failed = fresh_site, fresh_site.worker.store.failed
    mounted(failed, "--bind", failed)
    run("mount", "-o", "remount,bind,ro", failed)
    reply = failing("fixed")
    assert stays_in_place(site, reply)
    assert "Read-only" in reply["message"]
    # Its target is away still: another round of tries ends in the same way, and no try counts beyond the third.
    assert site.call("save_retry", uuid=reply["uuid"])["success"]
    assert stays_in_place(site, site.wait("fixed", "failed to save"))
    assert is_saved(site, reply)


def test_disks_are_moved_when_destroyed_in_place(fresh_site, failing, mounted):
    site, failed = fresh_site, fresh_site.worker.store.failed
    mounted(failed, "--bind", failed)
    run("mount", "-o", "remount,bind,ro", failed)
    reply = failing("precious")
    answer = site.call("destroy", uuid=reply["uuid"], timeout_s=1)
    assert answer["code"] == "timeout", answer
    status = site.until(lambda: site.call("status", uuid=reply["uuid"]), lambda reply: reply["problem"])
    assert "Read-only" in status["problem"]
    assert read_counter(kept(reply), "qcow2") == 1
    late = site.start("precious", site.images / "precious.raw", uuid=reply["uuid"], generation=1)
    assert late["code"] == "destroyed", late
    run("mount", "-o", "remount,bind,rw", failed)
    answer = site.call("destroy", uuid=reply["uuid"])
    (folder,) = failed.iterdir()
    assert f"its unsaved disks stay in {folder}" in answer["message"]
    assert read_counter(folder / kept(reply).name, "qcow2") == 1
    assert site.call("status", uuid=reply["uuid"])["code"] == "not_found"
    assert list(site.worker.store.vms.iterdir()) == []


def test_base_of_an_unflattened_disk_stays(fresh_site, failing):
    """Flattening failed too, and the VM is destroyed: the folder alone still needs the base."""
    site = fresh_site
    blocked = site.worker.store.vms
    reply = failing("overlay", lambda uuid: (blocked / uuid / "hda.flat.part/x").mkdir(parents=True))
    assert kept(reply).name == "hda.qcow2"
    destroyed = site.call("destroy", uuid=reply["uuid"])
    assert destroyed["success"], destroyed
    base = site.worker.cache.entries()[0]
    old = base.last_used - 2 * _YOUNG_S
    os.utime(site.worker.cache.path(base.sha256), (old, old))
    assert site.call("cache_clean")["images"] == []
    assert site.call("cache")["images"][0]["used_by"] == ["overlay"]
    assert read_counter(kept(reply), "qcow2") == 1
    subprocess.run(["rm", "-r", kept(reply).parent], check=True)  # an operator has taken the files that they need
    assert [gone["sha256"] for gone in site.call("cache_clean")["images"]] == [base.sha256]


def test_no_disk_gets_its_name_before_all_of_them_are_verified(fresh_site, bootchain):
    """The second disk's target is broken: the first one is not seen at its target either, in no try."""
    site = fresh_site
    data = site.images / "data.raw"
    data.write_bytes(b"payload".ljust(1 << 20, b"\0"))
    first, folder = site.saved_file("pair"), site.saved / "second"
    folder.mkdir()
    second = folder / "pair-b.qcow2"
    image = bootchain("pair.raw", folder=site.images, variant="key")
    uuid = site.start("pair", image, hdb_image=f"file://{data}", hdb_save_to=f"file://{second}")["uuid"]
    site.wait("pair", "running")
    folder.rename(site.folder / "away")
    site.end("pair")
    observed = set()

    def look():
        observed.update(path.name for path in site.saved.iterdir())
        return site.call("status", uuid=uuid)

    reply = site.until(look, lambda reply: reply["status"] == "failed to save")
    assert first.name not in observed
    assert {name for name in observed if not name.startswith(".")} == set()
    assert list(site.saved.iterdir()) == []
    assert "pair-b.qcow2" in reply["message"]
    assert all(Path(disk["kept"]).exists() and "saved_to" not in disk for disk in reply["disks"].values())
    log = (kept(reply).parent / "helper.log").read_text()
    assert log.count("save disks, try") == 3

    (site.folder / "away").rename(folder)
    assert site.call("save_retry", uuid=uuid)["success"]
    disks = site.wait("pair", "halted")["disks"]
    assert {slot: disk["saved_to"] for slot, disk in disks.items()} == {
        "hda": f"file://{first}",
        "hdb": f"file://{second}",
    }
    assert read_counter(first, "qcow2") == 1
    assert (sha256(first), sha256(second)) == (disks["hda"]["sha256"], disks["hdb"]["sha256"])
    assert sorted(path.name for path in site.saved.iterdir()) == [first.name, f"{first.name}.manifest.json", "second"]
    assert site.leftovers() == set()
