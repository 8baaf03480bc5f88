"""The RFB server for a screen of pictures: handshake, TightPNG on request, keys, and what is dropped."""

import struct

import pytest

from worker_service.console.rfb_messages import NotRfb
from worker_service.console.rfb_pictures import PictureSession

VERSION = b"RFB 003.008\n"
TIGHT_PNG, DESKTOP_SIZE, QEMU_KEYS = -260, -223, -258


def png(width=720, height=400, body=b"pixels"):
    return b"\x89PNG\r\n\x1a\n" + b"\0\0\0\rIHDR" + struct.pack(">II", width, height) + body


def encodings(*numbers):
    return struct.pack(f">BxH{len(numbers)}i", 2, len(numbers), *numbers)


def request(*, incremental):
    return struct.pack(">BBHHHH", 3, incremental, 0, 0, 720, 400)


def opened(*known, first=None):
    """A session after the handshake, with a viewer that knows these encodings."""
    session = PictureSession("web1")
    assert session.feed(VERSION) == (b"\x01\x01", b"")
    assert session.feed(b"\x01") == (bytes(4), b"")
    assert session.feed(b"\x01") == (b"", b"")
    assert session.awaited == "size"
    session.picture(first or png())
    session.feed(encodings(*known))
    return session


def rectangles(update):
    """The rectangles of an update as (width, height, encoding), and the picture behind them."""
    kind, count = struct.unpack_from(">BxH", update)
    assert kind == 0
    found, at = [], 4
    for _ in range(count):
        _x, _y, width, height, encoding = struct.unpack_from(">HHHHi", update, at)
        found.append((width, height, encoding))
        at += 12
    return found, update[at:]


def test_handshake_bytewise_reaches_the_size_of_the_screen():
    session = PictureSession("web1")
    assert session.greeting() == VERSION
    sent = b"".join(session.feed(bytes([byte]))[0] for byte in VERSION + b"\x01\x00")
    assert sent == b"\x01\x01" + bytes(4)
    init = session.picture(png(800, 600))
    assert struct.unpack_from(">HH", init) == (800, 600)
    assert init.endswith(struct.pack(">I", 4) + b"web1")
    assert session.awaited == ""


def test_viewer_of_rfb_3_7_gets_no_security_result():
    session = PictureSession("web1")
    assert session.feed(b"RFB 003.007\n\x01\x01") == (b"\x01\x01", b"")
    assert session.awaited == "size"


@pytest.mark.parametrize(
    "data",
    [b"RFB 003.003\n", b"GET / HTTP/1", VERSION + b"\x02", VERSION + b"\x01\x01\xee", VERSION + b"\x01\x01\xff\x07"],
)
def test_stream_that_is_not_rfb_is_refused(data):
    with pytest.raises(NotRfb):
        PictureSession("web1").feed(data)


def test_request_is_answered_with_one_picture():
    session = opened(TIGHT_PNG)
    assert session.picture(png()) == b""
    session.feed(request(incremental=False))
    found, rest = rectangles(session.picture(png(body=b"first")))
    assert found == [(720, 400, TIGHT_PNG)]
    assert rest == b"\xa0" + bytes([len(png(body=b"first"))]) + png(body=b"first")
    assert session.picture(png(body=b"second")) == b""


def test_incremental_request_waits_for_another_picture():
    session = opened(TIGHT_PNG)
    session.feed(request(incremental=True))
    assert session.awaited == "changed"
    assert session.picture(png())
    session.feed(request(incremental=True))
    assert session.picture(png()) == b""
    assert session.awaited == "changed"
    assert session.picture(png(body=b"other"))
    session.feed(request(incremental=False) + request(incremental=True))
    assert session.awaited == "any"
    assert session.picture(png(body=b"other"))


