"""Filter the client's half of an RFB stream for a view-only viewer: messages that act on the guest are dropped."""

from __future__ import annotations

from typing import Final

from worker_service.console.rfb_messages import NO_SECURITY, VERSION_BYTES, NotRfb, size_of_message

__all__ = ["NotRfb", "ViewOnly"]

_LOOKING: Final = frozenset({0, 2, 3, 150, 248})
"""SetPixelFormat, SetEncodings, FramebufferUpdateRequest, EnableContinuousUpdates, ClientFence. All others are dropped:
keys, pointer, cut text, desktop size, sound, power."""


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
            if self._left < VERSION_BYTES:
                return None
            version = self._take(VERSION_BYTES)
            if not version.startswith(b"RFB 003.") or not version.endswith(b"\n"):
                raise NotRfb(f"version {version!r}")
            # In 3.3 the server chooses the security type.
            self._stage = "init" if version == b"RFB 003.003\n" else "security"
            return version
        if self._stage == "security":
            chosen = self._take(1)
            if chosen[0] != NO_SECURITY:
                raise NotRfb(f"security type {chosen[0]}")
            self._stage = "init"
            return chosen
        self._take(1)
        self._stage = "messages"
        return b"\x01"  # shared, so that a view-only viewer disconnects no other one

    def _message(self) -> bytes | None:
        kind = self._buffer[self._at]
        size = size_of_message(self._buffer, self._at)
        if size is None:
            return None
        if kind not in _LOOKING:
            self._skip = size
            return b""
        return self._take(size) if self._left >= size else None

    def _take(self, size: int) -> bytes:
        begin = self._at
        self._at += size
        return bytes(self._buffer[begin : self._at])
