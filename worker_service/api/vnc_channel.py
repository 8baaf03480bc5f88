"""The connection of a console to the VNC server of a VM."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

from worker_service.console.rfb_filter import NotRfb, ViewOnly
from worker_service.contract.console_protocol import CloseCode, ConsoleClosed
from worker_service.core.errors import HypervisorError

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
                self._writer.write(self._filter.feed(part) if self._filter else part)
                await self._writer.drain()
            except NotRfb as err:
                raise ConsoleClosed(CloseCode.UNSUPPORTED, f"Not VNC as it is known here: {err}.") from None
            except OSError as err:
                raise off() from err
            await asyncio.sleep(0)  # a large frame must not hold up the other callers of this process


@asynccontextmanager
async def connected(socket: Path, *, view_only: bool) -> AsyncIterator[VncChannel]:
    """Connect to the VNC server of a VM for the block. Raises HypervisorError."""
    try:
        reader, writer = await asyncio.open_unix_connection(socket, limit=_CHUNK)
    except OSError as err:
        raise HypervisorError(f"QEMU does not answer at {socket}: {err.strerror}. `status` says more.") from err
    try:
        yield VncChannel(reader, writer, view_only=view_only)
    finally:
        writer.close()


def off() -> ConsoleClosed:
    """Return the end of a console whose VM has none any more."""
    return ConsoleClosed(CloseCode.NORMAL, "The VM's console is gone: the VM is off, or it was booted again.")
