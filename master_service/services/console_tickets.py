"""Tickets for consoles of VMs: the check of a requester, and the URL at the worker.

The master creates the ticket and sends only its SHA-256 to the VM's worker, through Salt. Later it presents the ticket
itself to the worker's HTTP API, over TLS unless both are on one machine. The worker decides both times.
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
from master_service.runtime.worker_calls import call
from worker_service.contract import Code
from worker_service.contract.public_address import is_loopback
from worker_service.contract.tickets import LIFE_S, digest, make

LIFE: Final = timedelta(seconds=LIFE_S)
_MOST: Final = 1000


@dataclass(frozen=True, kw_only=True, slots=True)
class TicketRequester:
    """The user that requested a ticket, with their role at that time and their token."""

    name: str
    account_id: str
    role: Role
    scopes: frozenset[Scope]
    token_id: str

    @property
    def is_admin(self) -> bool:
        """Return whether their consoles also open during an installation: they could destroy any VM as well."""
        return self.role in (Role.ADMIN, Role.OPERATOR) and Scope.OPERATE in self.scopes


@dataclass(frozen=True, kw_only=True, slots=True)
class ConsoleTicket:
    """A ticket for the console of one VM and one user. `upstream_url` is the websocket at its worker."""

    secret: str
    uuid: str
    name: str
    requester: TicketRequester
    upstream_url: str
    expires_at: datetime


class ConsoleTickets:
    """The unused tickets of this master. They are only in its memory."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._waiting: dict[str, ConsoleTicket] = {}
        self.open = 0
        """The number of open consoles."""

    async def issue(self, vm: VM, requester: TicketRequester, *, view_only: bool) -> ConsoleTicket:
        """Create a ticket for a VM's console, and send its digest to the worker.

        The ticket of an administrator also opens the console during an installation, when it is closed to users.
        Raises Conflict, TooMany, Forbidden when the worker refuses it, and SaltError when it does not answer.
        """
        name, worker = vm.desired.name, vm.desired.worker
        if worker is None:
            raise Conflict(f"{name} has no worker yet, so it has no console.", "Try again when it runs.")
        self._sweep()
        if len(self._waiting) >= _MOST:
            raise TooMany(f"{_MOST} console tickets are unused.")
        secret, key = make()
        request = {
            "uuid": vm.uuid,
            "ticket_sha256": key,
            "user": requester.name,
            "admin": requester.is_admin,
            "view_only": view_only,
        }
        timeout_s = self._context.settings.poll_timeout_s
        answers = await call(self._context, [worker], "vmachines.screen", request, timeout_s)
        upstream_url = upstream_from_reply(answers.get(worker), worker, name, self._context.settings)
        expires_at = self._context.clock() + LIFE
        ticket = ConsoleTicket(
            secret=secret,
            uuid=vm.uuid,
            name=name,
            requester=requester,
            upstream_url=upstream_url,
            expires_at=expires_at,
        )
        self._waiting[key] = ticket
        return ticket

    async def take(self, secret: str, uuid: str) -> ConsoleTicket:
        """Use up a ticket, and return it. Raises Forbidden with the same message for every reason."""
        ticket = self._waiting.pop(digest(secret), None)
        fits = ticket is not None and ticket.uuid == uuid and self._context.clock() < ticket.expires_at
        if ticket is None or not fits or not await self.may_see(ticket):
            raise Forbidden("No valid ticket. A ticket opens one console once, within 30 s.", "Ask for a new one.")
        return ticket

    async def may_see(self, ticket: ConsoleTicket) -> bool:
        """Return whether the requester may still see the console, by their token, their role and the VM's owner."""
        store, requester = self._context.store, ticket.requester
        if not await store.tokens.still_opens(
            requester.token_id, requester.account_id, requester.role, self._context.clock()
        ):
            return False
        vm = await store.queries.vm(ticket.uuid)
        own = vm is not None and vm.desired.owner_id == requester.account_id
        return vm is not None and verdict(USES_CONSOLE, requester.role, own=own) is Verdict.ALLOWED

    def _sweep(self) -> None:
        now = self._context.clock()
        self._waiting = {key: ticket for key, ticket in self._waiting.items() if ticket.expires_at > now}


def upstream_from_reply(reply: Any, worker: str, name: str, settings: Settings) -> str:
    """Return the URL of the console in a worker's reply. Raises MasterError otherwise."""
    match reply:
        case {"success": True, "url": str() as url}:
            if not is_allowed_upstream(url, settings):
                raise SaltError(
                    f"{worker} has its consoles at {url[:200]!r}, to which this master does not connect.",
                    "Set api.url at the worker to its https address, and console_workers here to its name.",
                )
            return url
        case {"success": False, "message": str() as message, "code": str() as code}:
            raise _refusal(code, message)
        case _:
            raise SaltError(f"{worker}, which has {name}, does not answer.", "`saltern workers` shows since when.")


def is_allowed_upstream(url: str, settings: Settings) -> bool:
    """Return whether the master may connect there: the host is allowed, and other machines need TLS."""
    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
        _ = parts.port  # raises for an invalid port
    except ValueError:
        return False
    allowed = any(fnmatchcase(host, pattern) for pattern in settings.console_workers)
    safe = parts.scheme == "wss" or (parts.scheme == "ws" and is_loopback(host))
    plain = parts.username is None and not parts.query and not parts.fragment
    return allowed and safe and plain


def _refusal(code: str, message: str) -> MasterError:
    text = message[:1000]
    if code == Code.POLICY:
        return Forbidden(text, "Try again when it runs.")
    if code == Code.NOT_FOUND:
        return NotFound(text, "Try again when it runs.")
    if code == Code.TOO_MANY:
        return TooMany(text)
    return Conflict(text, "Try again when it runs.")
