"""Nobody but root and QEMU's user may read what a worker keeps: in the life of a VM, and in old data."""

import os
import shlex
import stat
import subprocess
from pathlib import Path

import pytest

from tests.lib.support import virsh
from worker_service.core import host
from worker_service.fs import private
from worker_service.state.context import WorkerContext

USER = host.user("libvirt-qemu")
IPXE = Path("/usr/lib/ipxe/ipxe.iso")


def open_to_others(root):
    """Return what others than root and QEMU's user may read, write or pass below a folder, and the folder if so."""
    found = []
    for path in (root, *root.rglob("*")):
        status = path.stat(follow_symlinks=False)
        if path.is_symlink() or (path.is_socket() and path.parent.name == "screen"):  # in a folder of QEMU's user
            continue
        mode = stat.S_IMODE(status.st_mode)
        if mode & 0o007 or (mode & 0o070 and status.st_gid != USER.gid) or status.st_uid not in (0, USER.uid):
            found.append(f"{mode:o} {status.st_uid}:{status.st_gid} {path.relative_to(root)}")
    return found


def run_as(user, *argv):
    words = ["setpriv", "--reuid", str(user.uid), "--regid", str(user.gid), "--clear-groups", "--", *map(str, argv)]
    return subprocess.run(words, check=False, capture_output=True).returncode


@pytest.fixture
def witness(fresh_site, monkeypatch):
    """The users that qemu-img has run as."""
    folder = fresh_site.folder / "bin"
    folder.mkdir()
    log = fresh_site.folder / "users"
    log.touch()
    log.chmod(0o666)
    (folder / "qemu-img").write_text(f'#!/bin/sh\nid -u >>{shlex.quote(str(log))}\nexec /usr/bin/qemu-img "$@"\n')
    (folder / "qemu-img").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return lambda: log.read_text().split()


def test_life_of_a_vm_leaves_nothing_open_to_others(fresh_site, witness, bootchain):
    site, data = fresh_site, fresh_site.folder / "data"
    image = bootchain("first.raw", folder=site.images, variant="key")
    (site.images / "ipxe.iso").write_bytes(IPXE.read_bytes())
    cd = f"file://{site.images}/ipxe.iso"
    (site.saved / "full").mkdir()
    target = f"file://{site.saved}/full/second.qcow2"
    for name, options in (("first", {"cd_image": cd}), ("seeded", {"minion_master": "10.0.0.1"})):
        reply = site.start(name, image, hdb_image="blank:1M", hdb_save_to=target, **options)
        assert reply["success"], reply
    site.wait("first", "running")
    site.wait("seeded", "running")
    assert list(data.glob("vms/*/seed.iso"))
    site.call("cache_prefetch", uri=cd)
    assert open_to_others(data) == []

    (base,) = [
        path for path in (data / "images/sha256").iterdir() if not path.suffix and path.stat().st_size == 1 << 20
    ]
    other = host.User(65534, 65534)
    for user, code in ((USER, 0), (other, 1)):
        assert run_as(user, "test", "-r", base) == code
    assert run_as(USER, "test", "-w", base) == 1
    assert run_as(USER, "chmod", "600", base) == 1  # libvirt has not made it QEMU's

    virsh("destroy", "first")
    site.wait("first", "halted")
    assert open_to_others(data) == []
    (site.saved / "full").rmdir()
    assert site.call("shutdown", name="first")["success"]
    site.wait("first", "failed to save")
    assert open_to_others(data) == []
    assert set(witness()) == {str(USER.uid)}


def test_data_of_an_older_worker_is_closed(tmp_path):
    root = tmp_path / "data"
    digest = "ab" * 32
    files = {
        "vms/6d6c/hda.qcow2": 0o644,
        "vms/6d6c/record.json": 0o600,
        "vms/6d6c/helper.log": 0o644,
        "failed_to_save/a-6d6c-now/hda.sealed.qcow2": 0o400,
        "failed_to_save/a-6d6c-now/hda.manifest.json": 0o644,
        f"images/sha256/{digest}": 0o444,
        f"images/sha256/{digest}.json": 0o644,
        "images/by-uri/key.json": 0o600,
        "images/prefetch/log": 0o644,
        "audit.jsonl": 0o644,
    }
    for name, mode in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
        (root / name).chmod(mode)
    (root / "vms/6d6c/screen").mkdir()
    os.chown(root / "vms/6d6c/screen", USER.uid, USER.gid)
    (root / "vms/6d6c/screen/lure").symlink_to(tmp_path)
    (root / "names").mkdir(mode=0o700)
    (root / "names/a").symlink_to("6d6c")
    tmp_path.chmod(0o755)
    (tmp_path / "worker.toml").write_text(f'data_root = "{root}"\n')

    WorkerContext(tmp_path / "worker.toml")

    assert open_to_others(root) == []
    modes = {name: stat.S_IMODE((root / name).stat().st_mode) for name in files}
    assert modes == {name: 0o440 if name.endswith(digest) else mode & 0o700 for name, mode in files.items()}
    for name in ("", "vms", "vms/6d6c", "failed_to_save/a-6d6c-now", "images", "images/sha256"):
        found = (root / name).stat()
        assert (stat.S_IMODE(found.st_mode), found.st_gid) == (private.FOLDER, USER.gid), name
    assert stat.S_IMODE((root / "images/by-uri").stat().st_mode) & 0o007 == 0
    assert stat.S_IMODE(tmp_path.stat().st_mode) == 0o755
