"""The BootChain guest: a disk image that counts its boots. bootchain.asm describes it."""

from __future__ import annotations

import struct
import tempfile
from pathlib import Path
from typing import Final, Literal

from devstack.console import Trouble
from devstack.guests.tools import appearing, run

Variant = Literal["poweroff", "key", "button", "spin", "crash", "sleep"]

VARIANTS: Final[dict[Variant, tuple[str, ...]]] = {
    "poweroff": (),
    "key": ("-D", "KEY"),
    "button": ("-D", "BUTTON"),
    "spin": ("-D", "SPIN"),
    "crash": ("-D", "CRASH"),
    "sleep": ("-D", "SLEEP"),
}
"""The ways in which a run ends, with the arguments of nasm."""

LONGEST_LIFE_S: Final = 10_000_000
"""More than a hundred days, and below the limit of the guest's arithmetic."""

_SOURCE: Final = Path(__file__).with_name("bootchain.asm")
_SECTOR: Final = 512
_MAGIC: Final = b"BOOTCHN1"
_LONG_MODE: Final = 2
_RECORD: Final = struct.Struct("<8sIII12s")  # magic, counter, seconds to live, long mode, variant: LBA 1


def build_bootchain(out: Path, *, variant: Variant = "poweroff", seconds: int = 0, size: int = 1 << 20) -> None:
    """Write a raw image of `size` bytes whose counter is 0 and whose guest runs for `seconds` after counting.

    Raises Trouble if nasm is missing or fails, ValueError for an impossible duration or size.
    """
    if not 0 <= seconds <= LONGEST_LIFE_S:
        raise ValueError(f"seconds is {seconds}: use 0 to {LONGEST_LIFE_S}")
    if size < 2 * _SECTOR or size % _SECTOR:
        raise ValueError(f"size is {size}: use a multiple of {_SECTOR} bytes, at least {2 * _SECTOR}")
    with appearing(out) as part:
        run(["nasm", "-Wall", *VARIANTS[variant], "-f", "bin", _SOURCE, "-o", part])
        with part.open("r+b") as image:
            image.seek(_SECTOR)
            image.write(_RECORD.pack(_MAGIC, 0, seconds, 0, variant.encode()))
            image.truncate(size)


def read_counter(image: Path, fmt: str) -> int:
    """Return how often the guest on an image of format `fmt` (raw, qcow2, ...) has booted.

    The VM may run; then the count in a qcow2 image may be outdated. Raises Trouble if the image
    cannot be read or is not BootChain's.
    """
    return _record(image, fmt)[0]


def read_long_mode(image: Path, fmt: str) -> bool:
    """Return whether the processor offered long mode to the guest on an image, as its last boot saw it.

    Raises Trouble as `read_counter` does, and for an image that has not booted.
    """
    _counter, found = _record(image, fmt)
    if not found:
        raise Trouble(f"{image} has not booted, so it says nothing about the processor")
    return found == _LONG_MODE


def _record(image: Path, fmt: str) -> tuple[int, int]:
    """Return the counter, and what the guest wrote about long mode."""
    with tempfile.TemporaryDirectory(prefix="saltern-bootchain-") as folder:
        copy = Path(folder) / "lba1"
        source, target = f"if={image.resolve()}", f"of={copy}"
        # Old versions of qemu-img count the skipped block too; new ones copy one more block, which is ignored.
        run(["qemu-img", "dd", "-U", "-f", fmt, "-O", "raw", f"bs={_SECTOR}", "skip=1", "count=2", source, target])
        content = copy.read_bytes()[: _RECORD.size]
    magic, counter, _seconds, long_mode, _variant = _RECORD.unpack(content.ljust(_RECORD.size, b"\0"))
    if magic != _MAGIC:
        raise Trouble(f"{image} read as {fmt} is not a BootChain image: LBA 1 does not begin with {_MAGIC.decode()}")
    return int(counter), int(long_mode)
