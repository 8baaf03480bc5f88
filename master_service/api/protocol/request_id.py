"""Every answer says which request it belongs to: `X-Request-ID`, the client's own or a fresh one, also in the log."""

from __future__ import annotations

import re
import uuid
from typing import Final

import structlog
from fastapi import FastAPI
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

HEADER: Final = "X-Request-ID"
_SANE: Final = re.compile(r"^[A-Za-z0-9._~+/=-]{1,128}$")
"""What is taken over from a client: it goes into logs and headers."""


class RequestIds:
    """Plain ASGI: it must not hold back streams."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = Headers(scope=scope).get(HEADER, "")
        request_id = given if _SANE.match(given) else str(uuid.uuid4())

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)[HEADER] = request_id
            await send(message)

        with structlog.contextvars.bound_contextvars(request=request_id):
            await self._app(scope, receive, send_with_id)


def install(app: FastAPI) -> None:
    """Let every request have one."""
    app.add_middleware(RequestIds)
