"""VDI files: their header, and a chain of them as one raw disk."""

import os
import struct
from contextlib import ExitStack
from uuid import uuid4

import pytest

from worker_service.core.errors import BadImage
from worker_service.images import vdi

BLOCK = vdi.BLOCK
SIZE = 3 * BLOCK + 512


def header(path):
    with path.open("rb") as file:
        return vdi.read(file.fileno())


def fill(path, number, byte, entry=None):
    """Write a block of a VDI, or an entry of its table alone."""
    at = header(path)
    with path.open("r+b") as file:
        if entry is None:
            size = max(os.fstat(file.fileno()).st_size, at.data_at)
            entry = -(-(size - at.data_at) // BLOCK)
            file.seek(at.data_at + entry * BLOCK)
            file.write(byte * BLOCK)
        file.seek(at.table_at + 4 * number)
        file.write(struct.pack("<I", entry))


def made(path, parent=None, comment="", size=SIZE):
    path.write_bytes(vdi.new(size, parent and header(parent), comment))
    return path


def flat(folder, *chain, largest=1 << 40, report=lambda _done, _total: None):
    with ExitStack() as opened:
        disks = [opened.enter_context(path.open("rb")).fileno() for path in chain]
        with (folder / "flat").open("w+b") as target:
            size = vdi.copy(disks, target.fileno(), largest, report)
    content = (folder / "flat").read_bytes()
    assert len(content) == size
    return content


def test_header_of_a_new_disk_is_read_back(tmp_path):
    base = header(made(tmp_path / "base.vdi"))
    own = header(made(tmp_path / "hda.vdi", tmp_path / "base.vdi", "ab" * 32))
    assert (base.size, base.blocks, base.parent, base.comment) == (SIZE, 4, vdi.NO_UUID, "")
    assert (own.parent, own.parent_modified, own.comment) == (base.uuid, base.modified, "ab" * 32)
    assert own.uuid not in (base.uuid, vdi.NO_UUID)


def test_disk_gets_a_uuid_of_its_own(tmp_path):
    path, uuid = made(tmp_path / "base.vdi"), uuid4()
    with path.open("r+b") as file:
        vdi.set_uuid(file.fileno(), uuid)
    assert (header(path).uuid, header(path).modified, header(path).size) == (uuid, uuid, SIZE)


def test_empty_disk_is_sparse_zeros(tmp_path):
    assert flat(tmp_path, made(tmp_path / "hda.vdi")) == bytes(SIZE)
    assert (tmp_path / "flat").stat().st_blocks == 0


def test_chain_shows_the_upper_block_of_each(tmp_path):
    base = made(tmp_path / "base.vdi")
    fill(base, 0, b"a")
    fill(base, 1, b"b")
    fill(base, 3, b"c")
    own = made(tmp_path / "hda.vdi", base)
    fill(own, 1, b"d")
    fill(own, 2, b"e")
    top = made(tmp_path / "top.vdi", own)
    fill(top, 2, b"", entry=0xFFFFFFFE)  # discarded: zeros
    done = []
    content = flat(tmp_path, top, own, base, report=lambda now, total: done.append((now, total)))
    assert content == b"a" * BLOCK + b"d" * BLOCK + bytes(BLOCK) + b"c" * 512
    assert done[-1] == (SIZE, SIZE)


def test_larger_disk_ends_with_zeros(tmp_path):
    base = made(tmp_path / "base.vdi", size=BLOCK)
    fill(base, 0, b"a")
    assert flat(tmp_path, made(tmp_path / "hda.vdi", base, size=2 * BLOCK), base) == b"a" * BLOCK + bytes(BLOCK)


def changed(path, at, data):
    with path.open("r+b") as file:
        file.seek(at)
        file.write(data)


@pytest.mark.parametrize(
    ("at", "data", "words"),
    [
        (0x40, b"\0\0\0\0", "it is no VDI"),
        (0x46, b"\2\0", "it is no VDI"),
        (0x4C, b"\3", "the type 3"),
        (0x178, b"\0\0\0\1", "its blocks have"),
        (0x17C, b"\0\2\0\0", "its blocks have"),
        (0x180, b"\3\0\0\0", "its table has 3 entries"),
        (0x180, b"\xff\xff\xff\xff", "its table has"),
        (0x1A8, bytes(15) + b"\1", "it names no parent, or one too many"),
    ],
)
def test_header_that_cannot_be_true_is_refused(tmp_path, at, data, words):
    path = made(tmp_path / "hda.vdi")
    changed(path, at, data)
    with pytest.raises(BadImage, match=words):
        header(path)


@pytest.mark.parametrize(("length", "words"), [(0, "too short"), (100, "too short"), (520, "within its table")])
def test_file_that_is_cut_off_is_refused(tmp_path, length, words):
    path = made(tmp_path / "hda.vdi")
    os.truncate(path, length)
    with pytest.raises(BadImage, match=words):
        flat(tmp_path, path)


def test_block_beyond_the_end_is_refused(tmp_path):
    path = made(tmp_path / "hda.vdi")
    fill(path, 0, b"", entry=5)
    with pytest.raises(BadImage, match="beyond its end"):
        flat(tmp_path, path)


def test_files_that_do_not_belong_together_are_refused(tmp_path):
    base, other = made(tmp_path / "base.vdi"), made(tmp_path / "other.vdi")
    own = made(tmp_path / "hda.vdi", base)
    for chain in ((own, other), (own,), (base, other)):
        with pytest.raises(BadImage, match="not the next of its files"):
            flat(tmp_path, *chain)


def test_disk_above_the_limit_is_refused(tmp_path):
    with pytest.raises(BadImage, match="above the limit of 512"):
        flat(tmp_path, made(tmp_path / "hda.vdi"), largest=512)
