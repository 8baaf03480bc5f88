"""Translate a viewer's keys to scancodes of set 1, which a PC's keyboard controller passes to the guest.

A viewer names the letter that a key makes, and a guest wants the place of the key. The places are those of the US
layout. A viewer that knows QEMU's extension sends the place itself, which then fits any layout.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

_EXTENDED: Final = 0x80
"""Marks a code that travels behind the byte e0, as QEMU's extension does."""
_RELEASED: Final = 0x80

_ROWS: Final = (
    (0x02, "1234567890-=", "!@#$%^&*()_+"),
    (0x10, "qwertyuiop[]", "QWERTYUIOP{}"),
    (0x1E, "asdfghjkl;'`", 'ASDFGHJKL:"~'),
    (0x2B, "\\zxcvbnm,./", "|ZXCVBNM<>?"),
    (0x39, " ", " "),
)
"""The code of the first key of a row, and what its keys make without and with shift."""

_PLAIN: Final = {ord(made): first + at for first, keys, _ in _ROWS for at, made in enumerate(keys)}
_SHIFTED: Final = {ord(made): first + at for first, _, keys in _ROWS for at, made in enumerate(keys) if made != " "}

_SHIFT_L: Final = 0xFFE1
_SHIFT_R: Final = 0xFFE2
_SHIFTS: Final = frozenset({_SHIFT_L, _SHIFT_R})
_CAPS_LOCK: Final = 0xFFE5

_NAMED: Final[Mapping[int, int]] = {
    0xFF08: 0x0E,  # BackSpace
    0xFF09: 0x0F,  # Tab
    0xFE20: 0x0F,  # Tab with shift
    0xFF0D: 0x1C,  # Return
    0xFF1B: 0x01,  # Escape
    0xFF13: _EXTENDED | 0x46,  # Pause, as Ctrl-Break
    0xFF14: 0x46,  # Scroll Lock
    0xFF61: _EXTENDED | 0x37,  # Print
    0xFF50: _EXTENDED | 0x47,  # Home
    0xFF51: _EXTENDED | 0x4B,  # Left
    0xFF52: _EXTENDED | 0x48,  # Up
    0xFF53: _EXTENDED | 0x4D,  # Right
    0xFF54: _EXTENDED | 0x50,  # Down
    0xFF55: _EXTENDED | 0x49,  # Page Up
    0xFF56: _EXTENDED | 0x51,  # Page Down
    0xFF57: _EXTENDED | 0x4F,  # End
    0xFF63: _EXTENDED | 0x52,  # Insert
    0xFFFF: _EXTENDED | 0x53,  # Delete
    0xFF67: _EXTENDED | 0x5D,  # Menu
    0xFF7F: 0x45,  # Num Lock
    _CAPS_LOCK: 0x3A,
    _SHIFT_L: 0x2A,
    _SHIFT_R: 0x36,
    0xFFE3: 0x1D,  # Control
    0xFFE4: _EXTENDED | 0x1D,
    0xFFE7: _EXTENDED | 0x5B,  # Meta
    0xFFE8: _EXTENDED | 0x5C,
    0xFFE9: 0x38,  # Alt
    0xFFEA: _EXTENDED | 0x38,
    0xFE03: _EXTENDED | 0x38,  # AltGr
    0xFFEB: _EXTENDED | 0x5B,  # Super
    0xFFEC: _EXTENDED | 0x5C,
    **{0xFFBE + number: 0x3B + number for number in range(10)},  # F1 to F10
    0xFFC8: 0x57,  # F11
    0xFFC9: 0x58,  # F12
    0xFF8D: _EXTENDED | 0x1C,  # the keypad: Enter, *, +, -, ., /
    0xFFAA: 0x37,
    0xFFAB: 0x4E,
    0xFFAD: 0x4A,
    0xFFAE: 0x53,
    0xFFAF: _EXTENDED | 0x35,
    **dict(zip(range(0xFFB0, 0xFFBA), (0x52, 0x4F, 0x50, 0x51, 0x4B, 0x4C, 0x4D, 0x47, 0x48, 0x49), strict=True)),
    **dict(zip(range(0xFF95, 0xFFA0), (0x47, 0x4B, 0x48, 0x4D, 0x50, 0x49, 0x51, 0x4F, 0x4C, 0x52, 0x53), strict=True)),
}
"""Keysyms of X11 (keysymdef.h) without a letter, with their codes."""


class Keyboard:
    """The keys that one viewer holds down, so that each letter arrives as the viewer means it."""

    def __init__(self) -> None:
        self._held: dict[int, int] = {}
        self._caps = False

    def key(self, keysym: int, *, down: bool) -> bytes:
        """Return the scancodes of a key that the viewer names by what it makes; none for an unknown key."""
        code = _NAMED.get(keysym, _PLAIN.get(keysym, _SHIFTED.get(keysym)))
        if code is None:
            return b""
        if not down:
            return self._release(code)
        if keysym == _CAPS_LOCK:
            self._caps = not self._caps
        return b"".join(self._with_shift(keysym, self._press(code)))

    def place(self, code: int, *, down: bool) -> bytes:
        """Return the scancodes of a key that the viewer names by its place, as QEMU's extension does."""
        if not code & ~_EXTENDED or code > 0xFF:
            return b""
        return self._press(code) if down else self._release(code)

    def release_all(self) -> bytes:
        """Return the scancodes that release what is held: a viewer that goes leaves no key pressed."""
        return b"".join(self._release(code) for code in list(self._held))

    def _press(self, code: int) -> bytes:
        self._held[code] = code
        return _bytes(code, released=False)

    def _release(self, code: int) -> bytes:
        self._held.pop(code, None)
        return _bytes(code, released=True)

    def _with_shift(self, keysym: int, pressed: bytes) -> Iterator[bytes]:
        """Yield a pressed key with shift as its letter needs it, then shift as the viewer holds it."""
        held = [_NAMED[shift] for shift in sorted(_SHIFTS) if _NAMED[shift] in self._held]
        needs = _needs_shift(keysym, caps=self._caps)
        if needs is None or needs == bool(held):
            yield pressed
        elif needs:
            yield _bytes(_NAMED[_SHIFT_L], released=False) + pressed + _bytes(_NAMED[_SHIFT_L], released=True)
        else:
            yield from (_bytes(code, released=True) for code in held)
            yield pressed
            yield from (_bytes(code, released=False) for code in held)


def _needs_shift(keysym: int, *, caps: bool) -> bool | None:
    """Return whether a letter needs shift, or None for a key that means the same either way."""
    if keysym in _NAMED or keysym == ord(" "):
        return None
    return (keysym in _SHIFTED) != (caps and chr(keysym).isalpha())


def _bytes(code: int, *, released: bool) -> bytes:
    low = code & ~_EXTENDED | _RELEASED * released
    return bytes([0xE0, low] if code & _EXTENDED else [low])
