"""A small or full data root: requests that do not fit are refused with the numbers, and everything recovers.

The data root is a tmpfs. The hypervisor is libvirt's `test:///`, since no VM boots here.
"""

import os
import shutil
import subprocess
import tempfile
import threading
from contextlib import contextmanager, suppress
from pathlib import Path

import msgspec
import pytest
from werkzeug import Response

from tests.lib.support import PATIENCE_S, Site, eventually, sha256
from worker_service.contract import HTTP_STATUS, Code, Spec
from worker_service.images.cache import free_bytes
from worker_service.operations import start
from worker_service.state.record import Disk, Phase, Record, new_uuid
from worker_service.transfer.uri import parse

MIB = 1 << 20
RESERVE_MIB = 16


@pytest.fixture
def small():
    """A worker whose data root is a filesystem of 64 MiB."""
    folder = Path(tempfile.mkdtemp(prefix="saltern-site-", dir="/var/tmp"))
    data = folder / "data"
    data.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m,mode=711", "tmpfs", str(data)], check=True)
    site = Site(folder, images=f"reserve_mib = {RESERVE_MIB}\n", libvirt_uri="test:///default")
    yield site
    site.close()
    subprocess.run(["umount", "--lazy", str(data)], check=True)
    shutil.rmtree(folder)


def free_mib(site):
    return free_bytes(site.worker.store.root) / MIB


def fill(site, leave_mib=0):
    """Leave that many bytes free, or none."""
    ballast = site.folder / "data/ballast"
    with ballast.open("ab", buffering=0) as file:
        left = int((free_mib(site) - leave_mib) * MIB)
        os.posix_fallocate(file.fileno(), ballast.stat().st_size, left)
        with suppress(OSError):
            while not leave_mib:
                file.write(b"x")
    return ballast


def image(site, name, mib):
    """Make a disk that is not sparse."""
    path = site.images / name
    path.write_bytes((os.urandom(510) + b"\x55\xaa").ljust(mib * MIB, b"x"))
    return path


def cached(site, path):
    site.worker.cache.fetch(parse(f"file://{path}"), "disk", lambda done, total: None)
    return path


def plan(site, **parameters):
    reply = site.call("plan", name="planned", mem_size=32, **parameters)
    assert reply["success"], reply
    return reply


def test_too_large_file_is_refused_with_the_numbers(small):
    big = image(small, "big.raw", 100)
    reply = small.start("big", big)
    free = int(free_mib(small) - RESERVE_MIB)
    assert reply["code"] == "no_room"
    for words in ("100 MiB", f"{RESERVE_MIB} MiB", str(small.worker.store.root)):
        assert words in reply["message"]
    assert any(f" {mib} MiB" in reply["message"] for mib in (free - 1, free))  # a record took some of it meanwhile
    assert small.call("list")["vmachines"] == []
    planned = plan(small, hda_image=f"file://{big}")
    assert (planned["fits"], planned["bytes_to_fetch"]) == (False, 100 * MIB)
    assert "It would be refused: 'planned' needs 100 MiB for its images, and" in planned["message"]


def test_files_that_fit_alone_may_not_fit_together(small):
    one, two = image(small, "one.raw", 30), image(small, "two.raw", 30)
    assert plan(small, hda_image=f"file://{one}")["fits"]
    planned = plan(small, hda_image=f"file://{one}", hdb_image=f"file://{two}")
    assert (planned["fits"], planned["bytes_to_fetch"]) == (False, 60 * MIB)
    assert small.start("both", one, hdb_image=f"file://{two}")["code"] == "no_room"
    twice = plan(small, hda_image=f"file://{one}", hdb_image=f"file://{one}")  # one base under both
    assert (twice["fits"], twice["bytes_to_fetch"]) == (True, 30 * MIB)


def test_image_that_is_here_needs_no_room(small):
    here, other = cached(small, image(small, "here.raw", 20)), image(small, "other.raw", 20)
    fill(small, leave_mib=RESERVE_MIB + 5)
    planned = plan(small, hda_image=f"file://{here}")
    assert (planned["fits"], planned["bytes_to_fetch"]) == (True, 0)
    assert small.start("here", here)["success"]
    assert small.start("other", other)["code"] == "no_room"


