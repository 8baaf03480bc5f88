"""Regression: a VM that was removed or moved during a look made the whole list fail, or seemed to be gone."""

import errno
import os

import msgspec
import pytest

from tests.lib.support import Site
from worker_service.helper import launcher
from worker_service.operations import status_report
from worker_service.state.lifecycle import Step
from worker_service.state.observation import read_readiness
from worker_service.state.record import Disk, Phase


@pytest.fixture
def site(tmp_path, monkeypatch):
    """A worker with two VMs whose images are to be fetched, and no helper."""
    made = Site(tmp_path, libvirt_uri="test:///default")
    with monkeypatch.context() as patch:
        patch.setattr(launcher, "start_helper", lambda *_: True)
        made.uuids = {name: made.call("start", name=name, hda_image="blank:1M", mem_size=16)["uuid"] for name in "ab"}
    return made


@pytest.fixture
def started(site, monkeypatch):
    """The uuids for which helpers were started."""
    uuids = []
    monkeypatch.setattr(
        "worker_service.helper.forkserver_client.request_fork", lambda root, job, *_: uuids.append(job.uuid) or True
    )
    return uuids


@pytest.fixture
def gone(site, monkeypatch):
    """`a` is removed right after another process has seen that a step of it is due."""

    def remove(_worker, record, _step):
        if record.name == "a":
            site.worker.store.remove(record)
        return False

    monkeypatch.setattr(launcher, "waits_for_download", remove)


@pytest.mark.usefixtures("gone")
def test_list_contains_the_other_vms(site, started):
    reply = site.call("list")
    assert reply["success"], reply
    assert "b" in [vm["name"] for vm in reply["vmachines"]]
    assert started == [site.uuids["b"]]
    assert [vm["name"] for vm in site.call("list")["vmachines"]] == ["b"]


def test_list_survives_kept_disks_that_disappear(site, started, monkeypatch):
    store = site.worker.store
    kept = {"phase": Phase.KEPT, "disks": {"hda": Disk()}}
    store.update(site.uuids["a"], lambda record: msgspec.structs.replace(record, **kept))

    def remove(worker, record, domain):
        if record.name == "a":
            store.remove(record)
        return read_readiness(worker, record, domain)

    for module in (launcher, status_report):
        monkeypatch.setattr(module, "read_readiness", remove)
    reply = site.call("list")
    assert reply["success"], reply
    assert "b" in [vm["name"] for vm in reply["vmachines"]]


@pytest.mark.usefixtures("gone")
def test_released_slot_goes_to_the_next_waiting_vm(site, started):
    launcher.start_waiting_helpers(site.worker, Step.FETCH)
    assert started == [site.uuids["b"]]


def test_folder_just_moved_counts_as_busy(site, started, monkeypatch):
    there = site.worker.store.folder(site.uuids["a"])
    away = there.rename(there.with_name(".gone-a"))
    monkeypatch.setattr(site.worker.store, "folder", lambda uuid: there)
    assert launcher.start_helper(site.worker, site.uuids["a"])
    assert started == []
    assert list(away.parent.iterdir())


@pytest.mark.parametrize("verb", ["list", "status"])
def test_listing_works_where_no_helper_can_start(site, monkeypatch, verb):
    def fail(*_):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(launcher, "start_helper", fail)
    reply = site.call(verb, **({"name": "a"} if verb == "status" else {}))
    assert reply["success"], reply


@pytest.fixture
def moving(site, monkeypatch):
    """`a` lies in failed_to_save, and is restored while that folder is searched."""
    store, scan = site.worker.store, os.scandir
    store.folders.move_to_failed(store.read(site.uuids["a"]), site.worker.now())
    moved = []

    def scan_late(path):
        if path == store.failed and not moved:
            moved.append(path)
            store.folders.restore_from_failed(site.uuids["a"])
        return scan(path)

    monkeypatch.setattr("worker_service.state.record_store.os.scandir", scan_late)
    return moved


def test_vm_restored_from_failed_to_save_is_listed(site, moving):
    assert {record.name for record in site.worker.store.all()} == {"a", "b"}
    assert moving


def test_vm_restored_from_failed_to_save_is_found(site, moving):
    assert site.worker.store.read(site.uuids["a"]).name == "a"
    assert moving


def test_vm_moved_to_failed_to_save_is_found(site, monkeypatch):
    store, load, uuid = site.worker.store, site.worker.store._load, site.uuids["a"]
    moved = []

    def load_late(path):
        if not moved:
            moved.append(None)
            moved[0] = store.folders.move_to_failed(load(path), site.worker.now())
        return load(path)

    monkeypatch.setattr(store, "_load", load_late)
    assert store.read(uuid).name == "a"
    assert store.folder(uuid) == moved[0]


def test_destroy_that_meets_the_end_of_another(site, monkeypatch):
    store, uuid = site.worker.store, site.uuids["a"]
    update = store.update

    def gone(identity, *arguments, **more):
        store.tombstones.write(identity, 2)
        store.remove(store.read(identity))
        return update(identity, *arguments, **more)

    monkeypatch.setattr(store, "update", gone)
    reply = site.call("destroy", uuid=uuid)
    assert (reply["success"], reply["message"]) == (True, "It is destroyed; nothing was saved.")
    assert store.tombstones.generation(uuid) == 2
