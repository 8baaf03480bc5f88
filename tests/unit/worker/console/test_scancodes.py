"""Keys of viewers become scancodes of set 1, with shift as the letter needs it."""

import pytest

from worker_service.console.scancodes import Keyboard

SHIFT, SHIFT_R, CAPS, CONTROL = 0xFFE1, 0xFFE2, 0xFFE5, 0xFFE3
UP, DOWN = False, True


@pytest.mark.parametrize(
    ("keys", "codes"),
    [
        ([("a", DOWN), ("a", UP)], "1e 9e"),
        ([(" ", DOWN), (" ", UP)], "39 b9"),
        ([("1", DOWN), ("=", DOWN), ("/", DOWN), ("\\", DOWN), ("`", DOWN)], "02 0d 35 2b 29"),
        ([(0xFF0D, DOWN), (0xFF0D, UP)], "1c 9c"),
        ([(0xFF52, DOWN), (0xFF52, UP)], "e0 48 e0 c8"),
        ([(0xFFBE, DOWN), (0xFFC7, DOWN), (0xFFC8, DOWN)], "3b 44 57"),
        ([(0xFFB7, DOWN), (0xFF95, DOWN), (0xFF8D, DOWN)], "47 47 e0 1c"),
        ([(CONTROL, DOWN), ("c", DOWN), ("c", UP), (CONTROL, UP)], "1d 2e ae 9d"),
        # with shift held as the letter needs it
        ([(SHIFT, DOWN), ("A", DOWN), ("A", UP), (SHIFT, UP)], "2a 1e 9e aa"),
        ([(SHIFT_R, DOWN), ("|", DOWN), ("|", UP), (SHIFT_R, UP)], "36 2b ab b6"),
        ([(SHIFT, DOWN), (0xFF09, DOWN), (" ", DOWN)], "2a 0f 39"),
        # the viewer's keyboard has the letter elsewhere
        ([("A", DOWN), ("A", UP)], "2a 1e aa 9e"),
        ([("?", DOWN), ("?", UP)], "2a 35 aa b5"),
        ([(SHIFT, DOWN), ("/", DOWN), ("/", UP)], "2a aa 35 2a b5"),
        ([(SHIFT, DOWN), (SHIFT_R, DOWN), ("7", DOWN)], "2a 36 aa b6 08 2a 36"),
        # caps lock changes letters alone
        ([(CAPS, DOWN), (CAPS, UP), ("A", DOWN)], "3a ba 1e"),
        ([(CAPS, DOWN), (CAPS, UP), ("1", DOWN)], "3a ba 02"),
        ([(CAPS, DOWN), (CAPS, UP), (CAPS, DOWN), (CAPS, UP), ("a", DOWN)], "3a ba 3a ba 1e"),
        # unknown: the euro sign, a dead key
        ([(0x20AC, DOWN), (0xFE50, UP)], ""),
    ],
)
def test_keys_by_what_they_make(keys, codes):
    keyboard = Keyboard()
    sent = b"".join(keyboard.key(key if isinstance(key, int) else ord(key), down=down) for key, down in keys)
    assert sent == bytes.fromhex(codes)


@pytest.mark.parametrize(
    ("place", "codes"),
    [(0x1E, "1e 9e"), (0xC8, "e0 48 e0 c8"), (0, ""), (0x80, ""), (0x100, ""), (0xFFFFFFFF, "")],
)
def test_keys_by_their_place(place, codes):
    keyboard = Keyboard()
    assert keyboard.place(place, down=True) + keyboard.place(place, down=False) == bytes.fromhex(codes)


def test_keys_held_by_a_leaving_viewer_are_released():
    keyboard = Keyboard()
    for keysym in (CONTROL, 0xFFE9, 0xFFFF):
        keyboard.key(keysym, down=True)
    keyboard.key(0xFFE9, down=False)
    assert keyboard.release_all() == bytes.fromhex("9d e0 d3")
    assert keyboard.release_all() == b""
