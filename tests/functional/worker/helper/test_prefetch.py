"""Prefetched images: durable, in the background, pinned on request, without VMs and libvirt."""

import os
import signal
import time
from contextlib import suppress
from pathlib import Path

import pytest

from tests.lib.support import Site, eventually, nurseries, sha256
from worker_service.core.failpoints import ENVIRONMENT
from worker_service.helper import forkserver_client, launcher
from worker_service.helper.prefetch import Orders


@pytest.fixture
def site(tmp_path):
    made = Site(tmp_path)
    yield made
    for _key, order in Orders(made.worker).all():
        Orders(made.worker).cancel(order.uri)
    eventually(lambda: not working(made))


def working(site):
    from worker_service.fs import locks

    for path in Orders(site.worker).folder.glob("*.lock"):
        fd = locks.lock(path, wait=False)
        if fd is None:
            return True
        os.close(fd)
    return False


def image(site, name="a.raw", size=8 << 20):
    path = site.images / name
    path.write_bytes((os.urandom(510) + b"\x55\xaa").ljust(1 << 20, b"x") + os.urandom(size - (1 << 20)))
    return path


def arrived(site):
    reply = site.call("cache")
    return reply["prefetching"] == [] and reply["images"]


def old(site):
    """Age the cache as if no VM had used it for an hour."""
    for entry in site.worker.cache.entries():
        then = time.time() - 3600
        os.utime(site.worker.cache.path(entry.sha256), (then, then))


def test_prefetched_image_is_there_before_any_start(site):
    path = image(site)
    reply = site.call("cache_prefetch", uri=f"file://{path}")
    assert reply == {"success": True, "message": reply["message"], "uri": f"file://{path}"}
    eventually(lambda: arrived(site))
    [there] = site.call("cache")["images"]
    assert (there["sha256"], there["uris"], there["pinned"]) == (sha256(path), [f"file://{path}"], False)
    assert there["sources"] == [{"uri": f"file://{path}", "owners": [""], "public": True}]
    assert site.call("cache_prefetch", uri=f"file://{path}")["success"]  # again: it is there
    eventually(lambda: arrived(site))


def test_pinned_image_survives_cleaning(site):
    path, other = image(site), image(site, "b.raw")
    site.call("cache_prefetch", uri=f"file://{path}", pin="true")
    site.call("cache_prefetch", uri=f"file://{other}")
    eventually(lambda: arrived(site))
    old(site)
    assert [each["sha256"] for each in site.call("cache_clean", preview=True)["images"]] == [sha256(other)]
    assert [each["sha256"] for each in site.call("cache_clean")["images"]] == [sha256(other)]
    assert site.call("cache_unpin", uri=f"file://{path}")["sha256"] == sha256(path)
    assert site.call("cache_pin", sha256=sha256(path))["success"]
    assert site.call("cache_clean")["images"] == []
    site.call("cache_unpin", sha256=sha256(path))
    assert len(site.call("cache_clean")["images"]) == 1
    assert site.call("cache_pin", sha256=sha256(path))["code"] == "not_found"


@pytest.mark.parametrize("point", ["fetch.chunk:3", "fetch.downloaded", "fetch.cached"])
def test_crash_is_noticed_and_it_goes_on(site, monkeypatch, point):
    path = image(site)
    monkeypatch.setenv(ENVIRONMENT, f"{point}=kill")
    site.call("cache_prefetch", uri=f"file://{path}", pin=True)
    monkeypatch.delenv(ENVIRONMENT)
    eventually(lambda: not working(site))
    [order] = [order for _key, order in Orders(site.worker).all()]
    assert (order.tries, order.problem) == (0, None)
    Orders(site.worker).start_pending()  # what the watcher does at each tick
    eventually(lambda: arrived(site))
    [there] = site.call("cache")["images"]
    assert (there["sha256"], there["pinned"]) == (sha256(path), True)
    assert site.leftovers() == set()


def test_progress_shows_and_cancelling_ends_it(site, monkeypatch):
    path = image(site, size=64 << 20)
    monkeypatch.setenv(ENVIRONMENT, "fetch.chunk:3=stop")  # holds still, as behind a slow server
    site.call("cache_prefetch", uri=f"file://{path}")
    monkeypatch.delenv(ENVIRONMENT)
    eventually(lambda: site.call("cache")["prefetching"][0]["progress"])
    [coming] = site.call("cache")["prefetching"]
    assert coming["progress"]["total"] == 64 << 20
    assert 0 < coming["progress"]["done"] < 64 << 20
    [lock] = Orders(site.worker).folder.glob("*.lock")
    pid = holder(lock)
    eventually(lambda: stopped(pid))
    assert site.call("cache_prefetch", uri=f"file://{path}", cancel=True)["success"]
    os.kill(pid, signal.SIGCONT)
    eventually(lambda: not working(site))
    reply = site.call("cache")
    assert (reply["images"], reply["prefetching"]) == ([], [])
    assert site.leftovers() == set()
    assert site.call("cache_prefetch", uri=f"file://{path}", cancel=True)["code"] == "not_found"


def holder(lock):
    """Pid of the process that carries out an order."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(OSError):
                words = (entry / "cmdline").read_bytes().split(b"\0")
                if b"worker_service.helper" in words and lock.stem.encode() in words:
                    return int(entry.name)
    return None


def stopped(pid):
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"


def test_three_tries_and_the_reason_stays_until_it_is_cleaned(site):
    path = image(site)
    bad = f"file://{path}#sha256={'0' * 64}"
    site.call("cache_prefetch", uri=bad)
    eventually(lambda: site.call("cache")["prefetching"][0]["given_up"])
    [coming] = site.call("cache")["prefetching"]
    assert "as demanded" in coming["problem"]
    assert coming["tries"] == 1  # another try would not help
    site.call("cache_clean", preview=True)
    assert site.call("cache")["prefetching"]
    site.call("cache_clean")
    assert site.call("cache")["prefetching"] == []


def test_fork_server_running_carries_out_the_order(site, monkeypatch):
    forkserver_client.ensure_running(site.worker.settings.data_root, site.worker.settings_argument)
    [pid] = eventually(lambda: forkserver_answers(site) and nurseries(site.settings))
    monkeypatch.setattr(launcher, "_start_process", lambda *_: pytest.fail("no process is needed"))
    path = image(site)
    try:
        site.call("cache_prefetch", uri=f"file://{path}")
        eventually(lambda: arrived(site))
    finally:
        os.kill(pid, signal.SIGKILL)
    assert "in the cache as" in (Orders(site.worker).folder / "log").read_text()


def forkserver_answers(site):
    with suppress(OSError), forkserver_client.connect(site.worker.settings.data_root):
        return True
    return False


@pytest.mark.parametrize("uri", ["", "blank:1G", "gopher://x/a", "file:///etc/shadow", "nonsense"])
def test_impossible_prefetch_is_refused(site, uri):
    assert site.call("cache_prefetch", uri=uri)["success"] is False
    assert list(Orders(site.worker).all()) == []
    assert site.call("cache_pin")["code"] == "bad_request"
