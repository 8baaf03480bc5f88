"""What a viewer who may only look is let through: the client's half of an RFB stream without what acts on the guest.

Source: RFC 6143 and the community's RFB protocol document; QEMU's extensions from its docs/interop.
"""

from __future__ import annotations

from typing import Final

_VERSION_BYTES: Final = 12
_NONE: Final = 1
"""The one security type that is let through: who may see the screen was settled by the ticket."""

_FIXED: Final = {0: 20, 3: 10, 4: 8, 5: 6, 150: 10, 250: 4}
"""Bytes of a whole message by its type: SetPixelFormat, FramebufferUpdateRequest, KeyEvent, PointerEvent,
EnableContinuousUpdates, xvp (which switches the machine off)."""

_LOOKING: Final = frozenset({0, 2, 3, 150, 248})
"""SetPixelFormat, SetEncodings, FramebufferUpdateRequest, EnableContinuousUpdates, ClientFence. What is not here, keys,
pointer, cut text, desktop size, sound, power, is dropped."""

_QEMU_BYTES: Final = {0: 12, 1: 4}
_QEMU_FORMAT_BYTES: Final = 10


class NotRfb(Exception):
    """The stream is not RFB as this knows it: where the next message begins cannot be told."""


class ViewOnly:
    """Filters the bytes of one client. Keeps at most one message that is let through, 256 KiB, and none that is not."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._at = 0
        self._skip = 0
        self._stage = "version"

    def feed(self, data: bytes) -> bytes:
        """What of these bytes, and of those kept before, the server may see. Raises NotRfb."""
        self._buffer += data
        out = bytearray()
        while (passed := self._next()) is not None:
            out += passed
        # Cut once, not at each message: many small ones would have all that follows them copied as often.
        del self._buffer[: self._at]
        self._at = 0
        return bytes(out)

    def _next(self) -> bytes | None:
        """The next part of the stream that is whole, empty where it is dropped; None where more must come first."""
        gone = min(self._skip, self._left)
        self._skip -= gone
        self._at += gone
        if not self._left:
            return None
        if self._stage == "messages":
            return self._message()
        return self._handshake()

    @property
    def _left(self) -> int:
        """Bytes that have come and are not yet dealt with."""
        return len(self._buffer) - self._at

    def _handshake(self) -> bytes | None:
        if self._stage == "version":
            if self._left < _VERSION_BYTES:
                return None
            version = self._take(_VERSION_BYTES)
            if not version.startswith(b"RFB 003.") or not version.endswith(b"\n"):
                raise NotRfb(f"version {version!r}")
            # A 3.3 server says itself what security there is.
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
        return b"\x01"  # shared: who may only look ends nobody else's view

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
        """Bytes of the message at hand; None where it does not say so yet."""
        if kind in _FIXED:
            return _FIXED[kind]
        if kind == 2:
            count = self._number(2, 2)
            return None if count is None else 4 + 4 * count
        if kind == 6:
            count = self._number(4, 4)
            # Negative lengths announce the extended clipboard; the size is their absolute value.
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
