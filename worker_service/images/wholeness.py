"""Whether a raw disk or a CD was cut off: its own tables name bytes beyond its end. Reads the tables and no data.

A qcow2 is examined by `qemu_img.check`. Sources: UEFI specification, 5.3 (GPT); ECMA-119, 8.4 (volume descriptor).
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Iterator
from typing import Final

from worker_service.core.errors import BadImage

_SECTORS: Final = (512, 4096)
_GPT: Final = struct.Struct("<8s4xII4xQQ16x16xQII4x")
"""Signature, length and checksum of the header; its own sector and its backup's; sector, number, length of entries."""
_GPT_SIGNATURE: Final = b"EFI PART"
_ENTRY: Final = struct.Struct("<16s16x8xQ")
_MOST_ENTRY_BYTES: Final = 1 << 20
_MBR: Final = struct.Struct("<B3xB3xII")
_MBR_AT: Final = 446
_ACTIVE: Final = (0x00, 0x80)
_COVERS_GPT: Final = 0xEE
_CD_VOLUME: Final = struct.Struct("<6s74xI44xH")
_CD_VOLUME_AT: Final = 16 * 2048
_CD_PADDING: Final = 150 * 2048
"""A CD that was copied sector by sector may lack its padding."""


def require_whole(disk: int, *, is_cd: bool) -> None:
    """Raise BadImage if a raw disk or a CD is cut off. `disk` is its descriptor."""
    size = os.fstat(disk).st_size
    ends = (_cd_end(disk),) if is_cd else (*_gpt_ends(disk, size), *_mbr_starts(disk))
    if (end := max(ends, default=0)) > size:
        raise _cut(f"its tables name byte {end}, and it has {size}")


def _cut(reason: str) -> BadImage:
    return BadImage(
        f"It is cut off: {reason}. Make or copy the file again. Some makers leave out the backup GPT of a whole disk: "
        "demand the digest of such a file (#sha256=), or complete it with `truncate` and `sgdisk --move-second-header`."
    )


def _gpt_ends(disk: int, size: int) -> Iterator[int]:
    """Yield the ends of the parts that the GPT of a disk names. Raises BadImage if the backup GPT is missing."""
    for sector in _SECTORS:
        data = os.pread(disk, sector, sector)
        if len(data) < sector or not data.startswith(_GPT_SIGNATURE):
            continue
        _signature, length, checksum, own, backup, at, count, each = _GPT.unpack_from(data)
        if own != 1 or zlib.crc32(data[:16] + bytes(4) + data[20:length]) != checksum:
            continue  # firmware does not believe this table either
        yield from ((backup + 1) * sector, at * sector + count * each)
        if (backup + 1) * sector <= size and os.pread(disk, 8, backup * sector) != _GPT_SIGNATURE:
            raise _cut(f"its backup GPT is missing at byte {backup * sector}")
        if at * sector < size:
            entries = os.pread(disk, min(count * each, _MOST_ENTRY_BYTES), at * sector)
            yield from (end * sector for end in _partition_ends(entries, each))


def _partition_ends(entries: bytes, each: int) -> Iterator[int]:
    for at in range(0, len(entries) - _ENTRY.size + 1, max(each, _ENTRY.size)):
        kind, last = _ENTRY.unpack_from(entries, at)
        if any(kind):
            yield last + 1


def _mbr_starts(disk: int) -> Iterator[int]:
    """Yield the first bytes of old partitions. Some makers leave out the empty end of the last one: it tells nothing.

    A boot sector without a table has code or text there.
    """
    data = os.pread(disk, _SECTORS[0], 0)
    if data[510:] != b"\x55\xaa":
        return
    entries = list(_MBR.iter_unpack(data[_MBR_AT:510]))
    if all(active in _ACTIVE and bool(kind) == bool(start) == bool(count) for active, kind, start, count in entries):
        yield from (start * _SECTORS[0] + 1 for _, kind, start, _ in entries if kind not in (0, _COVERS_GPT))


def _cd_end(disk: int) -> int:
    data = os.pread(disk, _CD_VOLUME.size, _CD_VOLUME_AT)
    if len(data) < _CD_VOLUME.size:
        return 0
    signature, blocks, block_size = _CD_VOLUME.unpack(data)
    return blocks * block_size - _CD_PADDING if signature == b"\x01CD001" else 0
