"""The connection of a console to the VNC server of a VM."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from worker_service.console.rfb_filter import NotRfb, ViewOnly
from worker_service.console.vnc_login import Greeting, LoginFailed, log_in
from worker_service.contract.console_protocol import CloseCode, ConsoleClosed
from worker_service.core.errors import HypervisorError
from worker_service.hypervisor.base import Console

_CHUNK: Final = 64 << 10


class VncChannel:
    """The hypervisor's end of a console.

    Args:
        reader: VNC from the hypervisor.
        writer: VNC to it.
        view_only: drop what acts on the guest.
    """

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, view_only: bool) -> None:
        self._reader = reader
        self._writer = writer
        self._filter = ViewOnly() if view_only else None

    async def receive(self) -> bytes:
        """Wait for data of the hypervisor. Raises ConsoleClosed."""
        try:
            data = await self._reader.read(_CHUNK)
        except OSError as err:  # QEMU ended with something unread
            raise off() from err
        if not data:
            raise off()
        return data

    async def send(self, data: bytes | str) -> None:
        """Send what a viewer sent. Raises ConsoleClosed."""
        if isinstance(data, str):
            raise ConsoleClosed(CloseCode.UNSUPPORTED, "Only binary frames carry VNC.")
        for begin in range(0, len(data), _CHUNK):
            part = data[begin : begin + _CHUNK]
            try:
                await self._pass_on(self._filter.feed(part) if self._filter else part)
            except NotRfb as err:
                raise ConsoleClosed(CloseCode.UNSUPPORTED, f"Not VNC as it is known here: {err}.") from None
            except OSError as err:
                raise off() from err
            await asyncio.sleep(0)  # a large frame must not hold up the other callers of this process

    async def _pass_on(self, data: bytes) -> None:
        self._writer.write(data)
        await self._writer.drain()


class PasswordChannel(VncChannel):
    """The hypervisor's end of a console with a password. This end has logged in already, and greets the viewer."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, view_only: bool) -> None:
        super().__init__(reader, writer, view_only=view_only)
        self._greeting = Greeting()
        self._replies: asyncio.Queue[bytes] = asyncio.Queue()
        self._replies.put_nowait(self._greeting.first)

    async def receive(self) -> bytes:
        """Wait for the next part of the greeting, then for data of the hypervisor. Raises ConsoleClosed."""
        if self._greeting.over and self._replies.empty():
            return await super().receive()
        return await self._replies.get()

    async def _pass_on(self, data: bytes) -> None:
        if self._greeting.over:
            await super()._pass_on(data)
            return
        reply, rest = self._greeting.feed(data)
        if reply or self._greeting.over:  # an empty one lets `receive` go on to the hypervisor
            self._replies.put_nowait(reply)
        if rest:
            await super()._pass_on(rest)


@asynccontextmanager
async def connected(console: Console, *, view_only: bool) -> AsyncIterator[VncChannel]:
    """Connect to the screen of a VM for the block. Raises HypervisorError."""
    scheme, _, place = console.address.partition(":")
    try:
        if scheme == "unix":
            reader, writer = await asyncio.open_unix_connection(place, limit=_CHUNK)
        else:
            host, _, port = place.rpartition(":")
            reader, writer = await asyncio.open_connection(host, int(port), limit=_CHUNK)
    except OSError as err:
        raise HypervisorError(f"The VM's screen does not answer at {place}: {err}. `status` says more.") from err
    try:
        if console.password:
            await _log_in(reader, writer, console)
            yield PasswordChannel(reader, writer, view_only=view_only)
        else:
            yield VncChannel(reader, writer, view_only=view_only)
    finally:
        writer.close()


async def _log_in(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, console: Console) -> None:
    try:
        await log_in(reader, writer, console.password)
    except (LoginFailed, OSError) as err:
        raise HypervisorError(f"The VM's screen at {console.address} cannot be opened: {err}. Try again.") from err


def off() -> ConsoleClosed:
    """Return the end of a console whose VM has none any more."""
    return ConsoleClosed(CloseCode.NORMAL, "The VM's console is gone: the VM is off, or it was booted again.")
