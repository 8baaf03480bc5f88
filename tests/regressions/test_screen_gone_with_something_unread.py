"""A VM that went off while its viewer asked for a picture was told as a connection that broke."""

import asyncio
from types import SimpleNamespace

from worker_service.facade.screens import Screens


async def test_it_is_told_as_off(tmp_path):
    asked = asyncio.Event()

    async def end_unread(_reader, writer):
        await asked.wait()
        writer.transport.abort()

    class Viewer:
        async def receive(self):
            if asked.is_set():
                await asyncio.Event().wait()
            return {"type": "websocket.receive", "bytes": b"a picture, please"}

        async def send_bytes(self, data):
            raise AssertionError(data)

    async def open_for_ever(_ticket):
        await asyncio.Event().wait()

    screens = SimpleNamespace(_watch=open_for_ever)
    qemu = await asyncio.start_unix_server(end_unread, tmp_path / "vnc", limit=1)
    async with qemu:
        reader, writer = await asyncio.open_unix_connection(tmp_path / "vnc")
        drain = writer.drain

        async def drained():
            await drain()
            asked.set()

        writer.drain = drained
        end = await Screens._carry(screens, Viewer(), reader, writer, SimpleNamespace(view_only=False))
        writer.close()
    assert "The VM's screen is gone: it is off" in end.reason
