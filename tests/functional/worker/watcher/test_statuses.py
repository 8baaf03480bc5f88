"""Statuses of a VM while it starts and is saved. A slow or failing store makes every step visible."""

import os
import signal
import threading
from itertools import groupby
from pathlib import Path

import pytest
from werkzeug import Request, Response
from werkzeug.serving import make_server

from devstack.guests import read_counter
from tests.lib.support import sha256
from worker_service.contract import TRIES

_PIECE = 64 << 10


class Store:
    """An HTTP store whose requests wait until the test answers them.

    Attributes:
        kept: the stored objects by path.
        free: requests are answered at once, as any store would.
        broken: requests are answered by 503, one for each `let`.
    """

    def __init__(self):
        self.kept, self.free, self.broken = {}, threading.Event(), threading.Event()
        self._answers = threading.Semaphore(0)
        self._server = make_server("127.0.0.1", 0, self._serve, threaded=True)
        self.port = self._server.server_port
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def uri(self, name):
        return f"http://127.0.0.1:{self.port}/{name}"

    def let(self):
        """Let one request of those that wait, or come, be answered."""
        self._answers.release()

    @Request.application
    def _serve(self, request):
        if self.broken.is_set():
            self._answers.acquire(timeout=60)
            return Response(status=503)
        there = self.kept.get(request.path)
        if request.method == "PUT":
            data = request.get_data()
            self.free.wait(60)
            self.kept[request.path] = data
            return Response(status=201)
        if there is None:
            return Response(status=404)
        headers = {"Content-Length": str(len(there)), "ETag": '"1"', "Accept-Ranges": "bytes"}
        return Response(self._pieces(there) if request.method == "GET" else b"", headers=headers)

    def _pieces(self, data):
        """Slowly, until the store is free."""
        for at in range(0, len(data), _PIECE):
            self.free.wait(0.05)
            yield data[at : at + _PIECE]

    def close(self):
        self.free.set()
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def store():
    made = Store()
    yield made
    made.close()


@pytest.fixture
def site(fresh_site):
    fresh_site.__init__(fresh_site.folder, images='save_hosts = ["127.0.0.1"]\n')
    return fresh_site


def shown(site, uuid, *fields):
    """The statuses in the events of a VM, in order, each once."""
    reports = [tuple(data[field] for field in fields) for tag, data in site.events if uuid in tag]
    return [each for each, _ in groupby(reports)]


def test_statuses_arrive_as_events_in_order(site, store, bootchain):
    """And each is seen: the image comes slowly, the guest stays up until it is ended, the store takes its time."""
    image = bootchain("evented.raw", variant="spin", size=64 << 20)
    store.kept["/evented.raw"] = image.read_bytes()
    parameters = {"hda_image": store.uri("evented.raw"), "hda_save_to": store.uri("saved.qcow2"), "mem_size": 32}
    uuid = site.call("start", name="evented", **parameters)["uuid"]
    ask = lambda: site.call("status", uuid=uuid)  # noqa: E731

    reply = site.until(ask, lambda reply: (reply["progress"] or {}).get("done", 0) > 1 << 20)
    assert (reply["status"], reply["message"], reply["start_try"]) == ("starting", "Fetching its images.", 1)
    first = reply["progress"]
    assert (first["phase"], first["total"]) == ("fetch hda", image.stat().st_size)
    assert 0 < first["rate"] < first["total"]
    assert first["eta_s"] == pytest.approx((first["total"] - first["done"]) / first["rate"])
    later = site.until(ask, lambda reply: reply["progress"]["done"] > first["done"])["progress"]
    assert later["done"] < later["total"]
    store.free.set()

    site.wait("evented", "running")
    site.watcher.look()
    store.free.clear()
    os.kill(int(Path("/run/libvirt/qemu/evented.pid").read_text()), signal.SIGTERM)
    reply = site.until(ask, lambda reply: (reply["progress"] or {}).get("phase") == "save hda")
    assert (reply["status"], reply["save_try"], reply["start_try"]) == ("saving", 1, 0)
    assert reply["message"] == "It is off; saving its disks, try 1 of 3."
    site.watcher.look()
    store.free.set()
    reply = site.wait("evented", "halted")
    assert (reply["progress"], reply["save_try"]) == (None, 0)
    site.watcher.look()

    assert shown(site, uuid, "status") == [("starting",), ("running",), ("saving",), ("halted",)]
    tags = [tag for tag, _ in site.events if uuid in tag]
    assert [tag for tag, _ in groupby(tags)] == [
        f"vmachines/w1/{uuid}/{status}" for status in ("starting", "running", "saving", "halted")
    ]
    done = [progress["done"] for (progress,) in shown(site, uuid, "progress") if progress and "eta_s" in progress]
    assert len(set(done)) > 1


def each_try(site, store, uuid, status, field):
    """Look at each of the tries while the store lets it wait, then let it fail."""
    for number in range(1, TRIES + 1):
        reply = site.until(
            lambda: site.call("status", uuid=uuid),
            lambda reply, number=number: reply["status"] == status and reply[field] == number,
        )
        assert f"try {number} of {TRIES}" in reply["message"] or number == 1
        assert (reply["problem"] is None) == (number == 1), reply
        site.watcher.look()
        store.let()


def test_each_try_of_a_save_is_reported(site, store, bootchain):
    image = bootchain("tried.raw", folder=site.images, variant="key")
    uuid = site.start("tried", image, hda_save_to=store.uri("tried.qcow2"))["uuid"]
    site.wait("tried", "running")
    store.broken.set()
    site.end("tried")
    each_try(site, store, uuid, "saving", "save_try")
    store.let()  # in the end it is looked for what the tries left there
    reply = site.wait("tried", "failed to save")
    site.watcher.look()
    assert "Saving failed 3 times" in reply["message"]
    assert "503" in reply["message"]
    kept = Path(reply["disks"]["hda"]["kept"])
    assert kept.parent.parent == site.worker.store.failed
    assert read_counter(kept, "qcow2") == 1
    reports = [each for each in shown(site, uuid, "status", "save_try") if each[0] not in ("starting", "running")]
    assert [each for each in reports if each != ("saving", 0)] == [
        ("saving", 1),
        ("saving", 2),
        ("saving", 3),
        ("failed to save", 0),
    ]
    digest = sha256(kept)
    store.broken.clear()
    store.free.set()
    assert site.call("save_retry", uuid=uuid)["success"]
    reply = site.wait("tried", "halted")
    assert reply["disks"]["hda"]["saved_to"] == store.uri("tried.qcow2")
    (site.folder / "home.qcow2").write_bytes(store.kept["/tried.qcow2"])
    assert sha256(site.folder / "home.qcow2") == digest == reply["disks"]["hda"]["sha256"]
    assert list(site.worker.store.failed.iterdir()) == []


def test_each_try_of_a_fetch_is_reported(site, store):
    store.broken.set()
    uuid = site.call("start", name="untold", hda_image=store.uri("a.raw"), mem_size=32)["uuid"]
    each_try(site, store, uuid, "starting", "start_try")
    reply = site.wait("untold", "failed to start")
    assert ("503" in reply["message"], reply["start_try"]) == (True, 0)
    site.watcher.look()
    assert shown(site, uuid, "status", "start_try") == [
        ("starting", 1),
        ("starting", 2),
        ("starting", 3),
        ("failed to start", 0),
    ]
