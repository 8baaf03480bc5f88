"""HTTP/1.1 and websockets for callers that may be slow on purpose: they are cut off after a time.

Hypercorn (0.18) cannot replace this: its `read_timeout` counts from the last byte, so it lets a dripped head or body go
on, and ends an idle console. It has no limit of connections either.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from contextlib import suppress
from typing import Final

import h11
from uvicorn._types import ASGISendEvent
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

# Not below "uvicorn", whose own configuration resets the levels of all loggers there.
_LOG: Final = logging.getLogger("saltern.http")
_LOG.setLevel(logging.ERROR)
_RECEIVING: Final = frozenset({h11.IDLE, h11.SEND_BODY})


class BoundedProtocol(H11Protocol):
    """uvicorn's protocol with three bounds that it lacks.

    They are the time for a request to arrive, the time for which a caller may take nothing of an answer, and who gives
    way when there are too many connections: the caller that has kept the server waiting longest, not the last one.
    """

    receive_timeout_s: float = 20.0
    """Limit of both times."""
    most_connections: int = 512
    busy: bytes = b""
    """The body of the answer to a caller for whom there is no room."""
    tls: ssl.SSLContext | None = None
    """The handshake is this protocol's own: asyncio's server neither counts nor hurries those who begin one."""
    busy_type: str = "application/json"
    _deadline: asyncio.TimerHandle | None = None
    _unread: asyncio.TimerHandle | None = None
    _handshake: asyncio.Task[None] | None = None
    _early: bytes = b""
    logger = property(lambda _: _LOG, lambda _, __: None)
    """Only errors: uvicorn warns of each request that is no HTTP, and any caller could fill the log."""
    access_log = property(lambda _: False, lambda _, __: None)
    """Never, however logging is set up: a line of it holds the query, and that what people put into URIs."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start the clock of the handshake and of the first request."""
        super().connection_made(transport)
        if len(self.connections) > self.most_connections and not self._make_room():
            if self.tls is None:
                transport.write(_answer("503 Service Unavailable", self.busy_type, self.busy, "Retry-After: 1"))
            transport.close()
            return
        self._start_clock()
        if self.tls is not None:
            transport.pause_reading()  # start_tls resumes
            self._handshake = self.loop.create_task(self._secure(transport, self.tls))

    async def _secure(self, transport: asyncio.Transport, tls: ssl.SSLContext) -> None:
        """Do the handshake. The clock of the first request bounds its time."""
        secured = None
        with suppress(OSError, asyncio.CancelledError):  # an SSLError is an OSError
            secured = await self.loop.start_tls(transport, self, tls, server_side=True)
        self._handshake = None
        if secured is None or transport.is_closing():
            # asyncio does not report the end of an unfinished handshake, and after an abort not even its failure.
            transport.abort()
            self.connection_lost(ConnectionResetError())
            return
        super().connection_made(secured)
        if self._early:
            self.data_received(self._early)

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the clocks."""
        self._stop_clock()
        self._stop_unread()
        super().connection_lost(exc)
        if self._handshake is not None:
            self._handshake.cancel()

    def data_received(self, data: bytes) -> None:
        """Stop the clock when a request is whole. A connection that is kept starts it again for each request."""
        if self._handshake is not None:  # it has succeeded, and its task has not heard of it yet
            self._early += data
            return
        super().data_received(data)
        # A websocket's protocol has taken the connection over; h11 never hears the end of that request.
        if self.conn.their_state not in _RECEIVING or self.transport.get_protocol() is not self:
            self._stop_clock()
        elif self._deadline is None:
            self._start_clock()

    def send_400_response(self, msg: str) -> None:
        """Answer what is no HTTP, with the headers that every answer has."""
        self.transport.write(_answer("400 Bad Request", "text/plain; charset=utf-8", msg.encode()))
        self.transport.close()

    def pause_writing(self) -> None:
        """Start the clock of an answer that its caller does not take."""
        super().pause_writing()
        if self._unread is None:
            self._unread = self.loop.call_later(self.receive_timeout_s, self.transport.abort)

    def resume_writing(self) -> None:
        """Stop that clock."""
        super().resume_writing()
        self._stop_unread()

    @property
    def waiting(self) -> asyncio.TimerHandle | None:
        """The clock of what the server waits for; None while the server itself has to answer."""
        return self._deadline or self._unread or self.timeout_keep_alive_task

    def _start_clock(self) -> None:
        self._deadline = self.loop.call_later(self.receive_timeout_s, self._too_slow)

    def _stop_clock(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _stop_unread(self) -> None:
        if self._unread is not None:
            self._unread.cancel()
            self._unread = None

    def _too_slow(self) -> None:
        self._deadline = None
        self.transport.abort()

    def _make_room(self) -> bool:
        """End the connection whose caller is the most overdue; False where the server waits for no caller."""
        waiting = [
            (timer.when(), one)
            for one in self.connections
            if isinstance(one, BoundedProtocol) and (timer := one.waiting)
        ]
        if not waiting:
            return False
        min(waiting, key=lambda pair: pair[0])[1].transport.abort()
        return True


def _answer(status: str, media_type: str, body: bytes, *more: str) -> bytes:
    """Return an answer to a request that no application gets."""
    head = (
        f"HTTP/1.1 {status}",
        f"Content-Type: {media_type}",
        f"Content-Length: {len(body)}",
        "Cache-Control: no-store",
        "X-Content-Type-Options: nosniff",
        "Connection: close",
        *more,
    )
    return "\r\n".join((*head, "", "")).encode() + body


class ConsoleProtocol(WebSocketsSansIOProtocol):
    """uvicorn's websocket, which takes a refusal with a body for a bug of the application, and logs it as one."""

    async def send(self, message: ASGISendEvent) -> None:
        """A refusal that is sent whole ends the handshake."""
        await super().send(message)
        if message["type"] == "websocket.http.response.body" and not message.get("more_body", False):
            self.handshake_complete = True