def test_data_root_with_only_its_reserve_accepts_nothing(small):
    here = cached(small, image(small, "here.raw", 20))
    fill(small, leave_mib=RESERVE_MIB - 1)
    reply = small.start("none", here)
    assert reply["code"] == "no_room"
    assert f"{RESERVE_MIB} MiB" in reply["message"]
    assert not plan(small, hda_image=f"file://{here}")["fits"]


@pytest.mark.parametrize("parameter", ["hda_image", "hdb_image"])
@pytest.mark.parametrize("size", ["900000T", "2049G"])
def test_blank_disk_has_a_limit(small, parameter, size):
    parameters = {"hda_image": "blank:1G", parameter: f"blank:{size}"}
    for verb in ("start", "plan"):
        reply = small.call(verb, name="huge", mem_size=32, **parameters)
        assert (reply["success"], reply["code"]) == (False, "policy")
        assert "2048 GiB" in reply["message"]
        assert "max_virtual_gib" in reply["message"]


def test_blank_disk_is_thin(small):
    """It takes only what the guest writes. If that becomes too much, the guest is paused until there is room."""
    planned = plan(small, hda_image="blank:2T")
    assert (planned["fits"], planned["bytes_to_fetch"]) == (True, 0)


def test_missing_file_has_no_size_and_the_usual_error(small):
    assert small.call("start", name="none", hda_image=f"file://{small.images}/none.raw", mem_size=32)["success"]
    assert "No such file" in small.wait("none", "failed to start")["message"]


@pytest.mark.parametrize("has_length", [True, False])
def test_lack_of_room_is_found_by_the_helper(small, httpserver, has_length):
    """No store is asked during a request: it is accepted, and fails later with the numbers."""

    def serve(_request):
        chunks = (os.urandom(MIB) for _ in range(100))
        return Response(chunks, headers={"Content-Length": str(100 * MIB)} if has_length else {})

    httpserver.expect_request("/big.raw").respond_with_handler(serve)
    reply = small.call("start", name="big", hda_image=httpserver.url_for("/big.raw"), mem_size=32)
    assert reply["success"]
    reply = small.wait("big", "failed to start")
    assert f"{RESERVE_MIB} MiB" in reply["message"]
    assert "100 MiB" in reply["message"] or not has_length
    assert small.leftovers() == set()
    assert free_mib(small) > 55
    assert not plan(small, hda_image=httpserver.url_for("/big.raw"))["fits"] or not has_length


# No byte is left, not even for a record


@pytest.fixture
def fetching(small, httpserver):
    """A VM whose store does not answer: its helper runs and makes no progress."""
    arrived, ends = threading.Event(), threading.Event()

    def serve(_request):
        arrived.set()
        ends.wait(PATIENCE_S)
        return Response(b"")

    httpserver.expect_request("/slow.raw").respond_with_handler(serve)
    reply = small.call("start", name="slow", hda_image=httpserver.url_for("/slow.raw"), mem_size=32)
    assert reply["success"], reply
    assert arrived.wait(PATIENCE_S)  # from now on the helper writes nothing
    yield reply["uuid"]
    ends.set()


def spares(site):
    return sorted((site.folder / "data/reserve").glob("[0-9]*"))


def test_full_disk_refuses_new_vms_and_ends_old_ones(small, fetching):
    fill(small)
    reply = small.call("start", name="new", hda_image="blank:1G", mem_size=32)
    assert (reply["success"], reply["code"]) == (False, "disk_unavailable")
    assert spares(small)
    reply = small.call("destroy", name="slow")
    assert reply["success"], reply
    assert small.worker.store.tombstones.generation(fetching) == 1
    assert small.call("status", name="slow")["code"] == "not_found"


@contextmanager
def full(site):
    shutil.rmtree(site.folder / "data/reserve")
    (site.folder / "data/reserve").mkdir()
    ballast = fill(site)
    yield
    ballast.unlink()


