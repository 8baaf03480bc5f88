"""Images whose end is missing: found by their own tables, whatever said that they were complete."""

import gzip
import hashlib
import os
import struct
import subprocess
import zlib
from contextlib import suppress

import pytest

from worker_service.core.errors import BadImage
from worker_service.core.settings import ImagePolicy
from worker_service.fs import private
from worker_service.images import qemu_img
from worker_service.images.cache import Cache
from worker_service.images.inspection import inspect
from worker_service.images.overlay import Chain, Layer
from worker_service.transfer.uri import parse

MIB = 1 << 20
GPT = "<8sIIIIQQQQ16sQIII"
LIMIT = 1 << 40


def gpt(size, partitions, sector=512, *, backup=True, backup_at=None):
    """Return a disk with a GPT: partitions are (first, last) sectors."""
    last = size // sector - 1 if backup_at is None else backup_at
    entries = b"".join(struct.pack("<16s16sQQ80x", b"kind", b"id", *each) for each in partitions).ljust(16384, b"\0")

    def header(own, other, at):
        fields = [0x10000, 92, 0, 0, own, other, 34, last - 33, b"disk", at, 128, 128, zlib.crc32(entries)]
        made = struct.pack(GPT, b"EFI PART", *fields)
        fields[2] = zlib.crc32(made)
        return struct.pack(GPT, b"EFI PART", *fields)

    disk = bytearray(size)
    disk[446:462] = struct.pack("<B3xB3xII", 0, 0xEE, 1, 0xFFFFFFFF)
    disk[510:512] = b"\x55\xaa"
    disk[sector : sector + 92] = header(1, last, 2)
    disk[2 * sector : 2 * sector + len(entries)] = entries
    if backup:
        disk[last * sector : last * sector + 92] = header(last, 1, last - len(entries) // sector)
    return bytes(disk)


def mbr(size, *partitions):
    table = b"".join(struct.pack("<B3xB3xII", 0x80, 0x83, first, count) for first, count in partitions)
    return (bytes(446) + table.ljust(64, b"\0") + b"\x55\xaa").ljust(size, b"\0")


def cd(blocks):
    volume = struct.pack("<6s74xII32xIIHH", b"\x01CD001", blocks, 0, 0, 0, 2048, 0)
    return (
        bytes(16 * 2048) + volume.ljust(2048, b"\0") + (b"\xffCD001".ljust(2048, b"\0")) + bytes((blocks - 18) * 2048)
    )


CODE = os.urandom(64).replace(b"\0", b"\1")
DISK = gpt(4 * MIB, [(2048, 4095)])
CASES = {
    "gpt": (DISK, True),
    "gpt with sectors of 4 KiB": (gpt(4 * MIB, [(256, 400)], 4096), True),
    "gpt on a disk that was enlarged": (DISK + bytes(MIB), True),
    "gpt cut in its partition": (DISK[: 3 * MIB // 2], False),
    "gpt cut behind its partition": (DISK[: 3 * MIB], False),
    "gpt cut within the backup's sector": (DISK[:-1024], False),
    "gpt with sectors of 4 KiB, cut": (gpt(4 * MIB, [(256, 400)], 4096)[: 3 * MIB], False),
    "gpt cut and filled with zeros": (DISK[: 2 * MIB] + bytes(2 * MIB), False),
    "gpt without a backup": (gpt(4 * MIB, [(2048, 4095)], backup=False), False),
    "gpt with a partition behind its end": (gpt(4 * MIB, [(2048, 9000)]), False),
    "gpt that its checksum denies": (DISK[:560] + b"?" + DISK[561 : 3 * MIB], True),
    "mbr": (mbr(4 * MIB, (2048, 2048), (4096, 4096)), True),
    "mbr without the padding of its last partition": (mbr(3 * MIB, (2048, 2048), (4096, 4096)), True),
    "mbr cut before its last partition": (mbr(2 * MIB, (2048, 1000), (4096, 4096)), False),
    "boot sector with code in the place of a table": (bytes(446) + CODE + b"\x55\xaa" + bytes(512), True),
    "boot sector alone": (bytes(510) + b"\x55\xaa", True),
    "cd": (cd(1000), True),
    "cd without its padding": (cd(1000)[: -100 * 2048], True),
    "cd cut": (cd(1000)[: 600 * 2048], False),
}


@pytest.mark.parametrize("case", CASES)
def test_missing_end_is_noticed(tmp_path, case):
    data, whole = CASES[case]
    path = tmp_path / "image"
    path.write_bytes(data)
    if whole:
        assert inspect(path, max_virtual_size=LIMIT).size == len(data)
    else:
        with pytest.raises(BadImage, match="cut off"):
            inspect(path, max_virtual_size=LIMIT)
        inspect(path, max_virtual_size=LIMIT, may_lack_end=True)


@pytest.mark.parametrize("field", ["length", "own", "backup", "first", "last", "at", "count", "each"])
def test_untrusted_gpt_is_refused(tmp_path, field):
    """Each field at its largest value, under a valid checksum."""
    names = ["sign", "revision", "length", "sum", "zero", "own", "backup", "first", "last", "id", "at", "count", "each"]
    fields = [b"EFI PART", 0x10000, 92, 0, 0, 1, MIB // 512, 34, 2000, b"disk", 2, 128, 128, 0]
    fields[names.index(field)] = (1 << 32) - 1 if field in ("length", "count", "each") else (1 << 64) - 1
    fields[3] = zlib.crc32(
        struct.pack(GPT, *fields).ljust(512, b"\0") if field == "length" else struct.pack(GPT, *fields)
    )
    path = tmp_path / "image"
    path.write_bytes(bytes(510) + b"\x55\xaa" + struct.pack(GPT, *fields).ljust(MIB, b"\0"))
    with suppress(BadImage) if field == "own" else pytest.raises(BadImage, match="cut off"):
        inspect(path, max_virtual_size=LIMIT)


def qcow2(path, *options, size=8 * MIB):
    """Make a qcow2 with 4 MiB of data."""
    raw = path.with_suffix(".data")
    raw.write_bytes(os.urandom(4 * MIB) + bytes(size - 4 * MIB))
    subprocess.run(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", *options, raw, path], check=True)
    raw.unlink()
    return path


PLACES = {"L1": 40, "refcount table": 48, "snapshots": 64}
"""Table -> place of its offset in the header."""


@pytest.mark.parametrize("options", [(), ("-c",), ("-o", "cluster_size=4k"), ("-o", "extended_l2=on,cluster_size=64k")])
@pytest.mark.parametrize("share", [0.05, 0.6, 0.95])
def test_qcow2_that_is_cut_is_refused(tmp_path, options, share):
    path = qcow2(tmp_path / "a.qcow2", *options)
    qemu_img.check(path)
    os.truncate(path, int(path.stat().st_size * share))
    with pytest.raises(BadImage, match="cut off or damaged"):
        qemu_img.check(path)


@pytest.mark.parametrize("table", PLACES)
def test_qcow2_with_a_table_behind_its_end_is_refused(tmp_path, table):
    path = qcow2(tmp_path / "a.qcow2")
    with path.open("r+b") as file:
        if table == "snapshots":
            file.seek(60)
            file.write((1).to_bytes(4))
        file.seek(PLACES[table])
        file.write((1 << 40).to_bytes(8))
    with pytest.raises(BadImage, match="cut off or damaged"):
        qemu_img.check(path)


def test_qcow2_with_lost_clusters_is_used(tmp_path):
    """A crash of its QEMU leaves such an image. Nothing is missing in it."""
    path = qcow2(tmp_path / "a.qcow2")
    with path.open("r+b") as file:
        file.seek(48)
        table = int.from_bytes(file.read(8))
        file.seek(table)
        block = int.from_bytes(file.read(8))
        end = path.stat().st_size
        file.seek(block + 2 * (end // 65536))
        file.write((1).to_bytes(2))
    os.truncate(path, end + 65536)
    qemu_img.check(path)


def test_millions_of_faults_use_no_memory(tmp_path, monkeypatch):
    fake = tmp_path / "qemu-img"
    fake.write_text("#!/bin/sh\nyes 'Leaked cluster 1 refcount=1 reference=0' | head -n 100000 >&2\nexit 2\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    path = qcow2_header(tmp_path / "a.qcow2")
    with pytest.raises(BadImage, match="cut off or damaged") as failed:
        qemu_img.check(path)
    assert len(str(failed.value)) < 1000


def qcow2_header(path, encryption=0, features=0):
    path.write_bytes(struct.pack(">4sIQIIQIIQQIIQQQQII", b"QFI\xfb", 3, 0, 0, 16, MIB, encryption, 1, 65536 * 3, 65536,
                                 1, 0, 0, features, 0, 0, 4, 104).ljust(65536 * 4, b"\0"))  # fmt: skip
    return path


@pytest.mark.parametrize("method", [1, 2])
def test_encrypted_qcow2_is_refused(tmp_path, method):
    with pytest.raises(BadImage, match="encrypted"):
        inspect(qcow2_header(tmp_path / "a", encryption=method), max_virtual_size=LIMIT)


def test_encrypted_raw_disk_is_refused(tmp_path):
    (tmp_path / "a").write_bytes(b"LUKS\xba\xbe\0\1".ljust(MIB, b"\0"))
    with pytest.raises(BadImage, match="encrypted"):
        inspect(tmp_path / "a", max_virtual_size=LIMIT)


def test_qcow2_that_is_marked_as_corrupt_is_refused(tmp_path):
    with pytest.raises(BadImage, match="marked it as corrupt"):
        inspect(qcow2_header(tmp_path / "a", features=2), max_virtual_size=LIMIT)


class Shelf:
    """A cache, and a folder of images."""

    def __init__(self, folder):
        self.folder = folder
        self.cache = Cache(folder / "data", ImagePolicy(read_roots=(folder,), reserve_mib=0))
        (folder / "data").mkdir()
        self.cache.prepare()

    def fetch(self, path, use="data", end=""):
        return self.cache.fetch(parse(f"file://{path}{end}"), use, lambda _done, _total: None)

    def files(self):
        return sorted(path.name for path in (self.folder / "data/images").rglob("*") if path.is_file())


@pytest.fixture
def shelf(tmp_path):
    return Shelf(tmp_path)


def test_cut_image_is_not_cached(shelf, tmp_path):
    path = qcow2(tmp_path / "a.qcow2")
    os.truncate(path, int(path.stat().st_size * 0.6))
    with pytest.raises(BadImage, match=r"a\.qcow2 cannot be used. It is cut off"):
        shelf.fetch(path)
    (tmp_path / "b.raw").write_bytes(DISK[: 3 * MIB])
    with pytest.raises(BadImage, match=r"b\.raw cannot be used. It is cut off"):
        shelf.fetch(tmp_path / "b.raw", "disk")
    assert [name for name in shelf.files() if "lock" not in name] == []


def test_digest_proves_a_disk_whole(shelf, tmp_path):
    """OpenWrt leaves out the backup GPT."""
    data = gpt(4 * MIB, [(2048, 4095)], backup=False)
    (tmp_path / "b.raw").write_bytes(data)
    digest = hashlib.sha256(data).hexdigest()
    assert shelf.fetch(tmp_path / "b.raw", "disk", f"#sha256={digest}").digest == digest


def test_base_that_lost_its_end_is_not_used(shelf, tmp_path):
    """QEMU reads zeros behind the end of a base: they would be booted, and saved as good."""
    path = tmp_path / "a.raw"
    path.write_bytes(DISK)
    digest = shelf.fetch(path).digest
    base = shelf.cache.lend(digest)
    base.chmod(0o600)
    os.truncate(base, MIB)
    with pytest.raises(BadImage, match="has lost some"):
        shelf.cache.lend(digest)
    assert shelf.fetch(path).digest == digest  # it is fetched again
    assert shelf.cache.lend(digest).read_bytes() == DISK
    base.unlink()
    with pytest.raises(BadImage, match="is missing"):
        shelf.cache.lend(digest)


def test_base_of_an_older_version_is_examined_once(shelf, tmp_path):
    path = tmp_path / "a.raw"
    path.write_bytes(DISK)
    digest = shelf.fetch(path).digest
    note = shelf.cache.path(digest).with_name(f"{digest}.json")
    old = '{"format":"raw","virtual_size":%d,"bootable":true}'
    note.write_text(old % len(DISK))
    assert shelf.fetch(path).image.size == len(DISK)
    assert b'"size"' in note.read_bytes()
    note.write_text(old % MIB)
    base = shelf.cache.path(digest)
    base.chmod(0o600)
    os.truncate(base, MIB)
    with pytest.raises(BadImage, match="cut off"):
        shelf.fetch(path)


def test_flattened_disk_is_examined_before_it_is_saved(tmp_path, monkeypatch):
    whole, cut = qcow2(tmp_path / "whole.qcow2"), tmp_path / "cut.qcow2"
    cut.write_bytes(whole.read_bytes()[: 2 * MIB])
    qemu_img._require_flat(whole, qemu_img._QCOW2, 8 * MIB, None)
    with pytest.raises(BadImage, match="cut off"):
        qemu_img._require_flat(cut, qemu_img._QCOW2, 8 * MIB, None)
    raw = qemu_img.Form("raw")
    qemu_img._require_flat(cut, raw, 2 * MIB, None)
    with pytest.raises(BadImage, match="bytes, not"):
        qemu_img._require_flat(cut, raw, 8 * MIB, None)


FAULTS = {
    "L2 table behind its end": lambda file, l1, _l2: (file.seek(l1), file.write((1 << 63 | 1 << 40).to_bytes(8))),
    "data that is not aligned": lambda file, _l1, l2: (file.seek(l2), file.write((1 << 63 | 0x50200).to_bytes(8))),
    "end": lambda file, _l1, _l2: file.truncate(4 * 65536),
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("form", ["raw", "qcow2"])
def test_damaged_overlay_is_not_flattened(tmp_path, fault, form):
    """qemu-img reads zeros behind its end, and calls that a success."""
    overlay = tmp_path / "hda.qcow2"
    chain = Chain(layers=(Layer(str(overlay)),), base=None, base_format="qcow2", largest=8 * MIB)
    qemu_img.create_blank(overlay, 8 * MIB)
    argv = ["qemu-io", "-f", "qcow2", "-c", "write -P 7 0 1M", overlay]
    subprocess.run(argv, check=True, stdout=subprocess.DEVNULL)
    qemu_img.flatten(chain, tmp_path / "flat", lambda _done, _total: None, qemu_img.Form(form))
    with overlay.open("r+b") as file:
        file.seek(40)
        l1 = int.from_bytes(file.read(8))
        file.seek(l1)
        FAULTS[fault](file, l1, int.from_bytes(file.read(8)) & ~(1 << 63))
    (tmp_path / "flat").unlink()
    with pytest.raises(BadImage, match=r"hda\.qcow2 is damaged.*qemu-img check says: .*save_retry"):
        qemu_img.flatten(chain, tmp_path / "flat", lambda _done, _total: None, qemu_img.Form(form))
    assert not (tmp_path / "flat").exists()


@pytest.mark.parametrize(
    ("code", "errors", "words"),
    [
        (1, "qemu-img: error while writing at byte 0: No space left on device", "Free space there."),
        (1, "qemu-img: error while reading at byte 0: Input/output error", "Check that disk"),
        (1, "qcow2: Image is corrupt: x unaligned\nqemu-img: error while reading: Input/output error", "x unaligned."),
        (1, "qemu-img: Could not open 'json:{\"a\": 1}': L1 table is too small", "L1 table is too small."),
        (1, "", "no message."),
        (-25, "", "grew larger than such a disk can be."),
        (-24, "", "processor time."),
        (-9, "", "see its log."),
    ],
)
def test_failure_of_qemu_img_says_its_cause(code, errors, words):
    text = qemu_img._ending(code, errors.encode())
    assert words in text
    assert ("pace" in text) == ("No space" in errors)


def test_bytes_left_out_are_noted_with_the_image(shelf, tmp_path):
    (tmp_path / "a.img.gz").write_bytes(gzip.compress(DISK) + b"metadata")
    digest = shelf.fetch(tmp_path / "a.img.gz", "disk").digest
    assert shelf.cache.image(digest).note == "8 bytes behind the end of its .gz stream were ignored, as gzip does."


@pytest.mark.parametrize("suffix", ["tar", "tar.gz"])
@pytest.mark.parametrize("use", ["disk", "data", "cd"])
def test_tar_is_named_for_what_it_is(shelf, tmp_path, suffix, use):
    path = tmp_path / f"a.{suffix}"
    (tmp_path / "disk.raw").write_bytes(DISK)
    subprocess.run(["tar", "-caf", path, "-C", tmp_path, "disk.raw"], check=True)
    if use == "data" and suffix == "tar":
        assert shelf.fetch(path, use).image.is_tar  # a guest may read it as a tape
    else:
        with pytest.raises(BadImage, match=r"\.tar archive"):
            shelf.fetch(path, use)


def test_bases_stay_private(shelf, tmp_path):
    path = qcow2(tmp_path / "a.qcow2")
    assert shelf.cache.lend(shelf.fetch(path).digest).stat().st_mode & 0o777 == private.BASE
