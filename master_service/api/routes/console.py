"""Consoles: a ticket by POST, a websocket that relays VNC from the VM's worker, and the page that shows it."""

from __future__ import annotations

import asyncio
import ssl
from datetime import datetime
from pathlib import Path
from typing import Annotated, Final

from fastapi import APIRouter, Body, Request, Response, WebSocket
from fastapi.responses import FileResponse
from fastapi.staticfiles import StaticFiles
from pydantic import BaseModel, ConfigDict
from starlette.websockets import WebSocketDisconnect
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus
from websockets.typing import Subprotocol

from http_bounds.server import has_tls
from master_service.api.protocol.auth import PREFIX, PermittedRoute, TheCaller, TheMaster, User, master_of
from master_service.api.protocol.errors import RESPONSES, as_answer, responses
from master_service.core.errors import Forbidden, MasterError, SaltError, TooMany
from master_service.core.settings import Settings
from master_service.planning.outcomes import Outcome
from master_service.policy.audit import Actor, AuditEntry
from master_service.services.console_tickets import ConsoleTicket, TicketRequester
from master_service.services.master import Master
from web_assets import NOVNC, PAGE_HEADERS
from worker_service.contract import origin_of
from worker_service.contract.console_protocol import (
    FRAME_BYTES,
    CloseCode,
    ConsoleClosed,
    ViewerChannel,
    accepted_subprotocol,
    is_origin_allowed,
    relay,
    subprotocols,
    ticket_in,
)

router = APIRouter(prefix="/vmachines", tags=["console"], responses=RESPONSES, route_class=PermittedRoute)
sockets = APIRouter(prefix="/console", tags=["console"])
pages = APIRouter(prefix="/console", include_in_schema=False)

_STATIC: Final = Path(__file__).parents[1] / "static"
_OPEN_S: Final = 10.0
_LOOK_S: Final = 2.0
"""Interval of the checks whether the viewer may still see the console."""


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
    """The part of a worker's refusal that the master passes on."""

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
    """Create a ticket for the VM's console. It opens one console once, within 30 s. Refused during an installation."""
    vm = await master.vms.get(id_or_name)
    view_only = order is not None and order.view_only
    requester = TicketRequester(
        name=caller.name,
        account_id=caller.account_id,
        role=caller.role,
        scopes=caller.scopes,
        token_id=caller.token_id,
    )
    try:
        ticket = await master.console_tickets.issue(vm, requester, view_only=view_only)
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


@sockets.websocket("/{uuid}/screen")
async def screen(websocket: WebSocket, uuid: str) -> None:
    """Relay one viewer's VNC, from the ticket until either end closes."""
    master = master_of(websocket)
    master.console_tickets.open += 1
    try:
        ticket = await _admit(websocket, uuid, master)
        await _relay(websocket, ticket, master)
    except MasterError as err:
        await websocket.send_denial_response(as_answer(err))
    finally:
        master.console_tickets.open -= 1


async def _admit(websocket: WebSocket, uuid: str, master: Master) -> ConsoleTicket:
    """Take the ticket and return it. A page of another origin leaves it unused."""
    settings = master.context.settings
    origin = websocket.headers.get("origin")
    if not is_origin_allowed(origin, origins(settings)):
        text = f"Pages from {str(origin)[:100]!r} may not show consoles here."
        raise Forbidden(text, "Set public_url in the master's settings.")
    if master.console_tickets.open > settings.max_consoles:
        raise TooMany(f"{settings.max_consoles} consoles are open, which is the limit. Close one.")
    return await master.console_tickets.take(ticket_in(websocket.scope.get("subprotocols", [])), uuid)


def origins(settings: Settings) -> frozenset[str]:
    """The origins of pages that may show consoles: the master's own."""
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    scheme = "https" if has_tls(settings) else "http"
    own = [f"{scheme}://{name}:{settings.port}" for name in ("127.0.0.1", "localhost", "[::1]", host)]
    return frozenset(map(origin_of, [settings.public_url] if settings.public_url else own))


