"""The overlay of a disk and what lies below it, as the record says, and whether each header says the same.

QEMU's user may write to an overlay while its VM runs. A header that names another file would lead the reader of the
halted disk to it, so readers get the whole chain stated, and an overlay with a changed header is not read at all.
Source: docs/interop/qcow2.txt in QEMU.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Sequence
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


class Layer(msgspec.Struct, frozen=True):
    """One file of a disk's chain: what is not in it is in the layer below."""

    path: str
    """Absolute, or relative to the VM's folder. For what is no file, a word that says what it is: `block /dev/sdb`."""
    format: str = "qcow2"


class Chain(msgspec.Struct, frozen=True, kw_only=True):
    """The files of a disk: those that only its VM has, and the base below them. Size in bytes."""

    layers: tuple[Layer, ...]
    """By absolute path. The guest writes to the first."""
    base: Path | None
    """None for a blank disk, and for a copy of a whole disk."""
    base_format: str
    largest: int
    """The largest virtual size that a layer may have."""

    def node(self, own: Sequence[str], base: str) -> str:
        """Return the chain as QEMU's `json:` file name, with every file and format stated, by these names of files."""
        below: dict[str, Any] | None = None
        if self.base is not None:
            below = file_node(self.base_format, base, None)
        for layer, name in zip(reversed(self.layers), reversed(own), strict=True):
            below = file_node(layer.format, name, below)
        return f"json:{json.dumps(below)}"

    def require_unchanged(self, own: Sequence[int]) -> None:
        """Raise BadImage if a header says something else. A layer may lie in another folder than before.

        `own` are the descriptors of the layers.
        """
        below: list[tuple[str | None, str]] = [(Path(layer.path).name, layer.format) for layer in self.layers[1:]]
        below.append((self.base.name if self.base else None, self.base_format))
        for layer, disk, (name, form) in zip(self.layers, own, below, strict=True):
            if layer.format != "qcow2":
                continue
            found = difference(os.pread(disk, _READ_BYTES, 0), name, form, self.largest)
            if found:
                raise BadImage(
                    f"The header of {Path(layer.path).name} was changed while its VM ran: {found}. Its data is not "
                    "read, because it may lead to files of the host. Look at it with `qemu-img info`; the disk stays "
                    "as it is."
                )

    def virtual_size(self, own: Sequence[int]) -> int:
        """Return the size of the disk that the guest sees. `own` as in `require_unchanged`, which comes first."""
        if self.layers[0].format == "qcow2":
            return int(_HEAD.unpack(os.pread(own[0], _HEAD.size, 0))[5])
        return os.fstat(own[0]).st_size


def file_node(form: str, name: str, below: dict[str, Any] | None = None) -> dict[str, Any]:
    """Return a file of a format, on the node below it, as a node of QEMU."""
    node: dict[str, Any] = {"driver": form, "file": {"driver": "file", "filename": name}}
    return {**node, "backing": below} if form == "qcow2" else node


def difference(header: bytes, base: str | None, base_format: str, largest: int) -> str:
    """Return how the beginning of an overlay differs from what it was made with, or an empty string.

    Args:
        header: the first bytes of the file.
        base: the name of the base's file, without its folder.
        base_format: the base's format.
        largest: the largest virtual size, in bytes. `virsh blockresize` may have made a disk larger.
    """
    try:
        magic, version, backing_at, backing_size, _bits, size, encryption = _HEAD.unpack_from(header)
        features, length = (_FEATURES.unpack_from(header, _FEATURES_AT)[::4]) if version > 2 else (0, _FEATURES_AT)
    except struct.error:
        return "it is too short"
    text = header[backing_at : backing_at + min(backing_size, _LONGEST)].decode(errors="replace")
    name = text if backing_at else None
    found = _backing_format(header, length)
    differences = {
        "it is no qcow2": magic != b"QFI\xfb" or version not in (2, 3),
        "it has other features": features & ~_ALLOWED_FEATURES or encryption,
        f"its size is {size} bytes, above the limit of {largest}": size > -(-largest // SECTOR) * SECTOR,
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
