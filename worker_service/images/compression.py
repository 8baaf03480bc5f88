"""Decompress images while they are fetched, within limits that hold for malicious files too.

The first bytes determine the kind of compression, not the name. Only one layer is removed. A decoder returns at most
one chunk at a time, so its memory does not depend on the sizes that the file claims.
"""

from __future__ import annotations

import bz2
import importlib
import lzma
import re
import sys
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final, Literal

import msgspec

from worker_service.core.errors import BadImage
from worker_service.transfer.registry import Report

Kind = Literal["gz", "xz", "zst", "bz2"]

CHUNK: Final = 1 << 20
MAGIC_BYTES: Final = 10
_MAGIC: Final[Mapping[Kind, re.Pattern[bytes]]] = {
    "gz": re.compile(rb"\x1f\x8b\x08"),
    "xz": re.compile(rb"\xfd7zXZ\0"),
    # pzstd and others begin with a frame that decoders skip.
    "zst": re.compile(rb"\x28\xb5\x2f\xfd|[\x50-\x5f]\x2a\x4d\x18"),
    "bz2": re.compile(rb"BZh[1-9]1AY&SY"),
}
_FOREIGN: Final[Mapping[str, bytes]] = {
    "zip": b"PK\x03\x04",
    "7z": b"7z\xbc\xaf\x27\x1c",
    "rar": b"Rar!\x1a\x07",
    "lz4": b"\x04\x22\x4d\x18",
    "lz": b"LZIP\x01",
}
"""Archives and packings that are not unpacked here. None of these can be the beginning of a disk that boots."""
_MEMORY: Final = 256 << 20  # most that a decoder may use for its dictionary; `xz -9` needs 65 MiB
_WINDOW_LOG: Final = 27  # 128 MiB, as `zstd --long` writes
_FREE_RATIO_BYTES: Final = 64 << 20  # small files may be as dense as they like
_GZIP: Final = 31


class UnpackLimits(msgspec.Struct, frozen=True, kw_only=True):
    """The limits of decompression."""

    output_bytes: int
    ratio: int
    """Output bytes for each input byte. Zeros do not count, because they become holes and use no space."""
    cpu_s: float


def kind(first: bytes) -> Kind | None:
    """Return the compression of a file that begins with these bytes, or None."""
    return next((name for name, magic in _MAGIC.items() if magic.match(first)), None)


def refuse_archive(first: bytes) -> None:
    """Raise BadImage that names a kind of archive, if a file that begins with these bytes is one."""
    if found := next((name for name, magic in _FOREIGN.items() if first.startswith(magic)), None):
        raise BadImage(f"It is a .{found} file. Unpack it, and store the disk image that is in it.")


def unpack(
    how: Kind, packed: Iterator[bytes], limits: UnpackLimits, note: Callable[[str], None] = lambda _text: None
) -> Iterator[bytes]:
    """Yield the decompressed bytes, at most CHUNK at once. Raises BadImage for damaged bytes and beyond a limit.

    `note` gets a sentence about bytes that were left out.
    """
    counted = _Counted(packed)
    began, out, dense = time.process_time(), 0, 0
    for chunk in _decoded(how, counted, note):
        if not out:
            refuse_archive(chunk)
        if not out and (inner := kind(chunk)):
            raise BadImage(f"Inside the .{how} is a .{inner}: it is compressed twice. Unpack it once.")
        out += len(chunk)
        dense += 0 if is_zero(chunk) else len(chunk)
        if out > limits.output_bytes:
            raise BadImage(
                f"Unpacked it has more than {limits.output_bytes >> 20} MiB, the limit here. "
                "Use a smaller one, or raise images.max_virtual_gib in the worker's settings."
            )
        if dense > _FREE_RATIO_BYTES and dense > counted.bytes * limits.ratio:
            raise BadImage(
                f"It grows more than {limits.ratio} times when unpacked, as an image made to fill a disk would. "
                "Unpack it first, or raise images.max_ratio in the worker's settings."
            )
        if time.process_time() - began > limits.cpu_s:
            raise BadImage(
                f"Unpacking takes more than {limits.cpu_s:g} seconds of the processor. "
                "Unpack it first, or raise images.max_unpack_s in the worker's settings."
            )
        yield chunk


def _zstd() -> Any:
    """Return the module for zstd, which Python has itself from 3.14 on. It is rarely needed."""
    return importlib.import_module("compression.zstd" if sys.version_info >= (3, 14) else "backports.zstd")


