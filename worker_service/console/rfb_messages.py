"""The sizes of the messages of a viewer in an RFB stream, by which each message ends and the next one begins.

Source: RFC 6143 and the community's RFB protocol document; QEMU's extensions from its docs/interop.
"""

from __future__ import annotations

from typing import Final

VERSION_BYTES: Final = 12
NO_SECURITY: Final = 1
"""The one security type that is allowed, because the ticket has authenticated the viewer."""

_FIXED: Final = {0: 20, 3: 10, 4: 8, 5: 6, 150: 10, 250: 4}
"""Bytes of a whole message by its type: SetPixelFormat, FramebufferUpdateRequest, KeyEvent, PointerEvent,
EnableContinuousUpdates, xvp (which powers the machine off)."""

_COUNTED: Final = {2: (2, 2, 4, 4), 248: (8, 1, 1, 9), 251: (6, 1, 16, 8)}
"""Type -> place and bytes of a number of parts, bytes of a part, bytes of the rest: SetEncodings, ClientFence,
SetDesktopSize."""

_QEMU_BYTES: Final = {0: 12, 1: 4}
_QEMU_FORMAT_BYTES: Final = 10


class NotRfb(Exception):
    """The stream has an unknown message, so the start of the next one is unknown."""


def size_of_message(buffer: bytes | bytearray, at: int = 0) -> int | None:
    """Return the bytes of the message that begins there, or None while its size is unknown. Raises NotRfb."""
    kind = buffer[at]
    if kind in _FIXED:
        return _FIXED[kind]
    if kind in _COUNTED:
        place, size, each, rest = _COUNTED[kind]
        count = _number(buffer, at + place, size)
        return None if count is None else rest + each * count
    if kind == 6:
        count = _number(buffer, at + 4, 4)
        # A negative length announces the extended clipboard. The size is its absolute value.
        return None if count is None else 8 + min(count, 2**32 - count)
    if kind == 255:
        return _size_of_qemu_message(buffer, at)
    raise NotRfb(f"message type {kind}")


def _size_of_qemu_message(buffer: bytes | bytearray, at: int) -> int | None:
    if (part := _number(buffer, at + 1, 1)) is None:
        return None
    if part not in _QEMU_BYTES:
        raise NotRfb(f"QEMU message {part}")
    if part == 1:
        operation = _number(buffer, at + 2, 2)
        if operation is None:
            return None
        return _QEMU_FORMAT_BYTES if operation == 2 else _QEMU_BYTES[part]
    return _QEMU_BYTES[part]


def _number(buffer: bytes | bytearray, at: int, size: int) -> int | None:
    raw = buffer[at : at + size]
    return int.from_bytes(raw, "big") if len(raw) == size else None
