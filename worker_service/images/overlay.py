"""The overlay of a disk and what lies below it, as the record says, and whether the overlay's header says the same.

QEMU's user may write to an overlay while its VM runs. A header that names another file would lead the reader of the
halted disk to it, so readers get the whole chain stated, and an overlay with a changed header is not read at all.
Source: docs/interop/qcow2.txt in QEMU.
"""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path
from typing import Any, Final

import msgspec

from worker_service.core.errors import BadImage

_HEAD: Final = struct.Struct(">4sIQIIQI")  # magic, version, backing offset and size, cluster bits, size, encryption
_FEATURES: Final = struct.Struct(">QQQII")  # incompatible, compatible, autoclear, refcount order, header length
_FEATURES_AT: Final = 72
_EXTENSION: Final = struct.Struct(">II")  # type, length
_BACKING_FORMAT: Final = 0xE2792ACA
_ALLOWED_FEATURES: Final = 0b11
"""The incompatible features `dirty` and `corrupt`. Others change how the rest is read, or name a file for the data."""
SECTOR: Final = 512
_LONGEST: Final = 1023
"""Bytes of the name of a base."""
_READ_BYTES: Final = 1 << 16
"""The header and the base's name lie in the first cluster."""


class Overlay(msgspec.Struct, frozen=True, kw_only=True):
    """A qcow2 overlay and its base, as they were made. Size in bytes."""

    path: Path
    base: Path | None
    """None for a blank disk."""
    base_format: str
    virtual_size: int

    def node(self, disk: str, base: str) -> str:
        """Return the chain as QEMU's `json:` file name, with every file and format stated, by these names of files."""
        below: dict[str, Any] | None = None
        if self.base is not None:
            below = {"driver": self.base_format, "file": {"driver": "file", "filename": base}}
            if self.base_format == "qcow2":
                below["backing"] = None
        return f"json:{json.dumps({'driver': 'qcow2', 'file': {'driver': 'file', 'filename': disk}, 'backing': below})}"

    def require_unchanged(self, disk: int) -> None:
        """Raise BadImage if the header says something else. A base may lie in another folder than before.

        `disk` is a descriptor of the overlay.
        """
        name = self.base.name if self.base else None
        found = difference(os.pread(disk, _READ_BYTES, 0), name, self.base_format, self.virtual_size)
        if found:
            raise BadImage(
                f"The header of {self.path.name} was changed while its VM ran: {found}. Its data is not read, because "
                "it may lead to files of the host. Look at it with `qemu-img info`; the disk stays as it is."
            )


def difference(header: bytes, base: str | None, base_format: str, virtual_size: int) -> str:
    """Return how the beginning of an overlay differs from what it was made with, or an empty string.

    Args:
        header: the first bytes of the file.
        base: the name of the base's file, without its folder.
        base_format: the base's format.
        virtual_size: in bytes, rounded up to whole sectors by qemu-img.
    """
    try:
        magic, version, backing_at, backing_size, _bits, size, encryption = _HEAD.unpack_from(header)
        features, length = (_FEATURES.unpack_from(header, _FEATURES_AT)[::4]) if version > 2 else (0, _FEATURES_AT)
    except struct.error:
        return "it is too short"
    text = header[backing_at : backing_at + min(backing_size, _LONGEST)].decode(errors="replace")
    text = header[backing_at : backing_at + min(backing_size, _LONGEST)].decode(errors="replace")
    name = text if backing_at else None
    found = _backing_format(header, length)
    differences = {
        "it is no qcow2": magic != b"QFI\xfb" or version not in (2, 3),
        "it has other features": features & ~_ALLOWED_FEATURES or encryption,
        f"its size is {size}, not {virtual_size}": size != -(-virtual_size // SECTOR) * SECTOR,
        f"its base is {name!r}, not {base!r}": (name and name.rpartition("/")[2]) != base,
        f"the format of its base is {found!r}, not {base_format!r}": base is not None and found != base_format,
    }
    return next((message for message, holds in differences.items() if holds), "")


def _backing_format(header: bytes, at: int) -> str | None:
    while at + _EXTENSION.size <= len(header):
        kind, length = _EXTENSION.unpack_from(header, at)
        at += _EXTENSION.size
        if kind == 0:
            break
        if kind == _BACKING_FORMAT:
            return header[at : at + min(length, _LONGEST)].decode(errors="replace")
        at += (length + 7) // 8 * 8
    return None