@pytest.mark.parametrize(
    ("length", "stated"),
    [(127, "7f"), (128, "80 01"), (10_000, "90 4e"), (16_384, "80 80 01"), (1_000_000, "c0 84 3d")],
)
def test_length_of_a_picture_is_stated_in_one_to_three_bytes(length, stated):
    session = opened(TIGHT_PNG)
    session.feed(request(incremental=False))
    _, rest = rectangles(session.picture(png().ljust(length, b"x")))
    assert rest[1:].startswith(bytes.fromhex(stated) + b"\x89PNG")


def test_new_size_comes_before_its_picture():
    session = opened(TIGHT_PNG, DESKTOP_SIZE)
    session.feed(request(incremental=True))
    found, _ = rectangles(session.picture(png(1024, 768)))
    assert found == [(1024, 768, DESKTOP_SIZE), (1024, 768, TIGHT_PNG)]


@pytest.mark.parametrize(("known", "picture"), [((0, 7), png()), ((TIGHT_PNG,), png(640, 480))])
def test_viewer_that_lacks_an_encoding_is_refused(known, picture):
    session = opened(*known)
    session.feed(request(incremental=False))
    with pytest.raises(NotRfb, match="Use noVNC"):
        session.picture(picture)


@pytest.mark.parametrize("picture", [b"", b"P6 720 400 255 ", png().ljust(1 << 22, b"x")])
def test_picture_that_no_frame_can_carry_is_refused(picture):
    session = opened(TIGHT_PNG)
    session.feed(request(incremental=False))
    with pytest.raises(NotRfb, match="no PNG"):
        session.picture(picture)


def test_qemu_keys_are_offered_once_and_name_places():
    session = opened(TIGHT_PNG, QEMU_KEYS)
    session.feed(request(incremental=False))
    assert rectangles(session.picture(png()))[0] == [(0, 0, QEMU_KEYS), (720, 400, TIGHT_PNG)]
    session.feed(request(incremental=False))
    assert len(rectangles(session.picture(png()))[0]) == 1
    pressed = struct.pack(">BBHII", 255, 0, 1, ord("z"), 0x15)
    released = struct.pack(">BBHII", 255, 0, 0, ord("z"), 0x15)
    placeless = struct.pack(">BBHII", 255, 0, 1, ord("a"), 0)
    assert session.feed(pressed + released + placeless) == (b"", bytes.fromhex("15 95 1e"))


def test_keys_reach_the_guest_and_are_released_at_the_end():
    session = opened(TIGHT_PNG)
    assert session.feed(struct.pack(">BBxxI", 4, 1, 0xFFE3)) == (b"", b"\x1d")
    assert session.leave() == b"\x9d"


def test_what_has_no_way_to_the_guest_is_dropped_unbuffered():
    session = opened(TIGHT_PNG)
    pointer = struct.pack(">BBHH", 5, 1, 10, 10)
    clipboard = struct.pack(">BxxxI", 6, 1 << 20)
    fence, pixels = struct.pack(">BxxxIB", 248, 0, 2) + b"ab", bytes(20)
    sizes = struct.pack(">BxHHBx", 251, 720, 400, 1) + bytes(16)
    audio = struct.pack(">BBH", 255, 1, 0)
    assert session.feed(pointer + fence + pixels + sizes + audio + clipboard) == (b"", b"")
    for _ in range(16):
        session.feed(bytes(1 << 16))
        assert len(session._buffer) == 0
    assert session.feed(struct.pack(">BBxxI", 4, 1, ord("q"))) == (b"", b"\x10")


def test_messages_that_come_bytewise_are_taken_whole():
    session = opened()
    fence = struct.pack(">BxxxIB", 248, 0, 2) + b"ab"
    audio, form = struct.pack(">BBH", 255, 1, 0), struct.pack(">BBHBBI", 255, 1, 2, 0, 2, 44100)
    sent = (
        fence + audio + form + encodings(TIGHT_PNG) + request(incremental=False) + struct.pack(">BBxxI", 4, 1, 0xFF0D)
    )
    assert b"".join(session.feed(bytes([byte]))[1] for byte in sent) == b"\x1c"
    assert session.picture(png())
