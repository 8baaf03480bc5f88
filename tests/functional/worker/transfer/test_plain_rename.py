"""Disks saved where a rename can do less: SFTP without `posix-rename`, and exFAT by FUSE."""

import shutil
import subprocess
import time

import msgspec
import pytest

from tests.lib.stores import SftpServer
from tests.lib.support import sha256
from worker_service.core.errors import Refused
from worker_service.core.settings import ImagePolicy, SftpStore
from worker_service.steps import manifest
from worker_service.transfer.file import Files
from worker_service.transfer.sftp import Sftp
from worker_service.transfer.uri import parse

KEY = "6d6c7f0e-0000-4000-8000-000000000000-hda"
MANIFEST = b'{"sha256": "0", "saved_to": "there", "vm": {"uuid": "6d6c7f0e-0000-4000-8000-000000000000"}}'


def quiet(done, total):
    """Report to no one."""


def save(writer, uri, disk, observed=None, key=KEY):
    digest = sha256(disk)
    token = writer.stage(parse(uri), disk, digest, key, quiet)
    saved = writer.commit(parse(uri), token, digest, observed, key, quiet)
    manifest.write(writer, saved, MANIFEST, key, digest)
    return saved


@pytest.fixture
def disk(tmp_path):
    path = tmp_path / "hda.flat.qcow2"
    path.write_bytes(b"disk" * 1000)
    return path


@pytest.fixture(scope="module", params=["posix-rename,fsync,statvfs"])
def server(tmp_path_factory, request):
    made = SftpServer(tmp_path_factory.mktemp("server"), request.param)
    yield made
    made.close()


@pytest.fixture
def sftp(server):
    store = msgspec.convert(server.settings(), SftpStore, dec_hook=lambda kind, value: kind(value))
    shutil.rmtree(server.folder)
    server.folder.mkdir()
    return Sftp(ImagePolicy(http_networks=("127.0.0.0/8",), timeout_s=20, stores={server.store(): store}))


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_sftp_saves_new_disks_and_replaces_old_ones(server, sftp, disk):
    uri = server.uri("web.qcow2")
    assert save(sftp, uri, disk) == uri
    disk.write_bytes(b"newer" * 1000)
    assert save(sftp, uri, disk, sftp.observe(parse(uri))) == uri
    assert (server.folder / "web.qcow2").read_bytes() == disk.read_bytes()
    assert names(server.folder) == ["web.qcow2", "web.qcow2.manifest.json"]


def test_sftp_interrupted_between_two_renames_loses_nothing(server, sftp, disk):
    """The old disk is aside and the new one is not in its place yet."""
    uri, target = server.uri("web.qcow2"), server.folder / "web.qcow2"
    replaced = server.folder / f".web.qcow2.part-{KEY}.old"
    replaced.write_bytes(b"of yesterday")
    sftp.discard(parse(uri), disk, KEY)
    assert target.read_bytes() == b"of yesterday"  # the save was given up
    target.rename(replaced)
    assert save(sftp, uri, disk, "any") == uri
    assert names(server.folder) == ["web.qcow2", "web.qcow2.manifest.json"]
    assert sha256(target) == sha256(disk)


def test_sftp_replaces_no_folder(server, sftp, disk):
    uri = server.uri("web.qcow2")
    (server.folder / "web.qcow2/below").mkdir(parents=True)
    with pytest.raises(Refused, match="is a folder"):
        sftp.observe(parse(uri))
    (server.folder / "web.qcow2.manifest.json").mkdir()
    assert "conflict" in save(sftp, uri, disk)
    assert (server.folder / "web.qcow2/below").is_dir()


@pytest.fixture
def exfat(tmp_path):
    """A folder on exFAT by FUSE, which has neither hard links nor RENAME_NOREPLACE."""
    if not (shutil.which("mkfs.exfat") and shutil.which("mount.exfat-fuse")):
        pytest.skip("needs exfat-fuse and exfatprogs")
    image, folder = tmp_path / "exfat.img", tmp_path / "saved"
    folder.mkdir()
    with image.open("wb") as file:
        file.truncate(64 << 20)
    subprocess.run(["mkfs.exfat", image], check=True, stdout=subprocess.DEVNULL)
    attached = subprocess.run(["losetup", "--find", "--show", image], check=False, capture_output=True, text=True)
    if attached.returncode != 0:
        pytest.skip(f"no loop device: {attached.stderr}")
    loop = attached.stdout.strip()
    mounted = subprocess.Popen(
        ["mount.exfat-fuse", "-d", loop, folder], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    try:
        while not folder.is_mount():
            if mounted.poll() is not None:
                pytest.skip(f"no FUSE: {mounted.stderr.read().decode()}")
            time.sleep(0.02)
        yield folder
    finally:
        subprocess.run(["umount", folder], check=False, capture_output=True)
        mounted.wait()
        subprocess.run(["losetup", "--detach", loop], check=True)


def test_exfat_gets_new_disks_and_replaced_ones(exfat, disk):
    files, uri = Files(ImagePolicy(write_roots=(exfat,))), f"file://{exfat}/web.qcow2"
    assert save(files, uri, disk) == uri
    disk.write_bytes(b"newer" * 1000)
    assert save(files, uri, disk, files.observe(parse(uri))) == uri
    assert (exfat / "web.qcow2").read_bytes() == disk.read_bytes()
    assert names(exfat) == ["web.qcow2", "web.qcow2.manifest.json"]
    disk.write_bytes(b"of a VM that may not replace it")
    assert "conflict" in save(files, uri, disk)
