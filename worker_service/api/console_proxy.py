"""Screens over HTTP: tickets by POST, a websocket that carries VNC for whoever holds one, and pictures."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from typing import Any, Final

from fastapi import Request, WebSocket
from fastapi.responses import Response
from starlette.websockets import WebSocketDisconnect, WebSocketState

from worker_service.api.access import Access, Audit, require_scope
from worker_service.api.auth import Token
from worker_service.api.origin_guard import host_name
from worker_service.api.responses import failure
from worker_service.console import tickets
from worker_service.console.address import origins
from worker_service.console.rfb_filter import NotRfb, ViewOnly
from worker_service.console.tickets import Ticket
from worker_service.contract import Code
from worker_service.core.errors import BadRequest, HypervisorError, NotFound, Refused, SalternError
from worker_service.core.settings import ApiSettings
from worker_service.operations.screen import admit, screenshot, socket_of
from worker_service.state.context import WorkerContext

log = logging.getLogger("saltern.facade")

SCOPE: Final = "console"
_ADMIN: Final = "operate"
"""A token with this scope beside `console` is an administrator's: it could destroy the VM as well as look at it."""
_PROTOCOL: Final = "binary"
_TICKET: Final = "ticket."
_LOOK_S: Final = 1.0
_FAREWELL_S: Final = 5.0
_CHUNK: Final = 64 << 10
_GONE, _NOT_UNDERSTOOD, _SHUT = 1000, 1003, 1008
_REASON_BYTES: Final = 120
_OFF: Final = "The VM's screen is gone: it is off, or it was booted anew."


def is_admin(token: Token) -> bool:
    """Whether a token's screens stay open while software is being installed."""
    return _ADMIN in token.scopes


def with_ticket(token: Token, given: Mapping[str, Any]) -> tuple[dict[str, Any], str | None]:
    """The parameters of `screen` in this token's name, and the ticket's secret where the caller did not make one."""
    if {"user", "admin"} & given.keys():
        raise BadRequest("user and admin are what the token says. Leave them out.")
    secret, digest = (None, given["ticket_sha256"]) if given.get("ticket_sha256") else tickets.make()
    return {**given, "ticket_sha256": digest, "user": token.label, "admin": is_admin(token)}, secret


