"""Consoles over HTTP: tickets by POST, a websocket that relays VNC to the holder of a ticket, and screenshots."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, Final

from fastapi import Request, WebSocket
from fastapi.responses import Response
from starlette.websockets import WebSocketDisconnect

from http_bounds.guard import host_name, host_of
from worker_service.api import request_body
from worker_service.api.access import Access, Audit, require_scope
from worker_service.api.auth import Token
from worker_service.api.responses import failure
from worker_service.api.vnc_channel import connected, off
from worker_service.console import tickets
from worker_service.console.address import origins
from worker_service.console.picture_channel import PictureChannel
from worker_service.console.tickets import Ticket
from worker_service.contract import Code
from worker_service.contract.console_protocol import (
    Channel,
    CloseCode,
    ConsoleClosed,
    ViewerChannel,
    accepted_subprotocol,
    is_origin_allowed,
    relay,
    ticket_in,
)
from worker_service.core.errors import BadRequest, NotFound, Refused, SalternError
from worker_service.core.settings import ApiSettings
from worker_service.operations.screen import admit, console_of, pictures_of, screenshot
from worker_service.state.context import WorkerContext

SCOPE: Final = "console"
_ADMIN: Final = "operate"
"""A token with this scope beside `console` is an administrator's: it could destroy the VM as well as look at it."""
_LOOK_S: Final = 1.0


def is_admin(token: Token) -> bool:
    """Whether a token's consoles stay open while software is being installed."""
    return _ADMIN in token.scopes


def with_ticket(token: Token, given: Mapping[str, Any]) -> tuple[dict[str, Any], str | None]:
    """The parameters of `screen` in this token's name, and the ticket's secret where the caller did not make one."""
    if {"user", "admin", "token_sha256"} & given.keys():
        raise BadRequest("user, admin and token_sha256 are what the token says. Leave them out.")
    if "disk" in given:
        raise BadRequest("Disks are downloaded through the master alone: saltern download. Leave `disk` out.")
    secret, digest = (None, given["ticket_sha256"]) if given.get("ticket_sha256") else tickets.make()
    rights = {"user": token.label, "admin": is_admin(token), "token_sha256": token.sha256}
    return {**given, "ticket_sha256": digest, **rights}, secret


class ConsoleProxy:
    """The websockets and screenshots of one worker's consoles.

    Args:
        worker: runs the VMs.
        settings: of the worker's API.
        access: checks the tokens of those that ask for screenshots.
    """

    def __init__(self, worker: WorkerContext, settings: ApiSettings, access: Access) -> None:
        self._worker = worker
        self._settings = settings
        self._access = access
        self._open = 0

    async def screenshot(self, request: Request) -> Response:
        """The answer to `GET /vmachines/screenshot`: a PNG."""
        audit = Audit(request, "screenshot")
        try:
            token = self._access.identify(request)
            audit.by = token.label
            require_scope(token, SCOPE, "see screens")
            given = request_body.query(request, "uuid", "name")
            uuid, name = given.get("uuid"), given.get("name")
            audit.vm = uuid or name or ""
            image = await asyncio.to_thread(screenshot, self._worker, uuid, name, admin=is_admin(token))
        except SalternError as err:
            audit.write(err.http_status, err.code)
            return failure(str(err), err.code)
        audit.write(200, None)
        return Response(image, media_type="image/png")

    async def serve(self, websocket: WebSocket, uuid: str) -> None:
        """Relay one viewer's VNC, from the ticket until either end closes."""
        audit = Audit(websocket, "screen.open")
        audit.vm = uuid
        self._open += 1
        try:
            ticket = await self._admit(websocket, uuid)
            audit.by = ticket.user
            end = await self._relay(websocket, ticket, audit)
        except SalternError as err:
            audit.write(err.http_status, err.code)
            await websocket.send_denial_response(failure(str(err), err.code))
            return
        finally:
            self._open -= 1
        closed = Audit(websocket, "screen.close")
        closed.by, closed.vm = ticket.user, uuid
        closed.write(end.code, end.reason or None)

    async def _relay(self, websocket: WebSocket, ticket: Ticket, audit: Audit) -> ConsoleClosed:
        """Accept the viewer of a good ticket, relay until one end closes, and return why. Raises SalternError."""
        async with self._connected(ticket) as qemu:
            audit.write(101, None)
            await websocket.accept(accepted_subprotocol(websocket.scope.get("subprotocols", [])))
            viewer = ViewerChannel(websocket, WebSocketDisconnect)
            end = await relay(viewer, qemu, self._watch_vm(ticket), self._watch_token(ticket))
        await viewer.close(end)
        return end

    async def _admit(self, websocket: WebSocket, uuid: str) -> Ticket:
        """Take the ticket and return it. A refusal before that leaves the ticket unused."""
        origin = websocket.headers.get("origin")
        if not is_origin_allowed(origin, origins(self._settings)):
            text = f"Pages from {str(origin)[:100]!r} may not show consoles here. "
            text += "Add it to api.origins in the settings."
            raise Refused(text, code=Code.POLICY)
        if host_name(host_of(websocket.scope)) not in self._settings.allowed_hosts:
            raise Refused("This worker has another name. See api.allowed_hosts in its settings.", code=Code.POLICY)
        if self._open > self._settings.max_consoles:
            text = f"{self._settings.max_consoles} consoles are open, which is the limit. Close one."
            raise Refused(text, code=Code.TOO_MANY)
        secret = ticket_in(websocket.scope.get("subprotocols", []))
        ticket = await asyncio.to_thread(admit, self._worker, secret, uuid)
        if not self._is_permitted(ticket):
            raise Refused(tickets.INVALID, code=Code.POLICY)
        return ticket

    def _is_permitted(self, ticket: Ticket) -> bool:
        """Return whether the token that the ticket came with still opens as much. Masters answer for their own."""
        needed = {SCOPE, _ADMIN} if ticket.admin else {SCOPE}
        return not ticket.token_sha256 or needed <= self._access.scopes(ticket.token_sha256)

    @asynccontextmanager
    async def _connected(self, ticket: Ticket) -> AsyncIterator[Channel]:
        """Connect to the VM's screen if the policy allows it. Raises SalternError."""
        console = await asyncio.to_thread(console_of, self._worker, ticket)
        if console.socket is not None:
            async with connected(console.socket, view_only=ticket.view_only) as channel:
                yield channel
            return
        name, picture, send_keys = await asyncio.to_thread(pictures_of, self._worker, ticket)
        pictures = PictureChannel(name, picture, send_keys, view_only=ticket.view_only)
        try:
            yield pictures
        finally:
            await pictures.close()

    async def _watch_token(self, ticket: Ticket) -> None:
        """Raise ConsoleClosed once the ticket's token is gone. It waits for nothing else, such as libvirt."""
        while True:
            if not self._is_permitted(ticket):
                raise ConsoleClosed(CloseCode.POLICY, "The token of this console was removed, or opens less now.")
            await asyncio.sleep(_LOOK_S)

    async def _watch_vm(self, ticket: Ticket) -> None:
        """Raise ConsoleClosed once the policy shuts the console, or the VM has none any more."""
        while True:
            await asyncio.sleep(_LOOK_S)
            try:
                await asyncio.to_thread(console_of, self._worker, ticket)
            except (Refused, NotFound) as err:
                # The end of QEMU has the same words, whether the channel or this task sees it first.
                shut = ConsoleClosed(CloseCode.POLICY, str(err))
                raise (shut if err.code is Code.POLICY else off()) from None
            except SalternError:
                # A silent libvirt shuts no console: a console that was open shuts only at a boot, which ends this QEMU.
                continue
