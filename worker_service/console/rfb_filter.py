"""Filter the client's half of an RFB stream for a view-only viewer: messages that act on the guest are dropped.

Source: RFC 6143 and the community's RFB protocol document; QEMU's extensions from its docs/interop.
"""

from __future__ import annotations

from typing import Final

_VERSION_BYTES: Final = 12
_NONE: Final = 1
"""The one security type that is allowed, because the ticket has authenticated the viewer."""

_FIXED: Final = {0: 20, 3: 10, 4: 8, 5: 6, 150: 10, 250: 4}
"""Bytes of a whole message by its type: SetPixelFormat, FramebufferUpdateRequest, KeyEvent, PointerEvent,
EnableContinuousUpdates, xvp (which powers the machine off)."""

_LOOKING: Final = frozenset({0, 2, 3, 150, 248})
"""SetPixelFormat, SetEncodings, FramebufferUpdateRequest, EnableContinuousUpdates, ClientFence. All others are dropped:
keys, pointer, cut text, desktop size, sound, power."""

_QEMU_BYTES: Final = {0: 12, 1: 4}
_QEMU_FORMAT_BYTES: Final = 10


class NotRfb(Exception):
    """The stream has an unknown message, so the start of the next one is unknown."""


class ViewOnly:
    """Filters the bytes of one client. It buffers at most one allowed message of 256 KiB, and no dropped one."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._at = 0
        self._skip = 0
        self._stage = "version"

    def feed(self, data: bytes) -> bytes:
        """Return the bytes that the server may get, of these and of the buffered ones. Raises NotRfb."""
        self._buffer += data
        out = bytearray()
        while (passed := self._next()) is not None:
            out += passed
        # The buffer is cut once. A cut after each message would copy the rest each time.
        del self._buffer[: self._at]
        self._at = 0
        return bytes(out)

    def _next(self) -> bytes | None:
        """Return the next complete part of the stream (empty if it is dropped), or None until it is complete."""
        skipped = min(self._skip, self._left)
        self._skip -= skipped
        self._at += skipped
        if not self._left:
            return None
        if self._stage == "messages":
            return self._message()
        return self._handshake()

    @property
    def _left(self) -> int:
        """The number of buffered bytes that are not processed."""
        return len(self._buffer) - self._at

    def _handshake(self) -> bytes | None:
        if self._stage == "version":
            if self._left < _VERSION_BYTES:
                return None
            version = self._take(_VERSION_BYTES)
            if not version.startswith(b"RFB 003.") or not version.endswith(b"\n"):
                raise NotRfb(f"version {version!r}")
            # In 3.3 the server chooses the security type.
            self._stage = "init" if version == b"RFB 003.003\n" else "security"
            return version
        if self._stage == "security":
            chosen = self._take(1)
            if chosen[0] != _NONE:
                raise NotRfb(f"security type {chosen[0]}")
            self._stage = "init"
            return chosen
        self._take(1)
        self._stage = "messages"
        return b"\x01"  # shared, so that a view-only viewer disconnects no other one

    def _message(self) -> bytes | None:
        kind = self._buffer[self._at]
        size = self._size(kind)
        if size is None:
            return None
        if kind not in _LOOKING:
            self._skip = size
            return b""
        return self._take(size) if self._left >= size else None

    def _size(self, kind: int) -> int | None:
        """Return the bytes of the next message, or None while the size is unknown."""
        if kind in _FIXED:
            return _FIXED[kind]
        if kind == 2:
            count = self._number(2, 2)
            return None if count is None else 4 + 4 * count
        if kind == 6:
            count = self._number(4, 4)
            # A negative length announces the extended clipboard. The size is its absolute value.
            return None if count is None else 8 + min(count, 2**32 - count)
        if kind == 248:
            count = self._number(8, 1)
            return None if count is None else 9 + count
        if kind == 251:
            count = self._number(6, 1)
            return None if count is None else 8 + 16 * count
        if kind == 255:
            return self._qemu_size()
        raise NotRfb(f"message type {kind}")

    def _qemu_size(self) -> int | None:
        if (part := self._number(1, 1)) is None:
            return None
        if part not in _QEMU_BYTES:
            raise NotRfb(f"QEMU message {part}")
        if part == 1:
            operation = self._number(2, 2)
            if operation is None:
                return None
            return _QEMU_FORMAT_BYTES if operation == 2 else _QEMU_BYTES[part]
        return _QEMU_BYTES[part]

    def _number(self, at: int, size: int) -> int | None:
        begin = self._at + at
        raw = self._buffer[begin : begin + size]
        return int.from_bytes(raw, "big") if len(raw) == size else None

    def _take(self, size: int) -> bytes:
        begin = self._at
        self._at += size
        return bytes(self._buffer[begin : self._at])
