"""A seat that was freed went to nobody before the watcher's next tick.

Somebody else looked for one for a VM just then; or whoever had started the helper still had the seat's descriptor open.
"""

import os

import pytest

from tests.lib.support import Site
from worker_service.fs import locks
from worker_service.helper import launcher, step_loop
from worker_service.helper.limits import JobLimits, acquire
from worker_service.state.lifecycle import Step


def test_there_is_one_more_look(tmp_path, monkeypatch):
    site = Site(tmp_path, libvirt_uri="test:///default", max_parallel_jobs=1)
    with monkeypatch.context() as patch:
        patch.setattr(launcher, "start_helper", lambda *_: True)
        uuid = site.call("start", name="a", hda_image="blank:1M", mem_size=16)["uuid"]
    born, looks = [], []
    monkeypatch.setattr(
        "worker_service.helper.forkserver_client.request_fork", lambda root, job, *_: born.append(job.uuid) or True
    )

    def taken_once(*where):
        """Whoever had it frees it now, and finds the VM's lock held: it seems that somebody is at it."""
        looks.append(where)
        return acquire(*where) if len(looks) > 1 else None

    monkeypatch.setattr("worker_service.helper.launcher.acquire", taken_once)
    assert launcher.start_helper(site.worker, uuid, "fetch")
    assert born == [uuid]


def test_where_all_are_taken_nobody_is_born(tmp_path, monkeypatch):
    site = Site(tmp_path, libvirt_uri="test:///default", max_parallel_jobs=0)
    born = []
    monkeypatch.setattr(
        "worker_service.helper.forkserver_client.request_fork", lambda root, job, *_: born.append(job.uuid) or True
    )
    uuid = site.call("start", name="a", hda_image="blank:1M", mem_size=16)["uuid"]
    assert not launcher.start_helper(site.worker, uuid, "fetch")
    assert born == []


@pytest.fixture
def held(tmp_path):
    """A lock that was handed over here, while the process that handed it over has it open still."""
    lock = locks.lock(tmp_path / "fetch-0")
    copy = os.dup(lock)
    yield lock
    os.close(copy)


def is_free(tmp_path):
    with locks.locked(tmp_path / "fetch-0", wait=False) as free:
        return free


def test_a_seat_that_was_used_is_free_at_once(tmp_path, held):
    with JobLimits(tmp_path, 1, ("fetch", held)).slot(Step.FETCH):
        assert not is_free(tmp_path)
    assert is_free(tmp_path)


def test_a_seat_that_was_left_is_free_at_once(tmp_path, held):
    JobLimits(tmp_path, 1, ("fetch", held)).release()
    assert is_free(tmp_path)


def test_a_vm_with_no_helper_any_more_is_free_at_once(tmp_path, held):
    (tmp_path / "site").mkdir()
    site = Site(tmp_path / "site", libvirt_uri="test:///default")
    step_loop.work(site.worker, "gone", JobLimits(tmp_path, 1), lock=held)
    assert is_free(tmp_path)
