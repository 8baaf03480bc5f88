"""Screens of VMs, as far as the master has a part in them: who may see one, by which ticket, and where it is.

The master makes the ticket and tells only its SHA-256 to the VM's worker, through Salt; then it shows the ticket itself
to that worker's HTTP facade, over TLS unless both are on one machine. The worker's gate decides, at both moments.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from fnmatch import fnmatchcase
from typing import Any, Final
from urllib.parse import urlsplit

from master_service.core.errors import Conflict, Forbidden, MasterError, NotFound, SaltError, TooMany
from master_service.core.settings import Settings
from master_service.planning.vm import VM
from master_service.policy.permissions import USES_CONSOLE, Role, Scope, Verdict, verdict
from master_service.runtime.context import Context
from worker_service.contract import Code
from worker_service.contract.public_address import is_loopback
from worker_service.contract.tickets import LIFE_S, digest, make

LIFE: Final = timedelta(seconds=LIFE_S)
_MOST: Final = 1000


@dataclass(frozen=True, kw_only=True, slots=True)
class TicketRequester:
    """Who asked for a ticket, as they were then, and by which token."""

    name: str
    role: Role
    scopes: frozenset[Scope]
    token_id: str

    @property
    def is_admin(self) -> bool:
        """Whether their screens stay open while software is being installed: they could destroy any VM as well."""
        return self.role in (Role.ADMIN, Role.OPERATOR) and Scope.OPERATE in self.scopes


@dataclass(frozen=True, kw_only=True, slots=True)
class ConsoleTicket:
    """What a ticket opens: the screen of one VM, for one user. `place`: the websocket at its worker."""

    secret: str
    uuid: str
    name: str
    asker: TicketRequester
    upstream_url: str
    expires_at: datetime


class ConsoleTickets:
    """The tickets that this master has made and nobody has used yet. They live in its memory alone."""

    def __init__(self, parts: Context) -> None:
        self._context = parts
        self._waiting: dict[str, ConsoleTicket] = {}
        self.open = 0
        """How many screens are shown now."""

    async def issue(self, vm: VM, asker: TicketRequester, *, view_only: bool) -> ConsoleTicket:
        """A ticket for a VM's screen, told to its worker.

        An administrator's also opens a screen that is shut to users while software is being installed.
        Raises Conflict, Forbidden when its worker refuses it, SaltError when that does not answer, TooMany.
        """
        name, worker = vm.desired.name, vm.desired.worker
        if worker is None:
            raise Conflict(f"{name} has no worker yet, and so no screen.", "Ask again when it runs.")
        self._sweep()
        if len(self._waiting) >= _MOST:
            raise TooMany(f"{_MOST} tickets for screens wait to be used.")
        secret, key = make()
        told = {
            "uuid": vm.uuid,
            "ticket_sha256": key,
            "user": asker.name,
            "admin": asker.is_admin,
            "view_only": view_only,
        }
        timeout_s = self._context.settings.poll_timeout_s
        answers = await self._context.salt.call(worker, "vmachines.screen", told, timeout_s)
        place = upstream_from_reply(answers.get(worker), worker, name, self._context.settings)
        expires_at = self._context.clock() + LIFE
        ticket = ConsoleTicket(
            secret=secret, uuid=vm.uuid, name=name, asker=asker, upstream_url=place, expires_at=expires_at
        )
        self._waiting[key] = ticket
        return ticket

    async def take(self, secret: str, uuid: str) -> ConsoleTicket:
        """The ticket, which is gone then; raises Forbidden, the same for every reason."""
        ticket = self._waiting.pop(digest(secret), None)
        fits = ticket is not None and ticket.uuid == uuid and self._context.clock() < ticket.expires_at
        if ticket is None or not fits or not await self.may_see(ticket):
            raise Forbidden("No valid ticket. A ticket opens one screen once, within 30 s.", "Ask for a new one.")
        return ticket

    async def may_see(self, ticket: ConsoleTicket) -> bool:
        """Whether whoever asked for a ticket may see its screen still: their token, their role and the VM's owner."""
        store, asker = self._context.store, ticket.asker
        if not await store.tokens.still_opens(asker.token_id, asker.name, asker.role, self._context.clock()):
            return False
        vm = await store.queries.vm(ticket.uuid)
        own = vm is not None and vm.desired.owner == asker.name
        return vm is not None and verdict(USES_CONSOLE, asker.role, own=own) is Verdict.ALLOWED

    def _sweep(self) -> None:
        now = self._context.clock()
        self._waiting = {key: ticket for key, ticket in self._waiting.items() if ticket.expires_at > now}


def upstream_from_reply(reply: Any, worker: str, name: str, settings: Settings) -> str:
    """Where a worker says that the screen is; raises MasterError for a refusal, silence, and places that may not be."""
    match reply:
        case {"success": True, "url": str() as url}:
            if not is_allowed_upstream(url, settings):
                raise SaltError(
                    f"{worker} says that its screens are at {url[:200]!r}, which this master does not connect to.",
                    "Set facade.url at the worker to its https address, and console_workers here to its name.",
                )
            return url
        case {"success": False, "message": str() as message, "code": str() as code}:
            raise _refusal(code, message)
        case _:
            raise SaltError(f"{worker}, which has {name}, does not answer.", "`saltern workers` shows since when.")


def is_allowed_upstream(url: str, settings: Settings) -> bool:
    """Whether the master connects there: an allowed host, and TLS unless it is this machine."""
    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
        _ = parts.port  # raises where it is no number of a port
    except ValueError:
        return False
    allowed = any(fnmatchcase(host, pattern) for pattern in settings.console_workers)
    safe = parts.scheme == "wss" or (parts.scheme == "ws" and is_loopback(host))
    plain = parts.username is None and not parts.query and not parts.fragment
    return allowed and safe and plain


def _refusal(code: str, message: str) -> MasterError:
    text = message[:1000]
    if code == Code.POLICY:
        return Forbidden(text, "Ask again when it runs.")
    if code == Code.NOT_FOUND:
        return NotFound(text, "Ask again when it runs.")
    if code == Code.TOO_MANY:
        return TooMany(text)
    return Conflict(text, "Ask again when it runs.")
