"""The screen of a VM whose hypervisor offers pictures and no VNC, as one end of a console's relay."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Final, TypeVar

from worker_service.console.rfb_filter import ViewOnly
from worker_service.console.rfb_messages import NotRfb
from worker_service.console.rfb_pictures import PictureSession
from worker_service.contract.console_protocol import CloseCode, ConsoleClosed
from worker_service.core.errors import HypervisorError

T = TypeVar("T")

log = logging.getLogger("saltern.console")

_PICTURE_S: Final = 1.0
_CHUNK: Final = 64 << 10
_WAITING_KEYS: Final = 256
"""Scancodes that wait for the hypervisor. A viewer that types faster waits."""


class PictureChannel:
    """Answers one viewer's RFB itself. A picture is made only on request, and at most once a second.

    Args:
        name: of the VM.
        screenshot: returns the present picture as PNG; raises HypervisorError. It runs in a thread.
        send_keys: takes scancodes for the guest; raises HypervisorError. It runs in a thread.
        view_only: drop what acts on the guest.
        picture_s: the shortest time between two pictures.
    """

    def __init__(
        self,
        name: str,
        screenshot: Callable[[], bytes],
        send_keys: Callable[[bytes], None],
        *,
        view_only: bool,
        picture_s: float = _PICTURE_S,
    ) -> None:
        self._session = PictureSession(name)
        self._screenshot = screenshot
        self._send_keys = send_keys
        self._filter = ViewOnly() if view_only else None
        self._picture_s = picture_s
        self._out = bytearray(self._session.greeting())
        self._news = asyncio.Event()
        self._keys = bytearray()
        self._typing: asyncio.Task[None] | None = None
        self._next_picture = 0.0

    async def receive(self) -> bytes:
        """Wait for data for the viewer. Raises ConsoleClosed."""
        while not self._out:
            if not self._session.awaited:
                self._news.clear()
                await self._news.wait()
                continue
            await asyncio.sleep(max(0.0, self._next_picture - time.monotonic()))
            self._next_picture = time.monotonic() + self._picture_s
            # The picture of a VM that goes off fails. The relay's watch then ends the console and says why.
            with suppress(HypervisorError):
                png = await asyncio.to_thread(self._screenshot)
                self._out += _checked(partial(self._session.picture, png))
        taken = bytes(self._out[:_CHUNK])
        del self._out[:_CHUNK]
        return taken

    async def send(self, data: bytes | str) -> None:
        """Take what a viewer sent. Raises ConsoleClosed."""
        if isinstance(data, str):
            raise ConsoleClosed(CloseCode.UNSUPPORTED, "Only binary frames carry VNC.")
        for begin in range(0, len(data), _CHUNK):
            part = data[begin : begin + _CHUNK]
            reply, keys = _checked(partial(self._fed, part))
            self._out += reply
            self._type(keys)
            while self._typing is not None and len(self._keys) > _WAITING_KEYS:
                await asyncio.wait([self._typing])
            await asyncio.sleep(0)  # a large frame must not hold up the other callers of this process
        self._news.set()

    async def close(self) -> None:
        """Release the keys that the viewer holds, and wait until the hypervisor has got all keys."""
        self._type(self._session.leave())
        if self._typing is not None:
            await asyncio.wait([self._typing])

    def _fed(self, data: bytes) -> tuple[bytes, bytes]:
        return self._session.feed(self._filter.feed(data) if self._filter else data)

    def _type(self, keys: bytes) -> None:
        """Pass scancodes on, those that come meanwhile together: each call of a hypervisor takes its time."""
        self._keys += keys
        if self._keys and (self._typing is None or self._typing.done()):
            self._typing = asyncio.create_task(self._pass_keys())

    async def _pass_keys(self) -> None:
        while self._keys:
            taken = bytes(self._keys)
            self._keys.clear()
            try:
                await asyncio.to_thread(self._send_keys, taken)
            except HypervisorError as err:
                log.warning("Keys for a guest were lost: %s", err)


def _checked(step: Callable[[], T]) -> T:
    """Return the result of a step that reads RFB; raise ConsoleClosed for what is none."""
    try:
        return step()
    except NotRfb as err:
        raise ConsoleClosed(CloseCode.UNSUPPORTED, f"Not VNC as it is known here: {err}.") from None
