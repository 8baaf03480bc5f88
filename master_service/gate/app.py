"""The routes of the gate. Whoever may open its socket is the master service: there is no other caller."""

from __future__ import annotations

from typing import Final

import structlog
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from master_service.core.errors import SaltDenied, SaltError, SaltRequestTooLarge
from master_service.gate.event_hub import EventHub
from master_service.gate.requests import Call, Publish, decode
from master_service.gate.rest_cherrypy import RestCherrypy

log = structlog.get_logger()
ENGINE_MISSING: Final = "The Salt engine saltern_events is not connected to the gate."


class Gate:
    """The handlers of the routes."""

    def __init__(self, salt: RestCherrypy, hub: EventHub, profile: str) -> None:
        self._salt = salt
        self._hub = hub
        self._profile = profile

    async def check(self, _: Request) -> Response:
        """Check that salt-api accepts the account."""
        await self._salt.check()
        return JSONResponse({"message": "salt-api accepts the account."})

    async def profile(self, _: Request) -> Response:
        """Return the profile of the settings, and the one that is in force at the Salt master."""
        in_force = "dedicated" if await self._salt.is_confined() else "shared"
        return JSONResponse({"chosen": self._profile, "in_force": in_force})

    async def call(self, request: Request) -> Response:
        """Run a `Call` and pass the answer of salt-api on."""
        call = decode(await self._body(request), Call)
        self._hub.expect(call.nonce)
        answer = await self._salt.run(call.lowstate(), 2 * call.timeout_s)
        return Response(answer, media_type="application/json")

    async def publish(self, request: Request) -> Response:
        """Run a `Publish` and pass the answer of salt-api on."""
        job = decode(await self._body(request), Publish)
        self._hub.expect(job.nonce)
        return Response(await self._salt.run(job.lowstate(), 0), media_type="application/json")

    async def events(self, _: Request) -> Response:
        """Stream events, each a line of JSON."""
        if not self._hub.connected:
            return _problem(503, ENGINE_MISSING)
        return StreamingResponse(self._hub.stream(), media_type="application/x-ndjson")

    async def _body(self, request: Request) -> bytes:
        """Read a body to its end, so that its sender gets the answer; keep no more of it than salt-api takes."""
        body, size = bytearray(), 0
        try:
            async for chunk in request.stream():
                size += len(chunk)
                if size <= self._salt.request_limit:
                    body += chunk
        except ClientDisconnect:
            raise ValueError("its sender disconnected before it was complete") from None
        self._salt.require_fits(size)
        return bytes(body)


def create_app(salt: RestCherrypy, hub: EventHub, profile: str) -> Starlette:
    """Return the application. `profile`: the one of the settings."""
    gate = Gate(salt, hub, profile)
    return Starlette(
        routes=[
            Route("/check", gate.check, methods=["GET"]),
            Route("/profile", gate.profile, methods=["GET"]),
            Route("/call", gate.call, methods=["POST"]),
            Route("/publish", gate.publish, methods=["POST"]),
            Route("/events", gate.events, methods=["GET"]),
        ],
        exception_handlers={
            ValueError: _refused,
            SaltDenied: lambda _, err: _problem(403, str(err)),
            SaltRequestTooLarge: lambda _, err: _problem(413, str(err)),
            SaltError: lambda _, err: _problem(502, f"{err} {getattr(err, 'hint', '')}".strip()),
        },
    )


async def _refused(_: Request, err: Exception) -> Response:
    log.warning("request_refused", reason=str(err))
    return _problem(400, f"The gate passes no such request: {err}.")


def _problem(status: int, message: str) -> Response:
    return JSONResponse({"message": message}, status)
