"""Regression: the message for a VM that stopped during a view depended on which part of the bridge saw it first."""

import asyncio
from types import SimpleNamespace

import pytest
from starlette.websockets import WebSocketDisconnect

from worker_service.api import console_proxy
from worker_service.api.console_proxy import ConsoleProxy
from worker_service.api.vnc_channel import VncChannel
from worker_service.console import policy
from worker_service.contract import Status
from worker_service.contract.console_protocol import ConsoleClosed, ViewerChannel, relay
from worker_service.core.errors import NotFound

OFF = "The VM's console is gone: the VM is off"


@pytest.mark.parametrize(
    ("why", "closing"),
    [
        (policy.refusal("a", Status.HALTED, "", installing=False, admin=False), (1000, OFF)),
        (NotFound("There is no VM 'a'."), (1000, OFF)),
        (
            policy.refusal("a", Status.INSTALLING, "", installing=True, admin=False),
            (1008, "The console of 'a' is closed"),
        ),
    ],
    ids=["off", "destroyed", "shut"],
)
async def test_console_ends_when_access_is_lost(monkeypatch, why, closing):
    def look(*_):
        raise why

    monkeypatch.setattr(console_proxy, "_LOOK_S", 0)
    monkeypatch.setattr(console_proxy, "console_of", look)
    with pytest.raises(ConsoleClosed) as end:
        await ConsoleProxy._watch_vm(SimpleNamespace(_worker=None), None)
    code, words = closing
    assert (end.value.code, end.value.reason[: len(words)]) == (code, words)


async def test_console_ends_when_qemu_is_reset(tmp_path):
    arrived = asyncio.Event()

    async def end_unread(_reader, writer):
        await arrived.wait()
        writer.transport.abort()

    class Viewer:
        async def receive(self):
            if arrived.is_set():
                await asyncio.Event().wait()
            return {"type": "websocket.receive", "bytes": b"a picture, please"}

        async def send_bytes(self, data):
            raise AssertionError(data)

    viewer = ViewerChannel(Viewer(), WebSocketDisconnect)
    qemu = await asyncio.start_unix_server(end_unread, tmp_path / "vnc", limit=1)
    async with qemu:
        reader, writer = await asyncio.open_unix_connection(tmp_path / "vnc")
        drain = writer.drain

        async def drained():
            await drain()
            arrived.set()

        writer.drain = drained
        end = await relay(viewer, VncChannel(reader, writer, view_only=False), asyncio.Event().wait())
        writer.close()
    assert OFF in end.reason
