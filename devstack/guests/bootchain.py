"""The BootChain guest: a disk image that counts its boots. What it does is told in bootchain.asm."""

from __future__ import annotations

import struct
import tempfile
from pathlib import Path
from typing import Final, Literal

from devstack.console import Trouble
from devstack.guests.tools import appearing, run

Variant = Literal["poweroff", "key", "spin", "crash"]

VARIANTS: Final[dict[Variant, tuple[str, ...]]] = {
    "poweroff": (),
    "key": ("-D", "KEY"),
    "spin": ("-D", "SPIN"),
    "crash": ("-D", "CRASH"),
}
"""How a life ends, and what nasm is told for it."""

LONGEST_LIFE_S: Final = 10_000_000
"""More than a hundred days. The guest's arithmetic would bear some more."""

_SOURCE: Final = Path(__file__).with_name("bootchain.asm")
_SECTOR: Final = 512
_MAGIC: Final = b"BOOTCHN1"
_RECORD: Final = struct.Struct("<8sII")  # magic, counter, seconds to live: LBA 1


def build_bootchain(out: Path, *, variant: Variant = "poweroff", seconds: int = 0, size: int = 1 << 20) -> None:
    """Write a raw image of `size` bytes whose guest has counted nothing yet and lives `seconds` after counting.

    Raises Trouble when nasm is missing or fails, ValueError for a life or a size that cannot be.
    """
    if not 0 <= seconds <= LONGEST_LIFE_S:
        raise ValueError(f"seconds is {seconds}: use 0 to {LONGEST_LIFE_S}")
    if size < 2 * _SECTOR or size % _SECTOR:
        raise ValueError(f"size is {size}: use a multiple of {_SECTOR} bytes, at least {2 * _SECTOR}")
    with appearing(out) as part:
        run(["nasm", "-Wall", *VARIANTS[variant], "-f", "bin", _SOURCE, "-o", part])
        with part.open("r+b") as image:
            image.seek(_SECTOR)
            image.write(_RECORD.pack(_MAGIC, 0, seconds))
            image.truncate(size)


def read_counter(image: Path, fmt: str) -> int:
    """How often the guest on this image of format `fmt` (raw, qcow2, ...) has booted.

    A running VM's raw image may be read too; of a running VM's qcow2 image the count may be an old one.
    Raises Trouble when the image cannot be read or is not BootChain's.
    """
    with tempfile.TemporaryDirectory(prefix="saltern-bootchain-") as folder:
        copy = Path(folder) / "lba1"
        source, target = f"if={image.resolve()}", f"of={copy}"
        # qemu-img counts the skipped block too; newer ones do not, and copy one block that is not looked at.
        run(["qemu-img", "dd", "-U", "-f", fmt, "-O", "raw", f"bs={_SECTOR}", "skip=1", "count=2", source, target])
        content = copy.read_bytes()[: _RECORD.size]
    magic, counter, _seconds = _RECORD.unpack(content.ljust(_RECORD.size, b"\0"))
    if magic != _MAGIC:
        raise Trouble(f"{image} read as {fmt} is not a BootChain image: LBA 1 does not begin with {_MAGIC.decode()}")
    return int(counter)