class Closed(Exception):
    """One end closed, or must be closed; with the websocket's code and reason."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(reason)
        self.code = code
        # A close frame holds no more; a reason cut within a letter would break it.
        self.reason = reason.encode()[:_REASON_BYTES].decode(errors="ignore")


class Screens:
    """The websockets and pictures of one worker's screens.

    Args:
        worker: whose screens.
        settings: of its facade.
        access: who may ask for pictures.
    """

    def __init__(self, worker: WorkerContext, settings: ApiSettings, access: Access) -> None:
        self._worker = worker
        self._settings = settings
        self._access = access
        self._open = 0

    async def picture(self, request: Request, uuid: str = "", name: str = "") -> Response:
        """The answer to `GET /vmachines/screenshot`: a PNG."""
        audit = Audit(request, "screenshot")
        audit.vm = uuid or name
        try:
            token = self._access.identify(request)
            audit.by = token.label
            require_scope(token, SCOPE, "see screens")
            image = await asyncio.to_thread(screenshot, self._worker, uuid, name, admin=is_admin(token))
        except SalternError as err:
            audit.write(err.http_status, err.code)
            return failure(str(err), err.code)
        audit.write(200, None)
        return Response(image, media_type="image/png")

    async def serve(self, websocket: WebSocket, uuid: str) -> None:
        """Carry one viewer's VNC, from the ticket to the end of either side."""
        audit = Audit(websocket, "screen.open")
        audit.vm = uuid
        self._open += 1
        try:
            ticket = await self._admit(websocket, uuid)
            audit.by = ticket.user
            end = await self._show(websocket, ticket, audit)
        except SalternError as err:
            audit.write(err.http_status, err.code)
            await websocket.send_denial_response(failure(str(err), err.code))
            return
        finally:
            self._open -= 1
        closed = Audit(websocket, "screen.close")
        closed.by, closed.vm = ticket.user, uuid
        closed.write(end.code, end.reason or None)

    async def _show(self, websocket: WebSocket, ticket: Ticket, audit: Audit) -> Closed:
        """Accept a viewer whose ticket is good, and carry its view to its end; why it ended. Raises SalternError."""
        async with self._connected(ticket) as (reader, writer):
            audit.write(101, None)
            offered = websocket.scope.get("subprotocols", [])
            await websocket.accept(_PROTOCOL if _PROTOCOL in offered else None)
            end = await self._carry(websocket, reader, writer, ticket)
        if websocket.client_state is WebSocketState.CONNECTED:
            # It may have gone this very moment, or may not read: the server ends what does not answer its pings.
            with suppress(RuntimeError, WebSocketDisconnect, TimeoutError):
                async with asyncio.timeout(_FAREWELL_S):
                    await websocket.close(end.code, end.reason)
        return end

    async def _admit(self, websocket: WebSocket, uuid: str) -> Ticket:
        """The ticket, taken. Whoever may not even ask does not use it up."""
        origin = websocket.headers.get("origin")
        # Browsers always say where a page is from; programs have no origin.
        if origin is not None and origin.lower() not in origins(self._settings):
            text = f"Pages from {origin[:100]!r} may not show screens here. Add it to facade.origins in the settings."
            raise Refused(text, code=Code.POLICY)
        if host_name(websocket.headers.get("host", "")) not in self._settings.allowed_hosts:
            raise Refused("This worker has another name. See facade.allowed_hosts in its settings.", code=Code.POLICY)
        if self._open > self._settings.max_consoles:
            text = f"{self._settings.max_consoles} screens are open, no more may be. Close one."
            raise Refused(text, code=Code.TOO_MANY)
        # Not in the URL, which ends in logs and in referrers. A page can set no header but this one.
        offered = websocket.scope.get("subprotocols", [])
        secret = next((each.removeprefix(_TICKET) for each in offered if each.startswith(_TICKET)), "")
        return await asyncio.to_thread(admit, self._worker, secret, uuid)

    @asynccontextmanager
    async def _connected(self, ticket: Ticket) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
        """QEMU's end, while the gate is open; raises SalternError."""
        path = await asyncio.to_thread(socket_of, self._worker, ticket)
        try:
            reader, writer = await asyncio.open_unix_connection(str(path), limit=_CHUNK)
        except OSError as err:
            raise HypervisorError(f"QEMU does not answer at {path}: {err.strerror}. `status` says more.") from err
        try:
            yield reader, writer
        finally:
            writer.close()

    async def _carry(
        self, websocket: WebSocket, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, ticket: Ticket
    ) -> Closed:
        """Carry bytes both ways, and look at the gate, until one of the three ends; why it did."""
        tasks = [
            asyncio.create_task(each)
            for each in (_to_guest(websocket, writer, ticket), _to_viewer(reader, websocket), self._watch(ticket))
        ]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        err = next(iter(done)).exception()
        if isinstance(err, Closed):
            return err
        if isinstance(err, OSError):  # of QEMU's end, which went with something unread
            return Closed(_GONE, _OFF)
        if not isinstance(err, RuntimeError | WebSocketDisconnect):
            log.error("a screen's bridge failed", exc_info=err)
        return Closed(_GONE, "The connection broke.")

    async def _watch(self, ticket: Ticket) -> None:
        """End the view when the gate shuts, or its VM has none any more."""
        while True:
            await asyncio.sleep(_LOOK_S)
            try:
                await asyncio.to_thread(socket_of, self._worker, ticket)
            except (Refused, NotFound) as err:
                # QEMU's end is said in the same words, whichever of the two is seen first.
                raise (Closed(_SHUT, str(err)) if err.code is Code.POLICY else Closed(_GONE, _OFF)) from None
            except SalternError:
                # Silence of libvirt shuts nothing: a gate that was open shuts only on a boot, which ends this QEMU.
                continue


async def _to_guest(websocket: WebSocket, writer: asyncio.StreamWriter, ticket: Ticket) -> None:
    only_look = ViewOnly() if ticket.view_only else None
    while True:
        message = await websocket.receive()
        if message["type"] == "websocket.disconnect":
            raise Closed(_GONE, "")
        data = message.get("bytes")
        if data is None:
            raise Closed(_NOT_UNDERSTOOD, "Only binary frames carry VNC.")
        for begin in range(0, len(data), _CHUNK):
            part = data[begin : begin + _CHUNK]
            try:
                writer.write(only_look.feed(part) if only_look else part)
            except NotRfb as err:
                raise Closed(_NOT_UNDERSTOOD, f"Not VNC as it is known here: {err}.") from None
            await writer.drain()
            await asyncio.sleep(0)  # the facade has other callers: none waits for the whole of a large frame


async def _to_viewer(reader: asyncio.StreamReader, websocket: WebSocket) -> None:
    while data := await reader.read(_CHUNK):
        await websocket.send_bytes(data)
    raise Closed(_GONE, _OFF)
