"""Pick the form of each text for the caller, in every answer. See `core.audience`."""

from __future__ import annotations

from typing import Final

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from master_service.core.audience import pick_in_json
from master_service.policy.permissions import SEES_WORKERS, Reach

_WITH_TEXTS: Final = ("application/json", "application/problem+json", "text/event-stream")


class Audience:
    """ASGI middleware. It stands around all routes, so that none can forget it."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        scope.setdefault("state", {})
        await self._app(scope, receive, _Picker(scope, send))


class _Picker:
    """The `send` of one request. The head waits for the first part of the body, whose length may change."""

    def __init__(self, scope: Scope, send: Send) -> None:
        self._scope = scope
        self._send = send
        self._head: Message | None = None
        self._has_texts = False

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._has_texts = MutableHeaders(raw=message["headers"]).get("content-type", "").startswith(_WITH_TEXTS)
            if self._has_texts:
                self._head = message
                return
        if self._has_texts and message["type"] == "http.response.body":
            body = message.get("body", b"")
            picked = pick_in_json(body, sees_workers=_sees_workers(self._scope))
            message = {**message, "body": picked}
            if self._head is not None:
                headers = MutableHeaders(raw=self._head["headers"])
                if "content-length" in headers:
                    headers["content-length"] = str(int(headers["content-length"]) + len(picked) - len(body))
                await self._send(self._head)
                self._head = None
        await self._send(message)


def _sees_workers(scope: Scope) -> bool:
    caller = scope["state"].get("caller")
    return caller is not None and SEES_WORKERS.reach(caller.role) is Reach.ALL
