"""The launcher starts one helper for each job, with its lock and its slot."""

import os

import pytest

from tests.lib.support import Site
from worker_service.fs import locks
from worker_service.helper import launcher
from worker_service.helper.jobs import PREFETCH_SLOT, PrefetchJob
from worker_service.helper.limits import has_free_slot
from worker_service.helper.prefetch import Orders


@pytest.fixture
def site(tmp_path):
    return Site(tmp_path, libvirt_uri="test:///default", max_parallel_jobs=1)


@pytest.fixture
def requests(monkeypatch):
    """The requests to the fork server; it keeps the descriptors open as its helpers would."""
    made, kept = [], []

    def request_fork(_root, job, kind, descriptors):
        made.append((job, kind))
        kept.extend(os.dup(descriptor) for descriptor in descriptors)
        return True

    monkeypatch.setattr("worker_service.helper.forkserver_client.request_fork", request_fork)
    yield made
    for descriptor in kept:
        os.close(descriptor)


def test_prefetch_gets_the_lock_and_the_slot(site, requests):
    folder = Orders(site.worker).folder
    assert launcher.start_prefetch(site.worker, "a")
    assert requests == [(PrefetchJob("a"), PREFETCH_SLOT)]
    with locks.locked(folder / "a.lock", wait=False) as free:
        assert not free
    assert not has_free_slot(site.worker.store.slots, PREFETCH_SLOT, 1)


def test_prefetch_running_is_not_started_twice(site, requests):
    Orders(site.worker)
    assert launcher.start_prefetch(site.worker, "a")
    assert launcher.start_prefetch(site.worker, "a")
    assert len(requests) == 1


def test_prefetch_without_a_slot_stays_pending(site, requests):
    folder = Orders(site.worker).folder
    assert launcher.start_prefetch(site.worker, "a")
    assert not launcher.start_prefetch(site.worker, "b")
    assert len(requests) == 1
    with locks.locked(folder / "b.lock", wait=False) as free:
        assert free
