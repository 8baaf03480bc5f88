"""Screens: a ticket by POST, a websocket that carries VNC from the VM's worker, and the page that shows it."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Coroutine
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Final

import structlog
from fastapi import APIRouter, Body, Request, Response, WebSocket
from fastapi.responses import FileResponse
from fastapi.staticfiles import StaticFiles
from pydantic import BaseModel, ConfigDict
from starlette.websockets import WebSocketDisconnect, WebSocketState
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus
from websockets.typing import Subprotocol

from master_service.api.protocol.auth import PREFIX, TheCaller, TheMaster, User, master_of
from master_service.api.protocol.errors import RESPONSES, as_answer, responses
from master_service.core.errors import Forbidden, MasterError, SaltError, TooMany
from master_service.core.settings import Settings
from master_service.planning.outcomes import Outcome
from master_service.policy.audit import Actor, AuditEntry
from master_service.services.console_tickets import ConsoleTicket, TicketRequester
from master_service.services.master import Master
from web_assets import NOVNC
from worker_service.contract import origin_of

log = structlog.get_logger()
router = APIRouter(prefix="/vmachines", tags=["console"], responses=RESPONSES)
screens = APIRouter(prefix="/console", tags=["console"])
pages = APIRouter(prefix="/console", include_in_schema=False)

_STATIC: Final = Path(__file__).parents[1] / "static"
_PROTOCOL: Final = "binary"
_TICKET: Final = "ticket."
_FRAME_BYTES: Final = 1 << 20
_OPEN_S: Final = 10.0
_LOOK_S: Final = 2.0
"""So often it is looked, while a view lasts, whether its user may still see it."""
_FAREWELL_S: Final = 5.0
_GONE: Final = 1000
_NO_MORE: Final = 1008
_REASON_BYTES: Final = 120
_HEADERS: Final = {
    "Cache-Control": "no-store",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Content-Security-Policy": "default-src 'none'; style-src 'self' 'unsafe-inline'; script-src 'self'; "
    "connect-src 'self'; img-src 'self' data:; form-action 'none'; frame-ancestors 'none'; base-uri 'none'",
}


class ConsoleOrder(BaseModel):
    """What the ticket is to be good for."""

    model_config = ConfigDict(extra="forbid")
    view_only: bool = False


class ConsoleView(BaseModel):
    """A ticket. It opens the websocket `url` once, as the subprotocol `ticket.<ticket>`; `page` shows it to people."""

    url: str
    ticket: str
    expires_at: datetime
    page: str


class _Refusal(BaseModel):
    """As much of a worker's refusal as is told on."""

    message: str


@router.post("/{id_or_name}/console", responses=responses(429, 503))
async def console(  # noqa: PLR0913, PLR0917 - one parameter per part of the request
    id_or_name: str,
    master: TheMaster,
    user: User,
    caller: TheCaller,
    request: Request,
    response: Response,
    order: Annotated[ConsoleOrder | None, Body()] = None,
) -> ConsoleView:
    """A ticket for the VM's screen: good once, for 30 s. Refused with how far it is while software is installed."""
    vm = await master.vms.get(id_or_name)
    view_only = order is not None and order.view_only
    asker = TicketRequester(name=caller.name, role=caller.role, scopes=caller.scopes, token_id=caller.token_id)
    try:
        ticket = await master.console_tickets.issue(vm, asker, view_only=view_only)
    except MasterError as err:
        await _note(master, user, "console", vm.desired.name, vm.uuid, str(err))
        raise
    await _note(master, user, "console", vm.desired.name, vm.uuid)
    response.headers["Cache-Control"] = "no-store"
    base = (master.context.settings.public_url or str(request.base_url)).rstrip("/")
    return ConsoleView(
        url=f"{base.replace('http', 'ws', 1)}{PREFIX}/console/{vm.uuid}/screen",
        ticket=ticket.secret,
        expires_at=ticket.expires_at,
        page=f"{base}/console/{vm.uuid}#{ticket.secret}",
    )


@screens.websocket("/{uuid}/screen")
async def screen(websocket: WebSocket, uuid: str) -> None:
    """Carry one viewer's VNC, from the ticket to the end of either side."""
    master = master_of(websocket)
    master.console_tickets.open += 1
    try:
        ticket = await _admit(websocket, uuid, master)
        await _show(websocket, ticket, master)
    except MasterError as err:
        await websocket.send_denial_response(as_answer(err))
    finally:
        master.console_tickets.open -= 1


async def _admit(websocket: WebSocket, uuid: str, master: Master) -> ConsoleTicket:
    """The ticket, taken. A page from elsewhere does not use it up."""
    settings = master.context.settings
    origin = websocket.headers.get("origin")
    if origin is not None and origin.lower() not in origins(settings):
        text = f"Pages from {origin[:100]!r} may not show screens here."
        raise Forbidden(text, "Set public_url in the master's settings.")
    if master.console_tickets.open > settings.console_screens:
        raise TooMany(f"{settings.console_screens} screens are open, no more may be.")
    offered = websocket.scope.get("subprotocols", [])
    secret = next((each.removeprefix(_TICKET) for each in offered if each.startswith(_TICKET)), "")
    return await master.console_tickets.take(secret, uuid)


def origins(settings: Settings) -> frozenset[str]:
    """The origins of pages that may show screens: the master's own."""
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    own = [f"http://{name}:{settings.port}" for name in ("127.0.0.1", "localhost", "[::1]", host)]
    return frozenset(map(origin_of, [settings.public_url] if settings.public_url else own))


