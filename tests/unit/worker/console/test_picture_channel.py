"""The channel of a screen that comes as pictures: one picture a second, keys together, and none left pressed."""

import asyncio
import struct
import threading

import pytest

from tests.lib.support import PATIENCE_S
from worker_service.console.picture_channel import PictureChannel
from worker_service.contract.console_protocol import CloseCode, ConsoleClosed
from worker_service.core.errors import HypervisorError

REQUEST = struct.pack(">BBHHHH", 3, 0, 0, 0, 720, 400)
TIGHT_PNG = struct.pack(">BxHi", 2, 1, -260)


def png(body=b"pixels"):
    return b"\x89PNG\r\n\x1a\n" + b"\0\0\0\rIHDR" + struct.pack(">II", 720, 400) + body


def key(letter):
    return b"".join(struct.pack(">BBxxI", 4, down, ord(letter)) for down in (1, 0))


class Screen:
    """A hypervisor's screen that counts its pictures, fails as often as told to, and notes the keys."""

    def __init__(self, failures=0):
        self.pictures, self.failures, self.keys = 0, failures, []
        self.began, self.taking = threading.Event(), threading.Event()
        self.taking.set()

    def screenshot(self):
        if self.failures:
            self.failures -= 1
            raise HypervisorError("It is busy.")
        self.pictures += 1
        return png(str(self.pictures).encode())

    def send_keys(self, scancodes):
        self.began.set()
        assert self.taking.wait(PATIENCE_S)
        self.keys.append(scancodes)


async def opened(screen, **options):
    channel = PictureChannel("web1", screen.screenshot, screen.send_keys, **{"view_only": False, **options})
    assert await channel.receive() == b"RFB 003.008\n"
    for sent, size in ((b"RFB 003.008\n", 2), (b"\x01", 4), (b"\x01", 28)):
        await channel.send(sent)
        assert len(await channel.receive()) == size
    await channel.send(TIGHT_PNG)
    return channel


def test_pictures_are_made_on_request_and_not_more_often():
    async def look():
        screen = Screen()
        channel = await opened(screen, picture_s=3600)
        assert screen.pictures == 1  # the size of the screen
        await channel.send(REQUEST)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(channel.receive(), 0.1)
        assert screen.pictures == 1
        await channel.close()

    asyncio.run(look())


def test_screen_that_fails_is_tried_again():
    async def look():
        screen = Screen(failures=3)
        channel = await opened(screen, picture_s=0.001)
        await channel.send(REQUEST)
        assert (await channel.receive()).endswith(png(b"2"))
        await channel.close()

    asyncio.run(look())


def test_large_picture_travels_in_small_frames():
    async def look():
        screen = Screen()
        screen.screenshot = lambda: png(bytes(200_000))
        channel = await opened(screen, picture_s=0.001)
        await channel.send(REQUEST)
        frames = [await channel.receive() for _ in range(4)]
        assert [len(frame) for frame in frames[:3]] == [65536] * 3
        await channel.close()

    asyncio.run(look())


def test_keys_that_come_meanwhile_travel_together():
    async def write():
        screen = Screen()
        channel = await opened(screen)
        screen.taking.clear()
        await channel.send(key("a"))
        assert await asyncio.to_thread(screen.began.wait, PATIENCE_S)  # the first call has taken its key
        await channel.send(key("b"))
        await channel.send(key("c") + key("d")[:8])
        screen.taking.set()
        await channel.close()
        assert screen.keys == [bytes.fromhex("1e 9e"), bytes.fromhex("30 b0 2e ae 20 a0")]

    asyncio.run(write())


def test_lost_keys_end_nothing():
    async def write():
        screen = Screen()
        channel = await opened(screen, picture_s=0.001)

        def fail(_scancodes):
            raise HypervisorError("It is off.")

        channel._send_keys = fail
        await channel.send(key("a") + REQUEST)
        assert (await channel.receive()).endswith(png(b"2"))
        await channel.close()

    asyncio.run(write())


def test_view_only_viewer_sends_no_keys():
    async def write():
        screen = Screen()
        channel = await opened(screen, view_only=True, picture_s=0.001)
        await channel.send(key("a") + REQUEST)
        assert (await channel.receive()).endswith(png(b"2"))
        await channel.close()
        assert screen.keys == []

    asyncio.run(write())


@pytest.mark.parametrize("data", ["text", b"\xee", b"\xff\x07\0\0"])
def test_what_is_no_vnc_closes_the_console(data):
    async def write():
        channel = await opened(Screen())
        with pytest.raises(ConsoleClosed) as closed:
            await channel.send(data)
        assert closed.value.code == CloseCode.UNSUPPORTED
        await channel.close()

    asyncio.run(write())
