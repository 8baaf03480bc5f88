"""The protocol of consoles without any network: subprotocols, origins, and the relay between two channels."""

import asyncio
import logging

import pytest

from worker_service.contract.console_protocol import (
    CloseCode,
    ConsoleClosed,
    ViewerChannel,
    accepted_subprotocol,
    is_origin_allowed,
    relay,
    subprotocols,
    ticket_in,
)


class Gone(Exception):
    pass


class Channel:
    """An end that sends what it is given, then waits or fails, and keeps what it receives."""

    def __init__(self, *data, end=None):
        self.waiting, self.end, self.received = list(data), end, []

    async def receive(self):
        if self.waiting:
            return self.waiting.pop(0)
        if self.end is not None:
            raise self.end
        return await asyncio.Event().wait()

    async def send(self, data):
        self.received.append(data)


class Socket:
    """Starlette's websocket: it yields these messages, and fails with `error` where one is set."""

    def __init__(self, *messages, error=None):
        self.messages, self.error, self.sent, self.closed = list(messages), error, [], []

    async def receive(self):
        return self.messages.pop(0)

    async def send_bytes(self, data):
        if self.error:
            raise self.error
        self.sent.append(data)

    async def close(self, code, reason):
        if self.error:
            raise self.error
        self.closed.append((code, reason))


async def watching():
    await asyncio.Event().wait()


def test_ticket_offered_is_found_and_never_accepted():
    offered = subprotocols("s3cret")
    assert ticket_in(offered) == "s3cret"
    assert accepted_subprotocol(offered) == "binary"
    assert accepted_subprotocol(offered[1:]) is None
    assert not ticket_in(["binary"])


@pytest.mark.parametrize(
    ("origin", "allowed"),
    [
        (None, True),
        ("https://salt.example", True),
        ("HTTPS://Salt.Example", True),
        ("https://salt.example:444", False),
        ("null", False),
        ("", False),
    ],
)
def test_origin_is_allowed_if_listed_or_absent(origin, allowed):
    assert is_origin_allowed(origin, {"https://salt.example"}) is allowed


def test_too_long_close_reason_is_cut_between_letters():
    assert ConsoleClosed(CloseCode.NORMAL, "x" + "ä" * 100).reason == "x" + "ä" * 59


async def test_relay_carries_both_ways_until_an_end_closes():
    end = ConsoleClosed(CloseCode.POLICY, "shut")
    viewer, upstream = Channel(b"1", b"2"), Channel(b"3", end=end)
    assert await relay(viewer, upstream, watching()) is end
    assert (viewer.received, upstream.received) == ([b"3"], [b"1", b"2"])


async def test_relay_ends_when_the_watch_closes():
    async def shut():
        raise ConsoleClosed(CloseCode.POLICY, "no longer")

    end = await relay(Channel(), Channel(), shut())
    assert (end.code, end.reason) == (1008, "no longer")


async def test_relay_bug_is_logged_and_shown_without_details(caplog):
    caplog.set_level(logging.ERROR)
    end = await relay(Channel(end=KeyError("a secret")), Channel(), watching())
    assert (end.code, end.reason) == (1000, "The connection broke.")
    assert "KeyError" in caplog.text


async def test_relay_cancelled_leaves_no_task_behind():
    before = asyncio.all_tasks()
    task = asyncio.create_task(relay(Channel(), Channel(), watching()))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await asyncio.sleep(0)
    assert asyncio.all_tasks() == before


async def test_viewer_frames_keep_their_kind():
    frames = [{"type": "websocket.receive", "bytes": b""}, {"type": "websocket.receive", "bytes": None, "text": "a"}]
    frames.append({"type": "websocket.receive", "text": ""})
    viewer = ViewerChannel(Socket(*frames), Gone)
    assert [await viewer.receive() for _ in frames] == [b"", "a", ""]


async def test_viewer_that_left_is_not_closed_again():
    socket = Socket({"type": "websocket.disconnect"})
    viewer = ViewerChannel(socket, Gone)
    with pytest.raises(ConsoleClosed) as end:
        await viewer.receive()
    await viewer.close(end.value)
    assert (end.value.reason, socket.closed) == ("", [])


async def test_viewer_still_there_is_closed_with_the_reason():
    socket = Socket()
    viewer = ViewerChannel(socket, Gone)
    await viewer.send("text of the other end")
    await viewer.close(ConsoleClosed(CloseCode.POLICY, "shut"))
    assert (socket.sent, socket.closed) == ([b"text of the other end"], [(1008, "shut")])


@pytest.mark.parametrize("error", [Gone(), RuntimeError("sent after close"), ConnectionResetError()])
async def test_viewer_that_breaks_off_closes_the_console(error):
    viewer = ViewerChannel(Socket(error=error), Gone)
    with pytest.raises(ConsoleClosed, match="broke") as end:
        await viewer.send(b"x")
    await viewer.close(end.value)


async def test_broken_viewer_closes_the_console():
    class Broken(Socket):
        async def receive(self):
            raise Gone

    with pytest.raises(ConsoleClosed) as closed:
        await ViewerChannel(Broken(), Gone).receive()
    assert closed.value.code == CloseCode.NORMAL
