"""The boot record of the demo guest, which loads Linux by DMA where it can. dmaboot.asm describes it."""

from __future__ import annotations

import struct
import tempfile
from pathlib import Path
from typing import Final

from devstack.console import Trouble
from devstack.guests.tools import run

_SOURCE: Final = Path(__file__).with_name("dmaboot.asm")
_SECTOR: Final = 512
RECORD_BYTES: Final = 440
"""Of the boot record, before the disk's signature and its partitions."""
_STEP: Final = 128 * _SECTOR
"""Bytes of one command, which start at a multiple of that."""
_KERNEL_AT: Final = 1 << 20
_EXTENDED: Final = 16 << 20
"""Where memory is counted from."""
_ANY_LOADER: Final = 0xFF
_USES_HEAP: Final = 0x80
_HEAP_END: Final = 0xE000 - 0x200
_ARGUMENTS_AT: Final = 0x9E000


def write_dma_boot(disk: Path, kernel: bytes, initrd: bytes, arguments: str, log: Path | None = None) -> None:
    """Write the boot record before the first partition of a raw disk that has kernel and initramfs in one piece each.

    Raises Trouble if nasm is missing or fails, or the disk has them not so.
    """
    content = disk.read_bytes()
    initrd_at = _rounded(_number(kernel, 0x258, "<Q") + _number(kernel, 0x260, "<I"))
    real_mode_bytes = (kernel[0x1F1] + 1) * _SECTOR
    setup = bytearray(kernel[:real_mode_bytes])
    setup[0x210] = _ANY_LOADER
    setup[0x211] |= _USES_HEAP
    struct.pack_into("<II", setup, 0x218, initrd_at, len(initrd))
    struct.pack_into("<H", setup, 0x224, _HEAP_END)
    struct.pack_into("<I", setup, 0x228, _ARGUMENTS_AT)
    loads = (
        (_KERNEL_AT, _place(content, kernel) + real_mode_bytes // _SECTOR, len(kernel) - real_mode_bytes),
        (initrd_at, _place(content, initrd), len(initrd)),
    )
    with tempfile.TemporaryDirectory(prefix="saltern-dmaboot-") as folder:
        binary = Path(folder) / "record"
        run(["nasm", "-Wall", "-f", "bin", _SOURCE, "-o", binary], log=log)
        record = bytearray(binary.read_bytes())
    memory = (_rounded(initrd_at + len(initrd)) - _EXTENDED) // _STEP
    table = b"".join(struct.pack("<III", at, lba, _rounded(size) // _SECTOR) for at, lba, size in loads)
    record[-len(table) - 8 :] = struct.pack("<II", memory, len(setup) // _SECTOR) + table
    with disk.open("r+b") as file:
        file.write(record[:RECORD_BYTES])
        file.seek(_SECTOR)
        file.write(record[_SECTOR:])
        file.write(arguments.encode().ljust(_SECTOR, b"\0"))
        file.write(setup)


def _number(kernel: bytes, offset: int, layout: str) -> int:
    """Return a field of the kernel's header. Source: Linux's Documentation/arch/x86/boot.rst."""
    (value,) = struct.unpack_from(layout, kernel, offset)
    return int(value)


def _rounded(size: int) -> int:
    return -(-size // _STEP) * _STEP


def _place(disk: bytes, content: bytes) -> int:
    """Return the sector at which a file begins that lies on a disk in one piece."""
    at = disk.find(content)
    if at < 0 or at % _SECTOR:
        raise Trouble("a file of the demo guest lies in pieces on its disk; build it again")
    return at // _SECTOR
