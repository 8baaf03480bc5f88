"""Around every answer: which hosts are answered, how large a body may be, and how a browser may use the answer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from starlette.websockets import WebSocket

from web_assets import PAGE_HEADERS

Refuse = Callable[[Scope], Response | None]
MOST_BODY: Final = "http_bounds.most_body"
"""Key of a scope: a route that needs less sets a smaller bound than that of the application, before it reads."""

_KINDS: Final = frozenset({"http", "websocket"})


class Guard:
    """Plain ASGI: Starlette's `BaseHTTPMiddleware` takes a task of its own and two streams for each request.

    Args:
        app: the application.
        refuse: returns the answer to a request that the application does not get, judged by its head.
        most_body: the largest body in bytes. More of it is never read.
        too_large: returns the error that is raised where more is read.
    """

    def __init__(self, app: ASGIApp, *, refuse: Refuse, most_body: int, too_large: Callable[[], Exception]) -> None:
        self._app = app
        self._refuse = refuse
        self._most_body = most_body
        self._too_large = too_large

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, or let answer."""
        refused = self._refuse(scope) if scope["type"] in _KINDS else None
        if scope["type"] == "http":
            await (refused or self._app)(scope, self._bounded(scope, receive), _with_headers(send))
        elif refused is not None:
            await WebSocket(scope, receive, send).send_denial_response(refused)
        else:
            await self._app(scope, receive, send)

    def _bounded(self, scope: Scope, receive: Receive) -> Receive:
        """Return `receive` that raises once a body is larger than allowed, whatever its header says."""
        received = 0

        async def bounded() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > scope.get(MOST_BODY, self._most_body):
                raise self._too_large()
            return message

        return bounded


def _with_headers(send: Send) -> Send:
    async def sent(message: Message) -> None:
        if message["type"] == "http.response.start":
            MutableHeaders(scope=message).update(PAGE_HEADERS)
        await send(message)

    return sent


def host_of(scope: Scope) -> str:
    """Return the Host of a request; empty without one, and if there are several."""
    hosts = Headers(scope=scope).getlist("host")
    return hosts[0] if len(hosts) == 1 else ""


def host_name(host: str) -> str:
    """Return the name in a Host header without its port: `::1` for `[::1]:8081`."""
    name, _, port = host.rpartition(":")
    return (name if port.isdigit() and name else host).strip("[]").lower()
