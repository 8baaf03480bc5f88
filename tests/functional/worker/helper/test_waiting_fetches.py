"""Many VMs of one image: one helper fetches it, and the others wait in their records without a slot."""

import os
import signal
import threading
from contextlib import suppress
from pathlib import Path

import pytest
from werkzeug import Response

from tests.lib.support import PATIENCE_S, Site, eventually, helpers, stop_helpers
from worker_service.helper.prefetch import Orders
from worker_service.state.record import Phase

DISK = (os.urandom(510) + b"\x55\xaa").ljust(1 << 20, b"x")


class Store:
    """Serves one image, and finishes only when the test lets it."""

    def __init__(self, httpserver):
        self.heads, self.bodies, self.go_on = 0, 0, threading.Event()
        httpserver.expect_request("/slow.raw").respond_with_handler(self.serve)
        self.url = httpserver.url_for("/slow.raw")

    def serve(self, _request):
        self.heads += 1  # a check for changes is a GET as well, whose body is not read

        def chunks():
            yield DISK[:4096]
            yield DISK[4096 : 1 << 19]
            self.bodies += 1
            self.go_on.wait(PATIENCE_S)
            yield DISK[1 << 19 :]

        return Response(chunks(), headers={"Content-Length": str(len(DISK)), "ETag": '"v1"'})


@pytest.fixture
def store(httpserver):
    made = Store(httpserver)
    yield made
    made.go_on.set()


@pytest.fixture
def site(tmp_path):
    made = Site(tmp_path, libvirt_uri="test:///default", max_parallel_jobs=2, retry_delay_s=0.2)
    yield made
    stop_helpers(made.settings, tmp_path / "end.log")


def start(site, name, uri):
    reply = site.call("start", name=name, hda_image=uri, mem_size=16)
    assert reply["success"], reply
    return reply["uuid"]


def phase(site, uuid):
    """Read the status without a look, which would fork helpers."""
    return site.worker.store.read(uuid).phase


def at_work(site, uuids):
    """Return the VMs whose lock is held, by a helper or by its starter."""
    held = set()
    for file in Path("/proc").glob("[0-9]*/fd/*"):
        with suppress(OSError):
            held.add(str(file.readlink()))
    return [uuid for uuid in uuids if str(site.worker.store.vms / uuid / "lock") in held]


def require_one_at_work(site, store, uuids):
    """Wait until one VM fetches and all other helpers have exited."""
    eventually(lambda: store.bodies == 1 and len(at_work(site, uuids)) == 1)
    site.watcher.look()
    site.call("list")
    assert len(at_work(site, uuids)) == 1


def gone_on(site, uuids):
    return all(phase(site, uuid) is not Phase.FETCHING for uuid in uuids)


def test_waiting_for_another_download_holds_no_slot(site, store):
    waiting = [start(site, f"slow-{number}", store.url) for number in range(4)]
    require_one_at_work(site, store, waiting)
    text = site.images / "text.raw"
    text.write_text("no image".ljust(1024))
    other = start(site, "other", f"file://{text}")
    eventually(lambda: phase(site, other) is Phase.START_FAILED)
    assert not store.go_on.is_set()
    assert {phase(site, uuid) for uuid in waiting} == {Phase.FETCHING}

    store.go_on.set()
    eventually(lambda: gone_on(site, waiting))
    assert store.heads == len(waiting)  # each has asked once, and one has read


def test_fetcher_that_is_destroyed_hands_on_to_the_next(site, store):
    waiting = [start(site, f"slow-{number}", store.url) for number in range(3)]
    require_one_at_work(site, store, waiting)
    (first,) = at_work(site, waiting)
    assert site.call("destroy", uuid=first)["success"]
    waiting.remove(first)
    store.go_on.set()
    eventually(lambda: site.watcher.look() or gone_on(site, waiting))


def test_fetcher_that_is_killed_is_noticed_by_the_next_look(site, store):
    waiting = [start(site, f"slow-{number}", store.url) for number in range(3)]
    require_one_at_work(site, store, waiting)
    (first,) = at_work(site, waiting)
    for pid in helpers(site.settings, first):
        os.kill(pid, signal.SIGKILL)
    store.go_on.set()
    eventually(lambda: site.watcher.look() or gone_on(site, waiting))


def test_vm_waits_for_an_image_that_is_being_prefetched(site, store):
    Orders(site.worker).place(store.url, pin=False)
    eventually(lambda: store.bodies)
    waiting = [start(site, f"slow-{number}", store.url) for number in range(3)]
    eventually(lambda: not at_work(site, waiting))
    site.watcher.look()
    assert at_work(site, waiting) == []
    store.go_on.set()
    eventually(lambda: gone_on(site, waiting))  # no watcher had to look


def test_vm_of_a_cached_image_does_not_wait(site, store):
    store.go_on.set()
    first = start(site, "first", store.url)
    eventually(lambda: gone_on(site, [first]))
    second = start(site, "second", store.url)
    eventually(lambda: gone_on(site, [second]))
    assert store.heads == 2
