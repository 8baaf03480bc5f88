"""Decompression and malicious compressed files, with real bytes and real limits."""

import bz2
import gzip
import lzma
import os
import resource
import zlib

import pytest
from backports import zstd

from worker_service.core.errors import BadImage
from worker_service.images import compression
from worker_service.images.compression import CHUNK, UnpackLimits, kind, unpack

LIMITS = UnpackLimits(output_bytes=1 << 30, ratio=1000, cpu_s=60)
PACKERS = {"gz": gzip.compress, "xz": lzma.compress, "zst": zstd.compress, "bz2": bz2.compress}
SKIPPED = b"\x52\x2a\x4d\x18\x04\0\0\0pzst"  # a frame that decoders skip, as pzstd writes it first
TEXT = os.urandom(100_000) + bytes(3 << 20) + b"the end"

hows = pytest.mark.parametrize("how", PACKERS)


def pieces(data, size):
    return (data[at : at + size] for at in range(0, len(data), size))


@hows
@pytest.mark.parametrize("size", [7, 65536, 1 << 24])
def test_unpacking_in_pieces_of_any_size(how, size):
    packed = PACKERS[how](TEXT)
    assert kind(packed) == how
    chunks = list(unpack(how, pieces(packed, size), LIMITS))
    assert b"".join(chunks) == TEXT
    assert max(map(len, chunks)) <= CHUNK


@hows
def test_streams_in_a_row_are_one_image(how):
    packed = PACKERS[how](TEXT) + PACKERS[how](b"more") + (b"\0" * 8 if how not in ("zst", "bz2") else b"")
    assert b"".join(unpack(how, pieces(packed, 1000), LIMITS)) == TEXT + b"more"


@pytest.mark.parametrize("first", [b"", b"\x1f\x8b", b"QFI\xfb", b"BZh91", b"PK\x03\x04", b"\xeb\x63\x90", b"\0" * 6])
def test_uncompressed_data_is_recognized(first):
    assert kind(first) is None


