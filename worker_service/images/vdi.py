"""VDI, VirtualBox's format of disks: its header, and reading a chain of such files. qemu-img reads no chain of them.

A file has a header, a table with one entry a block, and the blocks in the order in which they were written. In a
differencing file, a block without an entry is in the parent, which the header names by its uuid. A block that has an
entry is whole. VirtualBox writes these files, and no guest reaches their header.
Source: VDICore.h in VirtualBox.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Sequence
from typing import Final
from uuid import UUID, uuid4

import msgspec

from worker_service.core.errors import BadImage
from worker_service.transfer.registry import Report

BLOCK: Final = 1 << 20
_HEAD: Final = struct.Struct("<64sIIIII256sIIIIIIIQIIII16s16s16s16s")
_TITLE: Final = b"<<< Oracle VM VirtualBox Disk Image >>>\n"
_SIGNATURE: Final = 0xBEDA107F
_VERSION: Final = 0x00010001
_HEADER_BYTES: Final = 0x180
_SECTOR: Final = 512
_TABLE_AT: Final = 512
_WHOLE: Final = 1
_DIFFERENCE: Final = 4
_UUIDS_AT: Final = _HEAD.size - 64
NO_UUID: Final = UUID(int=0)
_ABSENT: Final = 0xFFFFFFFF
_ZERO: Final = 0xFFFFFFFE
_MOST_BLOCKS: Final = 1 << 26
"""64 TiB, beyond any disk here. It bounds the memory for a table."""
_COMMENT_BYTES: Final = 256
_ZEROS: Final = bytes(BLOCK)


class Vdi(msgspec.Struct, frozen=True, kw_only=True):
    """The header of a VDI. Sizes in bytes."""

    size: int
    blocks: int
    table_at: int = _TABLE_AT
    data_at: int
    uuid: UUID
    modified: UUID
    """Another uuid, which changes with the content."""
    parent: UUID = NO_UUID
    parent_modified: UUID = NO_UUID
    comment: str = ""

    def encode(self) -> bytes:
        """Return the header as bytes."""
        return _HEAD.pack(
            *(_TITLE, _SIGNATURE, _VERSION, _HEADER_BYTES, _WHOLE if self.parent == NO_UUID else _DIFFERENCE, 0),
            *(self.comment.encode()[:_COMMENT_BYTES], self.table_at, self.data_at, 0, 0, 0, _SECTOR, 0),
            *(self.size, BLOCK, 0, self.blocks, 0),
            *(each.bytes_le for each in (self.uuid, self.modified, self.parent, self.parent_modified)),
        )


def new(size: int, parent: Vdi | None = None, comment: str = "") -> bytes:
    """Return an empty VDI of a size: a disk of zeros, or one that is like its parent."""
    blocks = max(1, -(-size // BLOCK))
    data_at = -(-(_TABLE_AT + 4 * blocks) // _SECTOR) * _SECTOR
    header = Vdi(
        size=-(-size // _SECTOR) * _SECTOR,
        blocks=blocks,
        data_at=data_at,
        uuid=uuid4(),
        modified=uuid4(),
        parent=parent.uuid if parent else NO_UUID,
        parent_modified=parent.modified if parent else NO_UUID,
        comment=comment,
    ).encode()
    return (header.ljust(_TABLE_AT, b"\0") + b"\xff" * (4 * blocks)).ljust(data_at, b"\0")


def read(disk: int) -> Vdi:
    """Return the header of a VDI by its descriptor. Raises BadImage for what is none that can be read here."""
    data = os.pread(disk, _HEAD.size, 0)
    if len(data) < _HEAD.size:
        raise BadImage("It is no VDI: it is too short.")
    (_, signature, version, _, kind, _, comment, table_at, data_at, *_, size, block, extra, blocks, _) = _HEAD.unpack(
        data
    )[:19]
    uuids = [UUID(bytes_le=each) for each in _HEAD.unpack(data)[19:]]
    faults = {
        "it is no VDI": signature != _SIGNATURE or version >> 16 != 1,
        f"it has the type {kind}": kind not in (_WHOLE, 2, _DIFFERENCE),
        f"its blocks have {block} and {extra} bytes": block != BLOCK or extra,
        f"its table has {blocks} entries for {size} bytes": not -(-size // BLOCK) <= blocks <= _MOST_BLOCKS,
        "it names no parent, or one too many": (kind == _DIFFERENCE) == (uuids[2] == NO_UUID),
    }
    if fault := next((text for text, holds in faults.items() if holds), ""):
        raise BadImage(f"It cannot be read as a VDI: {fault}.")
    return Vdi(
        size=size,
        blocks=blocks,
        table_at=table_at,
        data_at=data_at,
        uuid=uuids[0],
        modified=uuids[1],
        parent=uuids[2],
        parent_modified=uuids[3],
        comment=comment.rstrip(b"\0").decode(errors="replace"),
    )


def set_uuid(disk: int, uuid: UUID) -> None:
    """Give a VDI a uuid of its own, by its descriptor. Files of the same content may then stand for each other."""
    os.pwrite(disk, uuid.bytes_le * 2, _UUIDS_AT)


def copy(chain: Sequence[int], target: int, largest: int, report: Report) -> int:
    """Write a chain of VDIs, the one that the guest wrote to first, into a sparse raw file; return its size.

    All are descriptors. `report` may raise to interrupt. Raises BadImage.
    """
    headers = [read(disk) for disk in chain]
    for header, below in zip(headers, [*headers[1:], None], strict=True):
        if header.parent != (below.uuid if below else NO_UUID):
            raise BadImage(f"One of its files is on {header.parent}, which is not the next of its files. They stay.")
    size = headers[0].size
    if size > largest:
        raise BadImage(f"Its size is {size} bytes, above the limit of {largest}.")
    tables = [_table(disk, header) for disk, header in zip(chain, headers, strict=True)]
    os.ftruncate(target, size)
    for number in range(-(-size // BLOCK)):
        for disk, header, table in zip(chain, headers, tables, strict=True):
            entry = table[number] if number < header.blocks else _ABSENT
            if entry == _ABSENT:
                continue
            if entry != _ZERO:
                _copy_block(disk, header.data_at + entry * BLOCK, target, number * BLOCK, size)
            break
        report(min(size, (number + 1) * BLOCK), size)
    return size


def _table(disk: int, header: Vdi) -> Sequence[int]:
    data = os.pread(disk, 4 * header.blocks, header.table_at)
    if len(data) < 4 * header.blocks:
        raise BadImage("It is cut off within its table of blocks. Put the whole file back.")
    return memoryview(data).cast("I")


def _copy_block(disk: int, source_at: int, target: int, target_at: int, size: int) -> None:
    data = os.pread(disk, BLOCK, source_at)
    if len(data) < BLOCK:
        raise BadImage("It is cut off: a block lies beyond its end. Put the whole file back.")
    if data != _ZEROS:
        left = memoryview(data)[: size - target_at]
        while left:
            written = os.pwrite(target, left, target_at)
            left, target_at = left[written:], target_at + written
