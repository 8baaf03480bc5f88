"""Digests of what the disk holds: read past the page cache, on any filesystem, and once while the file is unchanged."""

import hashlib
import os
import subprocess
import tempfile
from pathlib import Path

import pytest

from tests.functional.worker.transfer.test_small_destination import ext4, run
from worker_service.core.errors import TransferFailed
from worker_service.fs import atomic_files, verify
from worker_service.images import flatten

BLOCK = 4 << 20


@pytest.fixture(autouse=True)
def _nothing_known(monkeypatch):
    monkeypatch.setattr(verify, "_cache", verify.DigestCache())


@pytest.fixture
def in_memory():
    """A folder on tmpfs."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        yield Path(folder)


@pytest.fixture
def damaged(tmp_path):
    """Make a file whose disk differs from the written bytes, which the page cache has. Return it and the bytes."""
    mount, folder = ext4(tmp_path), tmp_path / "mounted"
    folder.mkdir()
    try:
        run("mount", *mount, folder)
    except subprocess.CalledProcessError as err:
        pytest.skip(f"no loop device to mount: {err.stderr.decode()}")
    path = folder / "file"
    path.write_bytes(data := b"precious" + os.urandom(1 << 20))
    atomic_files.sync_file(path)
    damage(mount[-1], data[:64])
    yield path, data
    run("umount", "--lazy", folder)


def on_disk(path, **more):
    with path.open("rb") as file:
        return verify.digest_on_disk(file.fileno(), **more)


def digest(data):
    return hashlib.sha256(data).hexdigest()


def damage(device, old):
    """Change the disk's content below its filesystem, which does not notice it."""
    content = device.read_bytes()
    at = content.index(old)
    with device.open("r+b") as file:
        file.seek(at)
        file.write(b"damaged")


@pytest.mark.parametrize("size", [0, 1, 511, 4096, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK + 513])
def test_files_of_all_sizes(tmp_path, in_memory, size):
    data = os.urandom(size)
    for path in (tmp_path / "file", in_memory / "file"):
        path.write_bytes(data)
        observed = []
        assert on_disk(path, report=observed.append) == digest(data)
        assert observed == [*range(BLOCK, size, BLOCK), *([size] if size else [])]


def test_page_cache_does_not_count(damaged):
    path, data = damaged
    assert path.read_bytes() == data
    assert on_disk(path) == digest(b"damaged" + data[7:])
    assert path.read_bytes() == data  # the next reader need not wait for the disk


def test_filesystem_without_direct_io_drops_its_page_cache(damaged, monkeypatch):
    path, data = damaged
    monkeypatch.setattr(verify, "_direct_digest", lambda fd, report: None)
    assert on_disk(path) == digest(b"damaged" + data[7:])


@pytest.fixture
def reads(tmp_path):
    """Look for the expected digest in `tmp_path/file`, and return how often the file was read."""

    def look(expected, name="file"):
        reports = []
        found = on_disk(tmp_path / name, expected=digest(expected), report=reports.append)
        assert found == digest((tmp_path / name).read_bytes())
        return len(reports)

    (tmp_path / "file").write_bytes(b"disk")
    return look


def test_verified_file_is_not_read_again(tmp_path, reads):
    assert on_disk(tmp_path / "file") == digest(b"disk")
    (tmp_path / "link").hardlink_to(tmp_path / "file")
    (tmp_path / "link").chmod(0o600)
    assert [reads(b"disk"), reads(b"disk", "link")] == [0, 0]


def test_unverified_file_is_read_again(reads):
    assert [reads(b"another"), reads(b"another"), reads(b"disk")] == [1, 1, 0]


def test_file_that_changed_is_read_again(tmp_path, reads):
    assert reads(b"disk") == 1
    (tmp_path / "copy").write_bytes(b"disk")
    os.utime(tmp_path / "file", (1, 1))  # now may be the moment at which it was written
    assert [reads(b"disk"), reads(b"disk", "copy")] == [1, 1]


def test_reading_that_is_interrupted_is_not_remembered(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(data := os.urandom(BLOCK + 1))

    def stop(done):
        raise InterruptedError(done)

    with pytest.raises(InterruptedError):
        on_disk(path, report=stop)
    assert on_disk(path) == digest(data)


def test_disk_with_other_content_is_not_flattened(tmp_path, monkeypatch):
    path = tmp_path / "hda.flat.part"
    path.write_bytes(b"disk")
    assert flatten.digest_of_flat(path, lambda done, total: None) == digest(b"disk")
    assert path.stat().st_mode & 0o777 == 0o400
    monkeypatch.setattr(verify, "digest_on_disk", lambda fd, **more: "another")
    with pytest.raises(TransferFailed, match=r"hda\.flat\.part reads back as sha256 another, not [0-9a-f]{64}\. Check"):
        flatten.digest_of_flat(path, lambda done, total: None)


def test_cancelled_flattening_ends_at_once(tmp_path):
    path, reports = tmp_path / "hda.flat.part", []
    with path.open("wb") as file:
        file.truncate(1 << 36)  # neither finishes before the other one has started

    def unwanted(done, total):
        reports.append(done)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        flatten.digest_of_flat(path, unwanted)
    assert reports == [1 << 20]
    assert len(verify._cache) == 0
