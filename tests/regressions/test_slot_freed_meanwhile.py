"""Regression: a slot that became free stayed unused until the watcher's next tick.

Another process was looking for a slot for the same VM at that moment. Or the process that had started the helper still
had the slot's descriptor open.
"""

import os

import pytest

from tests.lib.support import Site
from worker_service.fs import locks
from worker_service.helper import launcher, step_loop
from worker_service.helper.limits import JobLimits, acquire
from worker_service.state.lifecycle import Step


def test_slot_freed_meanwhile_is_found_by_a_second_look(tmp_path, monkeypatch):
    site = Site(tmp_path, libvirt_uri="test:///default", max_parallel_jobs=1)
    with monkeypatch.context() as patch:
        patch.setattr(launcher, "start_helper", lambda *_: True)
        uuid = site.call("start", name="a", hda_image="blank:1M", mem_size=16)["uuid"]
    forked, looks = [], []
    monkeypatch.setattr(
        "worker_service.helper.forkserver_client.request_fork", lambda root, job, *_: forked.append(job.uuid) or True
    )

    def acquire_late(*where):
        """The owner releases the slot now, and finds the VM's lock held, as if a helper were at work."""
        looks.append(where)
        return acquire(*where) if len(looks) > 1 else None

    monkeypatch.setattr("worker_service.helper.launcher.acquire", acquire_late)
    assert launcher.start_helper(site.worker, uuid, "fetch")
    assert forked == [uuid]


def test_no_free_slot_starts_no_helper(tmp_path, monkeypatch):
    site = Site(tmp_path, libvirt_uri="test:///default", max_parallel_jobs=0)
    forked = []
    monkeypatch.setattr(
        "worker_service.helper.forkserver_client.request_fork", lambda root, job, *_: forked.append(job.uuid) or True
    )
    uuid = site.call("start", name="a", hda_image="blank:1M", mem_size=16)["uuid"]
    assert not launcher.start_helper(site.worker, uuid, "fetch")
    assert forked == []


@pytest.fixture
def held(tmp_path):
    """Return a lock that was handed over. The process that handed it over still has it open."""
    lock = locks.lock(tmp_path / "fetch-0")
    copy = os.dup(lock)
    yield lock
    os.close(copy)


def is_free(tmp_path):
    with locks.locked(tmp_path / "fetch-0", wait=False) as free:
        return free


def test_used_slot_is_free_at_once(tmp_path, held):
    with JobLimits(tmp_path, 1, ("fetch", held)).slot(Step.FETCH):
        assert not is_free(tmp_path)
    assert is_free(tmp_path)


def test_released_slot_is_free_at_once(tmp_path, held):
    JobLimits(tmp_path, 1, ("fetch", held)).release()
    assert is_free(tmp_path)


def test_lock_of_a_removed_vm_is_free_at_once(tmp_path, held):
    (tmp_path / "site").mkdir()
    site = Site(tmp_path / "site", libvirt_uri="test:///default")
    step_loop.work(site.worker, "gone", JobLimits(tmp_path, 1), lock=held)
    assert is_free(tmp_path)