async def _relay(websocket: WebSocket, ticket: ConsoleTicket, master: Master) -> None:
    """Accept the viewer of a good ticket and relay until one end closes. Raises MasterError."""
    address = websocket.client.host if websocket.client else ""
    actor = Actor(
        name=ticket.requester.name, interface="web" if websocket.headers.get("origin") else "api", address=address
    )
    async with await _connect(ticket, master.context.settings) as connection:
        await websocket.accept(accepted_subprotocol(websocket.scope.get("subprotocols", [])))
        await _note(master, actor, "console.open", ticket.name, ticket.uuid)
        viewer = ViewerChannel(websocket, WebSocketDisconnect)
        end = await relay(viewer, WorkerChannel(connection), _watch(ticket, master))
        await viewer.close(end)
    await _note(master, actor, "console.close", ticket.name, ticket.uuid)


class _Direct(connect):
    """A websocket's client that follows no redirect: a worker must not send the master to another host."""

    def process_redirect(self, exc: Exception) -> Exception:
        """Take a redirect for the refusal that it is here."""
        return exc


async def _connect(ticket: ConsoleTicket, settings: Settings) -> ClientConnection:
    """Open the websocket at the worker. Raises Forbidden if the worker refuses, SaltError if it does not answer."""
    context = None
    if ticket.upstream_url.startswith("wss:"):
        context = ssl.create_default_context(cafile=settings.console_ca_file)
    try:
        return await _Direct(
            ticket.upstream_url,
            subprotocols=[Subprotocol(each) for each in subprotocols(ticket.upstream_secret)],
            ssl=context,
            proxy=None,
            compression=None,
            max_size=FRAME_BYTES,
            open_timeout=_OPEN_S,
            close_timeout=_OPEN_S,
        )
    except InvalidStatus as err:
        raise Forbidden(_refusal_message(err), "Ask for a new ticket when it runs.") from err
    except (OSError, TimeoutError, InvalidHandshake) as err:
        raise SaltError(
            f"The worker of {ticket.name} does not answer for its console at {ticket.upstream_url}: {err}.",
            "Check that its API runs, and check console_ca_file.",
        ) from err


def _refusal_message(err: InvalidStatus) -> str:
    """Return the sentence of a worker's refusal."""
    try:
        message = str(_Refusal.model_validate_json(err.response.body or b"").message)
    except ValueError:
        message = f"Its worker answered {err.response.status_code}."
    return message[:1000]


async def _watch(ticket: ConsoleTicket, master: Master) -> None:
    """Raise ConsoleClosed once the viewer may not see the console any more."""
    while True:
        if not await master.console_tickets.may_see(ticket):
            raise ConsoleClosed(CloseCode.POLICY, "You may not see this console any more.")
        await asyncio.sleep(_LOOK_S)


class WorkerChannel:
    """The worker's end of a console.

    Args:
        connection: to the worker's API.
    """

    def __init__(self, connection: ClientConnection) -> None:
        self._connection = connection

    async def receive(self) -> bytes | str:
        """Wait for a frame of the worker. Raises ConsoleClosed."""
        try:
            return await self._connection.recv()
        except ConnectionClosed as err:
            raise _end_of(err) from err

    async def send(self, data: bytes | str) -> None:
        """Send a frame to the worker, which refuses what is no VNC. Raises ConsoleClosed."""
        try:
            await self._connection.send(data)
        except ConnectionClosed as err:
            raise _end_of(err) from err


def _end_of(err: ConnectionClosed) -> ConsoleClosed:
    """Return the worker's own code and reason, if it sent a code that a server may send on."""
    if err.rcvd is None:
        return ConsoleClosed(CloseCode.NORMAL, "The connection broke.")
    known = err.rcvd.code in set(CloseCode)
    return ConsoleClosed(CloseCode(err.rcvd.code) if known else CloseCode.NORMAL, err.rcvd.reason)


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


_static = StaticFiles(directory=_STATIC)
_novnc = StaticFiles(directory=NOVNC, check_dir=False)


@pages.get("/{uuid}")
async def page(uuid: str) -> FileResponse:
    """Return the page that shows a console. It has nothing about the VM: the ticket in the fragment opens it."""
    del uuid
    return FileResponse(_STATIC / "console.html", headers=PAGE_HEADERS)


@pages.get("/static/{path:path}")
async def static(path: str, request: Request) -> Response:
    """The page's script and style."""
    answer = await _static.get_response(path, request.scope)
    answer.headers.update(PAGE_HEADERS)
    return answer


@pages.get("/novnc/{path:path}")
async def novnc(path: str, request: Request) -> Response:
    """NoVNC's files, which `make setup` fetches."""
    return await _novnc.get_response(path, request.scope)