async def _show(websocket: WebSocket, ticket: ConsoleTicket, master: Master) -> None:
    address = websocket.client.host if websocket.client else ""
    actor = Actor(
        name=ticket.requester.name, interface="web" if websocket.headers.get("origin") else "api", address=address
    )
    async with await _worker(ticket, master.context.settings) as worker:
        offered = websocket.scope.get("subprotocols", [])
        await websocket.accept(_PROTOCOL if _PROTOCOL in offered else None)
        await _note(master, actor, "console.open", ticket.name, ticket.uuid)
        code, reason = await _carry(websocket, worker, _watch(ticket, master))
        if websocket.client_state is WebSocketState.CONNECTED:
            # It may have gone this very moment, or may not read: the server ends what does not answer its pings.
            with suppress(RuntimeError, WebSocketDisconnect, TimeoutError):
                async with asyncio.timeout(_FAREWELL_S):
                    await websocket.close(code, reason)
    await _note(master, actor, "console.close", ticket.name, ticket.uuid)


async def _worker(ticket: ConsoleTicket, settings: Settings) -> ClientConnection:
    """The websocket at the worker; raises Forbidden where its gate is shut, SaltError where it is not to be had."""
    context = None
    if ticket.upstream_url.startswith("wss:"):
        context = ssl.create_default_context(cafile=settings.console_ca_file)
    try:
        return await connect(
            ticket.upstream_url,
            subprotocols=[Subprotocol(_PROTOCOL), Subprotocol(f"{_TICKET}{ticket.secret}")],
            ssl=context,
            proxy=None,
            compression=None,
            max_size=_FRAME_BYTES,
            open_timeout=_OPEN_S,
            close_timeout=_OPEN_S,
        )
    except InvalidStatus as err:
        raise Forbidden(_told(err), "Ask for a new ticket when it runs.") from err
    except (OSError, TimeoutError, InvalidHandshake) as err:
        raise SaltError(
            f"The worker of {ticket.name} does not answer for its screen at {ticket.upstream_url}: {err}.",
            "Look whether its facade runs, and at console_ca_file.",
        ) from err


def _told(err: InvalidStatus) -> str:
    """The sentence of a worker's refusal."""
    try:
        message = str(_Refusal.model_validate_json(err.response.body or b"").message)
    except ValueError:
        message = f"Its worker answered {err.response.status_code}."
    return message[:1000]


async def _carry(websocket: WebSocket, worker: ClientConnection, watch: Coroutine[Any, Any, None]) -> tuple[int, str]:
    """Carry bytes both ways until one end closes, or `watch` ends it; the close code and reason for the viewer."""
    ways = (_to_worker(websocket, worker), _to_viewer(worker, websocket), watch)
    tasks = [asyncio.create_task(each) for each in ways]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
    for error in await asyncio.gather(*tasks, return_exceptions=True):
        if isinstance(error, Forbidden):
            return _NO_MORE, str(error)
        if isinstance(error, ConnectionClosed) and error.rcvd is not None:
            reason = error.rcvd.reason.encode()[:_REASON_BYTES].decode(errors="ignore")
            return error.rcvd.code if error.rcvd.code in (1000, 1003, 1008, 1009) else _GONE, reason
        if isinstance(error, Exception) and not isinstance(
            error, ConnectionClosed | WebSocketDisconnect | RuntimeError | OSError
        ):
            log.error("console_failed", exc_info=error)
    return _GONE, "The connection broke."


async def _watch(ticket: ConsoleTicket, master: Master) -> None:
    """End the view of somebody who may not see it any more. Raises Forbidden."""
    while True:
        if not await master.console_tickets.may_see(ticket):
            raise Forbidden("You may not see this screen any more.")
        await asyncio.sleep(_LOOK_S)


async def _to_worker(websocket: WebSocket, worker: ClientConnection) -> None:
    while (message := await websocket.receive())["type"] == "websocket.receive":
        # What is no VNC the worker refuses, text among it.
        await worker.send(message.get("bytes") or message.get("text") or b"")


async def _to_viewer(worker: ClientConnection, websocket: WebSocket) -> None:
    while True:
        data = await worker.recv()
        await websocket.send_bytes(data.encode() if isinstance(data, str) else data)


async def _note(master: Master, actor: Actor, verb: str, name: str, uuid: str, refused: str = "") -> None:  # noqa: PLR0913, PLR0917
    outcome = Outcome.REFUSED if refused else Outcome.DONE
    entry = AuditEntry(
        at=master.context.clock(),
        actor=actor,
        verb=verb,
        kind="vm",
        target=name,
        uuid=uuid,
        outcome=outcome,
        detail=refused,
    )
    await master.context.store.audit.add(entry)


_novnc = StaticFiles(directory=NOVNC, check_dir=False)


@pages.get("/{uuid}")
async def page(uuid: str) -> FileResponse:
    """The page that shows a screen. It tells nothing about the VM: the ticket, in the fragment, opens it."""
    del uuid
    return FileResponse(_STATIC / "console.html", headers=_HEADERS)


@pages.get("/static/console.js")
async def script() -> FileResponse:
    """The page's script."""
    return FileResponse(_STATIC / "console.js", headers=_HEADERS)


@pages.get("/novnc/{path:path}")
async def novnc(path: str, request: Request) -> Response:
    """NoVNC's files, which `make setup` fetches."""
    return await _novnc.get_response(path, request.scope)