@contextmanager
def read_only(site):
    data = str(site.folder / "data")
    subprocess.run(["mount", "-o", "remount,ro", data], check=True)
    yield
    subprocess.run(["mount", "-o", "remount,rw", data], check=True)


@pytest.mark.parametrize("broken", [full, read_only])
def test_unwritable_disk_is_reported_and_recovers(small, broken, monkeypatch):
    """Running VMs continue, and no process needs a restart."""
    halted(small, "kept", Phase.KEPT)
    # Room is asked for before a record is written; where the last of it has just gone, the record finds out.
    monkeypatch.setattr(start, "require_capacity", lambda *_args, **_kwargs: None)
    new = {"hda_image": "blank:1G", "name": "new", "mem_size": 32}
    with broken(small):
        for verb, parameters in (("start", new), ("shutdown", {"name": "kept"}), ("destroy", {"name": "kept"})):
            reply = small.call(verb, **parameters)
            assert (reply["success"], reply["code"]) == (False, "disk_unavailable"), (verb, reply)
            assert HTTP_STATUS[Code(reply["code"])] == 503
            assert "then retry" in reply["message"]
        assert [(vm["name"], vm["status"]) for vm in small.call("list")["vmachines"]] == [("kept", "halted")]
    assert small.call("shutdown", name="kept")["success"]
    small.wait("kept", "halted")
    assert small.saved_file("kept").exists()
    assert small.call("destroy", name="kept")["success"]
    assert small.call("start", **new)["success"]


def halted(site, name, phase=Phase.FLATTENING):
    """A VM that has halted, with a disk to save."""
    uuid, now = new_uuid(), site.worker.now()
    spec = Spec(name=name, hda_image="blank:8M", hda_save_to=f"file://{site.saved_file(name)}", mem_size=32)
    site.worker.store.create(
        Record(
            uuid=uuid, spec=spec, generation=1, phase=phase, phase_since=now, created_at=now,
            disks={"hda": Disk(virtual_size=8 * MIB)},
        )
    )  # fmt: skip
    disk = site.worker.store.folder(uuid) / "hda.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", str(disk), "8M"], check=True)
    argv = ["qemu-io", "-f", "qcow2", "-c", "write -P 0x5a 0 8M", str(disk)]
    subprocess.run(argv, check=True, capture_output=True)
    return uuid


def test_save_without_room_continues_when_there_is_some(small):
    """Flattening needs room here. Its failure is recorded all the same, and no disk is lost."""
    uuid = halted(small, "full")
    ballast = fill(small)
    reply = small.wait("full", "failed to save")
    assert "failed_to_save" in reply["message"]
    assert (small.worker.store.folder(uuid) / "hda.qcow2").exists()
    assert len(spares(small)) < 64
    ballast.unlink()
    assert small.call("save_retry", name="full")["success"]
    reply = small.wait("full", "halted")
    assert reply["disks"]["hda"]["sha256"] == sha256(small.saved_file("full"))
    eventually(lambda: small.watcher.look() or len(spares(small)) == 64)


def test_many_at_once_share_the_reserve(small):
    """Each takes a file of it that no other process takes."""
    uuids = [halted(small, f"vm-{number}") for number in range(4)]
    fill(small)

    def note(uuid):
        for _ in range(10):
            small.worker.store.update(uuid, lambda old: msgspec.structs.replace(old, tries=old.tries + 1, problem=uuid))

    threads = [threading.Thread(target=note, args=(uuid,)) for uuid in uuids]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [small.worker.store.read(uuid).problem for uuid in uuids] == uuids
    assert [small.worker.store.read(uuid).tries for uuid in uuids] == [10] * 4
    records = [small.worker.store.folder(uuid) / "record.json" for uuid in uuids]
    assert {path.stat().st_mode & 0o777 for path in records} == {0o600}


def test_exhausted_reserve_keeps_the_old_record(small):
    uuid = halted(small, "none")
    fill(small)
    with pytest.raises(OSError, match="No space left"):
        small.worker.store.update(uuid, lambda old: msgspec.structs.replace(old, problem="x" * MIB))
    assert small.worker.store.read(uuid).problem is None
    assert not list(small.worker.store.folder(uuid).glob(".*.part"))
