"""A real Linux in the VM, on a host whose disk is full."""

import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

from devstack.guests import build_demo
from devstack.guests.build import CACHE
from tests.lib.console import PROMPT, Console
from tests.lib.support import Site, virsh
from worker_service.images.cache import free_bytes


@pytest.fixture(scope="module")
def demo_image(tmp_path_factory):
    image = tmp_path_factory.mktemp("demo") / "demo.qcow2"
    build_demo(image, CACHE)
    return image


def boot(site, name, demo_image, **options):
    """Start the guest, wait until one can type; its console."""
    image = site.images / "demo.qcow2"
    if not image.exists():
        image.write_bytes(demo_image.read_bytes())
    reply = site.start(name, image, mem_size=128, network="none", **options)
    assert reply["success"], reply
    site.wait(name, "running")
    console = Console(name, site.worker.store.folder(reply["uuid"]) / "console.log")
    console.wait(PROMPT)
    return console


@pytest.fixture
def small(libvirt):
    """A worker whose data root is a filesystem of 320 MiB."""
    folder = Path(tempfile.mkdtemp(prefix="saltern-site-", dir="/var/tmp"))
    folder.chmod(0o755)
    data = folder / "data"
    data.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=320m,mode=711", "tmpfs", str(data)], check=True)
    site = Site(folder, images="reserve_mib = 1\n")
    yield site
    site.close()
    subprocess.run(["umount", "--lazy", str(data)], check=True)
    shutil.rmtree(folder)


def test_guest_that_fills_its_hosts_disk_waits_and_runs_on(small, demo_image):
    """QEMU pauses it during a write, and no written data is lost."""
    site = small
    data = f"file://{site.saved}/data.qcow2"
    console = boot(site, "writer", demo_image, hdb_image="blank:96M", hdb_save_to=data)
    ballast = site.folder / "data/ballast"
    ballast.write_bytes(bytes(1 << 20) * (free_mib(site) - 8))
    # 24 MiB that are not the same twice: the sum of what was written, then the sum of what can be read again.
    console.type(
        "dd if=/dev/urandom bs=1M count=24 2>/dev/null | tee /dev/vdb | sha256sum >/tmp/a; sync; echo writ''ten"
    )
    status = lambda: site.call("status", name="writer")  # noqa: E731
    reply = site.until(status, lambda reply: reply.get("problem"), within_s=300)
    assert (reply["status"], "data root is full" in reply["problem"]) == ("running", True), reply
    assert "paused" in virsh("domstate", "writer")
    site.watcher.look()
    assert "paused" in virsh("domstate", "writer")  # there is no room yet
    assert site.call("list")["vmachines"][0]["problem"] == reply["problem"]

    ballast.unlink()
    site.until(status, lambda reply: not reply.get("problem"))
    console.wait("written", within_s=300)
    read = "echo 3 >/proc/sys/vm/drop_caches; head -c 25165824 /dev/vdb | sha256sum | cmp - /tmp/a && echo same"
    assert console.ask(read, within_s=300) == "same"
    console.type("poweroff")
    reply = site.wait("writer", "halted")
    assert reply["halt_cause"] == "guest shut down"
    assert reply["disks"]["hdb"]["saved_to"] == data


def free_mib(site):
    """Free space of a worker's data root."""
    return free_bytes(site.worker.store.root) >> 20