def pack(source: Path, target: Path, report: Report) -> None:
    """Write a file as one zstd stream with a checksum. `report` gets the bytes read and the total."""
    zstd = _zstd()
    total, done = source.stat().st_size, 0
    encoder = zstd.ZstdCompressor(options={zstd.CompressionParameter.checksum_flag: 1})
    encoder.set_pledged_input_size(total)
    try:
        with source.open("rb") as file, target.open("wb") as out:
            while chunk := file.read(CHUNK):
                out.write(encoder.compress(chunk))
                done += len(chunk)
                report(done, total)
            out.write(encoder.flush())
    except BaseException:
        target.unlink(missing_ok=True)
        raise


def is_zero(chunk: bytes) -> bool:
    """Return whether a chunk has only zeros."""
    return not chunk or (chunk[0] == 0 and chunk.count(0) == len(chunk))


class _Counted:
    """Passes chunks on and counts their bytes."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks = chunks
        self.bytes = 0

    def __iter__(self) -> Iterator[bytes]:
        for chunk in self._chunks:
            self.bytes += len(chunk)
            yield chunk


def _decoded(how: Kind, packed: _Counted, note: Callable[[str], None]) -> Iterator[bytes]:
    make, faults = _decoder(how)
    decoder, rest, streams = None, b"", 0
    for chunk in packed:
        rest += chunk
        while rest or (decoder and not decoder.needs_input):
            if decoder is None:
                # Several streams may follow each other, as after `cat a.xz b.xz`, with zeros in between.
                rest = rest.lstrip(b"\0")
                if streams and len(rest) < MAGIC_BYTES:
                    break  # more bytes tell whether this is a stream
                if streams and _is_ignored(how, rest):
                    note(_ignored(len(rest) + sum(map(len, packed))))
                    return
                decoder, streams = make(), streams + 1
            try:
                yield from _not_empty(decoder.decompress(rest, CHUNK))
            except faults as err:
                raise BadImage(f"Its .{how} packing is damaged ({err}). Make the file again.") from err
            rest, decoder = (decoder.unused_data, None) if decoder.eof else (b"", decoder)
    _check_end(how, decoder, rest, note)


def _not_empty(chunk: bytes) -> tuple[bytes, ...]:
    return (chunk,) if chunk else ()


def _is_ignored(how: Kind, rest: bytes) -> bool:
    return how == "gz" and not _MAGIC[how].match(rest)


def _ignored(count: int) -> str:
    return f"{count} bytes behind the end of its .gz stream were ignored, as gzip does."


def _check_end(how: Kind, decoder: Any, rest: bytes, note: Callable[[str], None]) -> None:
    """Look at the last bytes, which are fewer than a magic number. Raises BadImage if they end in a stream."""
    if decoder is not None or _MAGIC[how].match(rest):
        raise BadImage(f"Its .{how} packing ends too early. Make the file again.")
    if rest and not _is_ignored(how, rest):
        raise BadImage(f"Its .{how} packing is damaged: {len(rest)} bytes follow its end. Make the file again.")
    if rest:
        note(_ignored(len(rest)))


def _decoder(how: Kind) -> tuple[Callable[[], Any], tuple[type[Exception], ...]]:
    """Return the constructor of a decoder, and the exceptions that it raises for damaged bytes."""
    if how == "gz":
        return _Gzip, (zlib.error,)
    if how == "bz2":
        return bz2.BZ2Decompressor, (OSError, ValueError)
    if how == "xz":
        return lambda: lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_MEMORY), (lzma.LZMAError,)
    zstd = _zstd()
    options: dict[int, int] = {zstd.DecompressionParameter.window_log_max: _WINDOW_LOG}
    return lambda: zstd.ZstdDecompressor(options=options), (zstd.ZstdError,)


class _Gzip:
    """zlib's decoder with the interface of the other two."""

    def __init__(self) -> None:
        self._decoder = zlib.decompressobj(_GZIP)
        self._full = False

    def decompress(self, data: bytes, limit: int) -> bytes:
        out = self._decoder.decompress(self._decoder.unconsumed_tail + data, limit)
        self._full = len(out) == limit
        return out

    @property
    def eof(self) -> bool:
        return self._decoder.eof

    @property
    def unused_data(self) -> bytes:
        return self._decoder.unused_data

    @property
    def needs_input(self) -> bool:
        # After a full chunk the decoder may hold more output, even if it took all of the input.
        return not self._decoder.unconsumed_tail and not self._full
