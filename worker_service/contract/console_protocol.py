"""How a console travels: a websocket with a ticket as subprotocol, and bytes relayed both ways until one end closes.

A worker relays between a viewer and QEMU, a master between a viewer and the worker. Both use this module, so it needs
nothing but the standard library. It is not re-exported: helpers do without asyncio.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection, Coroutine, Iterable, MutableMapping
from contextlib import suppress
from enum import IntEnum
from typing import Any, Final, Protocol

log = logging.getLogger("saltern.console")

SUBPROTOCOL: Final = "binary"
"""noVNC's name for VNC in binary frames."""

FRAME_BYTES: Final = 1 << 20
"""The largest frame that a viewer or a worker may send."""

_TICKET_PREFIX: Final = "ticket."
_CLOSE_TIMEOUT_S: Final = 5.0
_REASON_BYTES: Final = 120
_BROKEN: Final = "The connection broke."


class CloseCode(IntEnum):
    """Codes of RFC 6455 with which a console ends."""

    NORMAL = 1000
    UNSUPPORTED = 1003
    POLICY = 1008
    TOO_BIG = 1009


class ConsoleClosed(Exception):
    """One end closed, or must be closed.

    Args:
        code: the websocket's close code.
        reason: a sentence for the viewer.
    """

    def __init__(self, code: CloseCode, reason: str) -> None:
        super().__init__(reason)
        self.code = code
        # A close frame holds no more. The cut may fall within a letter, which then goes.
        self.reason = reason.encode()[:_REASON_BYTES].decode(errors="ignore")


def subprotocols(ticket: str) -> tuple[str, str]:
    """Return what a viewer offers. A URL would take the ticket into logs, and a page can set no other header."""
    return SUBPROTOCOL, f"{_TICKET_PREFIX}{ticket}"


def ticket_in(offered: Iterable[str]) -> str:
    """Return the ticket among the offered subprotocols, or an empty string."""
    return next((each.removeprefix(_TICKET_PREFIX) for each in offered if each.startswith(_TICKET_PREFIX)), "")


def accepted_subprotocol(offered: Collection[str]) -> str | None:
    """Return the subprotocol to answer with. It is never the ticket."""
    return SUBPROTOCOL if SUBPROTOCOL in offered else None


def is_origin_allowed(origin: str | None, allowed: Collection[str]) -> bool:
    """Return whether a page of this origin may open a console. Browsers send an origin, and programs send none."""
    return origin is None or origin.lower() in allowed


class Channel(Protocol):
    """One end of a console. Both methods raise ConsoleClosed at its end."""

    async def receive(self) -> bytes | str:
        """Wait for data. Text is no VNC; an end that knows VNC refuses it."""

    async def send(self, data: bytes | str) -> None:
        """Send data, and wait while the end cannot take more."""


class ViewerSocket(Protocol):
    """The part of Starlette's websocket that is needed here."""

    async def receive(self) -> MutableMapping[str, Any]:
        """Wait for an ASGI message."""

    async def send_bytes(self, data: bytes) -> None:
        """Send a binary frame."""

    async def close(self, code: int, reason: str) -> None:
        """Close the connection."""


class ViewerChannel:
    """The viewer's end.

    Args:
        websocket: accepted already.
        disconnected: the exception that `websocket` raises when the viewer has gone.
    """

    def __init__(self, websocket: ViewerSocket, disconnected: type[Exception]) -> None:
        self._websocket = websocket
        self._errors = (disconnected, RuntimeError, OSError)
        self._is_open = True

    async def receive(self) -> bytes | str:
        """Wait for a frame of the viewer. Raises ConsoleClosed."""
        try:
            message = await self._websocket.receive()
        except self._errors as err:
            raise ConsoleClosed(CloseCode.NORMAL, _BROKEN) from err
        if message["type"] == "websocket.disconnect":
            self._is_open = False
            raise ConsoleClosed(CloseCode.NORMAL, "")
        data: bytes | None = message.get("bytes")
        return str(message.get("text") or "") if data is None else data

    async def send(self, data: bytes | str) -> None:
        """Send a binary frame to the viewer. Raises ConsoleClosed."""
        try:
            await self._websocket.send_bytes(data.encode() if isinstance(data, str) else data)
        except self._errors as err:
            raise ConsoleClosed(CloseCode.NORMAL, _BROKEN) from err

    async def close(self, end: ConsoleClosed) -> None:
        """Close the connection politely, unless the viewer has gone."""
        if not self._is_open:
            return
        # The viewer may go at this moment, or may not read. The server ends connections that do not answer its pings.
        with suppress(*self._errors, TimeoutError):
            async with asyncio.timeout(_CLOSE_TIMEOUT_S):
                await self._websocket.close(end.code, end.reason)


async def relay(viewer: Channel, upstream: Channel, *watches: Coroutine[Any, Any, None]) -> ConsoleClosed:
    """Relay both ways until one end closes or a watch raises ConsoleClosed; return why. It closes neither end."""
    ways = (_pump(viewer, upstream), _pump(upstream, viewer), *watches)
    tasks = [asyncio.create_task(each) for each in ways]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    error = next(task for task in tasks if task in done).exception()
    if isinstance(error, ConsoleClosed):
        return error
    log.error("The relay of a console failed.", exc_info=error)
    return ConsoleClosed(CloseCode.NORMAL, _BROKEN)


async def _pump(source: Channel, target: Channel) -> None:
    while True:
        await target.send(await source.receive())
