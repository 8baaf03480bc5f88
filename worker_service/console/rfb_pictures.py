"""The server's half of RFB for a screen that is a series of pictures, without I/O. It speaks to one viewer.

Each picture travels whole, as PNG (TightPNG, which noVNC and most viewers know), and only on request. Keys come as
scancodes. The pointer and the clipboard have no way to the guest and are dropped.
Source: RFC 6143, and the community's RFB protocol document for TightPNG, DesktopSize and QEMU's key event.
"""

from __future__ import annotations

import hashlib
import struct
from typing import Final

from worker_service.console.rfb_messages import NO_SECURITY, VERSION_BYTES, NotRfb, size_of_message
from worker_service.console.scancodes import Keyboard

_VERSION: Final = b"RFB 003.008\n"
_TIGHT_PNG: Final = -260
_DESKTOP_SIZE: Final = -223
_QEMU_KEYS: Final = -258
_PNG: Final = 0xA0
"""TightPNG's mark of a picture that is a PNG."""
_FORMAT: Final = struct.pack(">BBBBHHHBBB3x", 32, 24, 0, 1, 255, 255, 255, 16, 8, 0)
_PNG_SIZE: Final = struct.Struct(">8s8xII")
_MAGIC: Final = b"\x89PNG\r\n\x1a\n"
_NAME_BYTES: Final = 255
_TAKEN: Final = frozenset({2, 3, 4, 255})
"""SetEncodings, FramebufferUpdateRequest, KeyEvent, QEMU's. All others are dropped, and not buffered."""
_MOST_BYTES: Final = (1 << 22) - 1
"""The largest length that TightPNG can state."""


class PictureSession:
    """One viewer's session, fed with bytes and pictures.

    Args:
        name: the name of the screen, for the viewer's title.
    """

    def __init__(self, name: str) -> None:
        self._name = name.encode()[:_NAME_BYTES]
        self._keyboard = Keyboard()
        self._buffer = bytearray()
        self._stage = "version"
        self._encodings: frozenset[int] = frozenset()
        self._size = (0, 0)
        self._shown = b""
        self._keys_announced = False
        self._skip = 0
        self.awaited = ""
        """What the viewer waits for: `size`, `any` picture, a `changed` one, or nothing."""

    @staticmethod
    def greeting() -> bytes:
        """Return the first bytes of the server."""
        return _VERSION

    def feed(self, data: bytes) -> tuple[bytes, bytes]:
        """Take bytes of the viewer; return the reply to them, and scancodes for the guest. Raises NotRfb."""
        self._buffer += data
        reply, keys = bytearray(), bytearray()
        while self._buffer:
            if self._skip:
                self._skip -= len(self._take(min(self._skip, len(self._buffer))))
            elif self._stage == "messages":
                size = size_of_message(self._buffer)
                if size is None:
                    break
                if self._buffer[0] not in _TAKEN:
                    self._skip = size
                elif len(self._buffer) < size:
                    break
                else:
                    keys += self._message(self._take(size))
            elif self._stage == "version" and len(self._buffer) < VERSION_BYTES:
                break
            else:
                reply += self._handshake()
        return bytes(reply), bytes(keys)

    def leave(self) -> bytes:
        """Return the scancodes that release the keys of a viewer that goes."""
        return self._keyboard.release_all()

    def picture(self, png: bytes) -> bytes:
        """Return the bytes for the viewer from a picture; none if it waits for another. Raises NotRfb."""
        size = _size_of(png)
        if self.awaited == "size":
            self.awaited, self._size = "", size
            return struct.pack(">HH", *size) + _FORMAT + struct.pack(">I", len(self._name)) + self._name
        shown = hashlib.sha256(png).digest()
        if not self.awaited or (self.awaited == "changed" and shown == self._shown):
            return b""
        if _TIGHT_PNG not in self._encodings:
            raise NotRfb("this screen comes as pictures (TightPNG), which this viewer does not know. Use noVNC")
        rectangles = []
        if size != self._size:
            if _DESKTOP_SIZE not in self._encodings:
                raise NotRfb("the size of the screen changed, which this viewer does not know. Use noVNC")
            rectangles.append(_rectangle(size, _DESKTOP_SIZE))
        if _QEMU_KEYS in self._encodings and not self._keys_announced:
            rectangles.append(_rectangle((0, 0), _QEMU_KEYS))
        rectangles.append(_rectangle(size, _TIGHT_PNG) + bytes([_PNG]) + _compact(len(png)) + png)
        self.awaited, self._size, self._shown, self._keys_announced = "", size, shown, True
        return struct.pack(">BxH", 0, len(rectangles)) + b"".join(rectangles)

    def _handshake(self) -> bytes:
        if self._stage == "version":
            version = self._take(VERSION_BYTES)
            if version not in (b"RFB 003.007\n", _VERSION):
                raise NotRfb(f"version {version!r}")
            self._stage = "security 3.7" if version != _VERSION else "security"
            return bytes([1, NO_SECURITY])
        chosen = self._take(1)[0]
        if self._stage == "init":
            self._stage, self.awaited = "messages", "size"
            return b""
        if chosen != NO_SECURITY:
            raise NotRfb(f"security type {chosen}")
        result = b"" if self._stage == "security 3.7" else bytes(4)
        self._stage = "init"
        return result

    def _message(self, message: bytes) -> bytes:
        """Take a whole message; return the scancodes in it."""
        kind = message[0]
        if kind == 2:
            self._encodings = frozenset(struct.unpack(f">{(len(message) - 4) // 4}i", message[4:]))
        elif kind == 3 and self.awaited != "size":
            self.awaited = "changed" if message[1] and self.awaited != "any" else "any"
        elif kind == 4:
            return self._keyboard.key(int.from_bytes(message[4:8], "big"), down=bool(message[1]))
        elif kind == 255 and message[1] == 0:
            down, keysym, place = struct.unpack(">HII", message[2:])
            if place:
                return self._keyboard.place(place, down=bool(down))
            return self._keyboard.key(keysym, down=bool(down))
        return b""

    def _take(self, size: int) -> bytes:
        taken = bytes(self._buffer[:size])
        del self._buffer[:size]
        return taken


def _size_of(png: bytes) -> tuple[int, int]:
    """Return width and height of a PNG. Raises NotRfb for anything else, and for one that no frame can carry."""
    if len(png) < _PNG_SIZE.size or not png.startswith(_MAGIC) or len(png) > _MOST_BYTES:
        raise NotRfb("the hypervisor's picture is no PNG, or larger than 4 MiB")
    _, width, height = _PNG_SIZE.unpack_from(png)
    return int(width), int(height)


def _rectangle(size: tuple[int, int], encoding: int) -> bytes:
    return struct.pack(">HHHHi", 0, 0, *size, encoding)


def _compact(length: int) -> bytes:
    """Return a length in TightPNG's form: seven bits, seven more, then eight."""
    if length < 1 << 7:
        return bytes([length])
    if length < 1 << 14:
        return bytes([length & 0x7F | 0x80, length >> 7])
    return bytes([length & 0x7F | 0x80, length >> 7 & 0x7F | 0x80, length >> 14])
