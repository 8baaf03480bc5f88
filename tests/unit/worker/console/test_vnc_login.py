"""The password of a VNC server stays on the worker: this end logs in, and the viewer needs none."""

import asyncio

import pytest

from worker_service.api.vnc_channel import connected
from worker_service.console.rfb_filter import NotRfb
from worker_service.console.vnc_login import Greeting, LoginFailed, log_in, response
from worker_service.core.errors import HypervisorError
from worker_service.hypervisor.base import Console

CHALLENGE = bytes(range(16))
VERSION = b"RFB 003.008\n"


def test_response_to_a_challenge():
    # From `openssl enc -des-ecb`, with the bits of each byte of the key reversed.
    assert response("secret", CHALLENGE).hex() == "ee22539f33a5983ec12f9c2edbc995dd"
    assert response("12345678", CHALLENGE) == response("123456789", CHALLENGE)


class Server:
    """A VNC server with a password, which echoes what a viewer sends after the login."""

    def __init__(self, password="secret", kinds=b"\x02", version=VERSION):
        self._password, self._kinds, self._version = password, kinds, version

    async def serve(self, reader, writer):
        writer.write(self._version)
        try:
            assert await reader.readexactly(12) == VERSION
            writer.write(bytes([len(self._kinds)]) + self._kinds)
            assert await reader.readexactly(1) == b"\x02"
            writer.write(CHALLENGE)
            right = await reader.readexactly(16) == response(self._password, CHALLENGE)
            writer.write((not right).to_bytes(4, "big"))
            while right and (data := await reader.read(100)):
                writer.write(data)
        except asyncio.IncompleteReadError:
            pass
        writer.close()


@pytest.fixture
async def serving():
    servers = []

    async def start(**options):
        server = await asyncio.start_server(Server(**options).serve, "127.0.0.1", 0)
        servers.append(server)
        return f"tcp:127.0.0.1:{server.sockets[0].getsockname()[1]}"

    yield start
    for server in servers:
        server.close()
        await server.wait_closed()


@pytest.mark.parametrize(
    ("sent", "received"),
    [
        ([VERSION, b"\x01", b"\x01hello"], VERSION + b"\x01\x01" + bytes(4) + b"\x01hello"),
        ([VERSION + b"\x01\x01hello"], VERSION + b"\x01\x01" + bytes(4) + b"\x01hello"),
        ([b"RFB 003.007\n", b"\x01", b"\x01"], VERSION + b"\x01\x01" + b"\x01"),
        ([b"RFB 003.003\n", b"\x01"], VERSION + bytes(3) + b"\x01" + b"\x01"),
    ],
)
async def test_viewer_needs_no_password(serving, sent, received):
    console = Console(address=await serving(), password="secret")
    got = b""
    async with connected(console, view_only=False) as channel:
        for data in sent:
            await channel.send(data)
        while len(got) < len(received):
            got += await channel.receive()
    assert got == received


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"password": "another"}, "refused the password"),
        ({"kinds": b"\x01"}, "no password"),
        ({"version": b"HTTP/1.1 400"}, "HTTP/1.1 400"),
    ],
)
async def test_server_that_does_not_let_in(serving, options, reason):
    console = Console(address=await serving(**options), password="secret")
    with pytest.raises(HypervisorError, match=reason):
        async with connected(console, view_only=False):
            pass


async def test_silent_server_is_given_up(monkeypatch):
    monkeypatch.setattr("worker_service.console.vnc_login._LOGIN_S", 0)
    with pytest.raises(LoginFailed, match="did not answer"):
        await log_in(asyncio.StreamReader(), None, "secret")


@pytest.mark.parametrize("data", [b"GET / HTTP/1.1\r\n", VERSION + b"\x02"])
def test_viewer_that_is_none(data):
    with pytest.raises(NotRfb):
        Greeting().feed(data)