@hows
def test_cut_off_and_damaged(how):
    packed = PACKERS[how](TEXT)
    with pytest.raises(BadImage, match="ends too early"):
        list(unpack(how, pieces(packed[:-5], 1000), LIMITS))
    flipped = bytearray(checksummed(how))
    flipped[len(flipped) // 2] ^= 1
    with pytest.raises(BadImage, match=r"damaged|ends too early"):
        list(unpack(how, pieces(bytes(flipped), 1000), LIMITS))


def checksummed(how):
    """Compress with a checksum inside: gz and xz always have one."""
    options = {zstd.CompressionParameter.checksum_flag: 1}
    return zstd.compress(TEXT, options=options) if how == "zst" else PACKERS[how](TEXT)


@pytest.mark.parametrize("size", [1, 7, 1 << 20])
@pytest.mark.parametrize("rubbish", [b"!", b"\x1e\x8b", b"metadata of a firmware " * 9999])
def test_bytes_behind_a_gzip_stream_are_noted(rubbish, size):
    """OpenWrt appends metadata. gzip warns of it and leaves it out."""
    notes = []
    packed = gzip.compress(b"one") + gzip.compress(b"two") + bytes(5) + rubbish
    assert b"".join(unpack("gz", pieces(packed, size), LIMITS, notes.append)) == b"onetwo"
    assert notes == [f"{len(rubbish)} bytes behind the end of its .gz stream were ignored, as gzip does."]


@pytest.mark.parametrize("size", [1, 1 << 20])
def test_zeros_behind_a_gzip_stream_are_not_noted(size):
    notes = []
    assert b"".join(unpack("gz", pieces(gzip.compress(b"x") + bytes(512), size), LIMITS, notes.append)) == b"x"
    assert notes == []


@pytest.mark.parametrize("size", [1, 1 << 20])
def test_second_gzip_stream_that_is_cut_off_is_refused(size):
    for left in (3, 12):
        with pytest.raises(BadImage, match="ends too early"):
            list(unpack("gz", pieces(gzip.compress(b"one") + gzip.compress(b"two")[:left], size), LIMITS))


@pytest.mark.parametrize("at", ["first", "between", "last"])
def test_skippable_frames_of_zstd_are_skipped(at):
    one, two = zstd.compress(b"one"), zstd.compress(b"two")
    packed = {"first": SKIPPED + one + two, "between": one + SKIPPED + two, "last": one + two + SKIPPED}[at]
    assert kind(packed) == "zst"
    assert b"".join(unpack("zst", pieces(packed, 7), LIMITS)) == b"onetwo"


@pytest.mark.parametrize(
    ("first", "name"),
    [(b"PK\x03\x04....", "zip"), (b"7z\xbc\xaf\x27\x1c", "7z"), (b"Rar!\x1a\x07\0", "rar"), (b"LZIP\x01", "lz"),
     (b"\x04\x22\x4d\x18", "lz4")],
)  # fmt: skip
def test_archive_is_named_for_what_it_is(first, name):
    with pytest.raises(BadImage, match=rf"a \.{name} file. Unpack it"):
        compression.refuse_archive(first)
    with pytest.raises(BadImage, match=rf"a \.{name} file. Unpack it"):
        list(unpack("gz", iter([gzip.compress(first)]), LIMITS))


@pytest.mark.parametrize("how", ["xz", "zst", "bz2"])
def test_rubbish_after_the_end(how):
    with pytest.raises(BadImage, match="damaged"):
        list(unpack(how, pieces(PACKERS[how](b"x") + b"rubbish that is no stream", 1000), LIMITS))


@hows
@pytest.mark.parametrize("inner", PACKERS)
def test_one_layer_of_compression_is_removed(how, inner):
    with pytest.raises(BadImage, match="twice"):
        list(unpack(how, iter([PACKERS[how](PACKERS[inner](TEXT))]), LIMITS))


@hows
def test_more_than_the_limit(how):
    packed = PACKERS[how](bytes(64 << 20))
    limits = UnpackLimits(output_bytes=10 << 20, ratio=10**9, cpu_s=60)
    got = []
    with pytest.raises(BadImage, match="more than 10 MiB"):
        got.extend(len(chunk) for chunk in unpack(how, iter([packed]), limits))
    assert sum(got) <= limits.output_bytes


@hows
def test_growing_like_a_bomb_is_refused_and_zeros_are_not(how):
    few = UnpackLimits(output_bytes=1 << 30, ratio=10, cpu_s=60)
    with pytest.raises(BadImage, match="10 times"):
        list(unpack(how, iter([PACKERS[how](b"A" * (80 << 20))]), few))
    zeros = PACKERS[how](bytes(80 << 20))  # an empty disk, as we may have saved it ourselves
    assert sum(len(chunk) for chunk in unpack(how, iter([zeros]), few)) == 80 << 20


def test_slow_decompression_is_stopped():
    with pytest.raises(BadImage, match="seconds of the processor"):
        list(
            unpack(
                "gz", iter([gzip.compress(bytes(64 << 20))]), UnpackLimits(output_bytes=1 << 30, ratio=10**9, cpu_s=0)
            )
        )


def test_dictionary_that_would_fill_the_memory():
    head = bytearray(lzma.compress(b"x"))
    size = (head[12] + 1) * 4  # of the block's header, which names the dictionary and ends in a checksum
    head[head.index(b"\x21\x01") + 2] = 36  # 1 GiB
    head[12 + size - 4 : 12 + size] = zlib.crc32(bytes(head[12 : 12 + size - 4])).to_bytes(4, "little")
    with pytest.raises(BadImage, match=r"[Mm]emory"):
        list(unpack("xz", iter([bytes(head)]), LIMITS))


def test_memory_does_not_depend_on_the_header():
    bomb = zstd.compress(bytes(1 << 30))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert sum(len(chunk) for chunk in unpack("zst", iter([bomb]), LIMITS)) == 1 << 30
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 256 << 10  # KiB


def test_packing_can_be_undone(tmp_path):
    (tmp_path / "raw").write_bytes(TEXT)
    said = []
    compression.pack(tmp_path / "raw", tmp_path / "zst", lambda done, total: said.append((done, total)))
    packed = (tmp_path / "zst").read_bytes()
    assert b"".join(unpack("zst", iter([packed]), LIMITS)) == TEXT
    assert said[-1] == (len(TEXT), len(TEXT))


def test_packing_that_is_interrupted_leaves_nothing(tmp_path):
    (tmp_path / "raw").write_bytes(TEXT)

    def stop(done, total):
        raise InterruptedError

    with pytest.raises(InterruptedError):
        compression.pack(tmp_path / "raw", tmp_path / "zst", stop)
    assert not (tmp_path / "zst").exists()
