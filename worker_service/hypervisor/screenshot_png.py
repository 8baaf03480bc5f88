"""Convert screenshots to PNG. QEMU returns PPM or PNG."""

from __future__ import annotations

import re
import struct
import zlib
from typing import Final

from worker_service.contract import Code
from worker_service.core.errors import HypervisorError

_MAGIC: Final = b"\x89PNG\r\n\x1a\n"
_PPM: Final = re.compile(rb"P6\s+(\d+)\s+(\d+)\s+255\s")


def png(image: bytes) -> bytes:
    """Return a PPM (P6, 8 bits a channel) as PNG, and a PNG unchanged. Raises HypervisorError for anything else."""
    if image.startswith(_MAGIC):
        return image
    head = _PPM.match(image)
    if head is None:
        raise HypervisorError("The hypervisor returned no picture of this console. Try again.", code=Code.CONFLICT)
    width, height = int(head[1]), int(head[2])
    row, pixels = 3 * width, image[head.end() :]
    # Filter 0 before each row: unfiltered.
    rows = b"".join(b"\0" + pixels[start : start + row] for start in range(0, row * height, row))
    size = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return _MAGIC + _chunk(b"IHDR", size) + _chunk(b"IDAT", zlib.compress(rows, 6)) + _chunk(b"IEND", b"")


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
