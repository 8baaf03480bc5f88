"""HTTP/1.1 and websockets for callers that may be slow on purpose: a request arrives within a time, or is cut off.

Hypercorn (0.18) cannot replace this: its `read_timeout` counts from the last byte, so it lets a dripped head or body go
on, and ends an idle console. It has no limit of connections either.
"""

from __future__ import annotations

import asyncio
from typing import Final

import h11
import msgspec
from uvicorn._types import ASGISendEvent
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from worker_service.contract import Code

_RECEIVING: Final = frozenset({h11.IDLE, h11.SEND_BODY})
_BUSY: Final = msgspec.json.encode(
    {
        "success": False,
        "message": "The worker answers as many callers as it can. Try again in a second.",
        "code": Code.HYPERVISOR.value,
    }
)


class BoundedProtocol(H11Protocol):
    """uvicorn's protocol with two bounds that it lacks.

    They are the time for a request to arrive, and who gives way when there are too many connections: whoever has kept
    a request back longest, not whoever comes last.
    """

    receive_timeout_s: float = 20.0
    most_connections: int = 512
    _deadline: asyncio.TimerHandle | None = None
    access_log = property(lambda _: False, lambda _, __: None)
    """Never, however logging is set up: a line of it holds the query, and that what people put into URIs."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start the clock of the first request."""
        super().connection_made(transport)
        if len(self.connections) > self.most_connections and not self._make_room():
            head = f"HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\nContent-Length: {len(_BUSY)}"
            transport.write(head.encode() + b"\r\nRetry-After: 1\r\nConnection: close\r\n\r\n" + _BUSY)
            transport.close()
            return
        self._start_clock()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the clock."""
        self._stop_clock()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Stop the clock when a request is whole. A connection that is kept starts it again for each request."""
        super().data_received(data)
        # A websocket's protocol has taken the connection over; h11 never hears the end of that request.
        if self.conn.their_state not in _RECEIVING or self.transport.get_protocol() is not self:
            self._stop_clock()
        elif self._deadline is None:
            self._start_clock()

    def _start_clock(self) -> None:
        self._deadline = self.loop.call_later(self.receive_timeout_s, self._too_slow)

    def _stop_clock(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _too_slow(self) -> None:
        self._deadline = None
        self.transport.abort()

    def _make_room(self) -> bool:
        """End the connection whose request is the most overdue; False where none is being waited for."""
        waiting = [
            (timer.when(), one)
            for one in self.connections
            if isinstance(one, BoundedProtocol) and (timer := one._deadline or one.timeout_keep_alive_task)  # noqa: SLF001
        ]
        if not waiting:
            return False
        min(waiting, key=lambda pair: pair[0])[1].transport.abort()
        return True


class ConsoleProtocol(WebSocketsSansIOProtocol):
    """uvicorn's websocket, which takes a refusal with a body for a bug of the application, and logs it as one."""

    async def send(self, message: ASGISendEvent) -> None:
        """A refusal that is sent whole ends the handshake."""
        await super().send(message)
        if message["type"] == "websocket.http.response.body" and not message.get("more_body", False):
            self.handshake_complete = True
