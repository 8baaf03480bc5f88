"""Tickets for consoles of VMs: the check of a requester, and the way to the worker.

The master makes two secrets for each ticket. The user gets the first, which opens only the master. The master keeps the
second and sends its SHA-256 to the VM's worker, through Salt. Later it presents it to the worker's HTTP API, over TLS
unless both are on one machine. No user can open the worker past the master, which ends a view with the right to it.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

from master_service.core.errors import Conflict, Forbidden, MasterError, NotFound, SaltError, TooMany
from master_service.planning.user_actions import require_can
from master_service.planning.vm import VM
from master_service.policy.permissions import USES_CONSOLE, Role, Scope, Verdict, verdict
from master_service.policy.worker_address import console_url
from master_service.runtime.context import Context
from master_service.runtime.worker_calls import call
from worker_service.contract import Code
from worker_service.contract.tickets import LIFE_S, digest, make

LIFE: Final = timedelta(seconds=LIFE_S)
_MOST: Final = 1000
_LATER: Final = "Try again when it runs."


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
    """A ticket for the console of one VM and one user. `upstream_url` is the websocket at its worker.

    `secret` is the user's. `upstream_secret` is the master's own, and never leaves it except to the worker.
    """

    secret: str
    uuid: str
    name: str
    requester: TicketRequester
    upstream_url: str
    upstream_secret: str
    expires_at: datetime


class ConsoleTickets:
    """The unused tickets of this master. They are only in its memory."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._waiting: dict[str, ConsoleTicket] = {}
        self.open = 0
        """The number of open consoles."""

    async def issue(self, vm: VM, requester: TicketRequester, *, view_only: bool) -> ConsoleTicket:
        """Create a ticket for a VM's console, and register the master's own secret at the worker.

        The ticket of an administrator also opens the console during an installation, when it is closed to users.
        Raises Refused, Conflict, TooMany, Forbidden when the worker refuses it, and SaltError when it does not answer.
        """
        name, worker = vm.desired.name, vm.desired.worker
        if worker is None:
            raise Conflict(f"{name} has no worker yet, so it has no console.", "Try again when it runs.")
        require_can(vm, "screen")
        self._sweep()
        if len(self._waiting) >= _MOST:
            raise TooMany(f"{_MOST} console tickets are unused.")
        (secret, key), (upstream_secret, upstream_key) = make(), make()
        request = {
            "uuid": vm.uuid,
            "ticket_sha256": upstream_key,
            "user": requester.name,
            "admin": requester.is_admin,
            "view_only": view_only,
        }
        timeout_s = self._context.settings.poll_timeout_s
        answers = await call(self._context, [worker], "vmachines.screen", request, timeout_s)
        upstream_url = self._upstream_url(vm, worker, url_in_reply(answers.get(worker), worker, name))
        expires_at = self._context.clock() + LIFE
        ticket = ConsoleTicket(
            secret=secret,
            uuid=vm.uuid,
            name=name,
            requester=requester,
            upstream_url=upstream_url,
            upstream_secret=upstream_secret,
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

    def _upstream_url(self, vm: VM, worker: str, reported: str) -> str:
        """Return where the master connects to. Raises Conflict for an address that may be another host's."""
        enrolled = vm.worker.api_url if vm.worker else ""
        allowed = self._context.settings.console_workers
        try:
            return console_url(worker, vm.uuid, enrolled=enrolled, reported=reported, allowed=allowed)
        except ValueError as err:
            raise Conflict(str(err), "Only an administrator can do that.") from err

    def _sweep(self) -> None:
        now = self._context.clock()
        self._waiting = {key: ticket for key, ticket in self._waiting.items() if ticket.expires_at > now}


def url_in_reply(reply: Any, worker: str, name: str, hint: str = _LATER) -> str:
    """Return the URL of the console in a worker's reply, which is its own statement. Raises MasterError otherwise.

    `hint`: what to do after a refusal.
    """
    match reply:
        case {"success": True, "url": str() as url}:
            return url
        case {"success": False, "message": str() as message, "code": str() as code}:
            raise _refusal(code, message, hint)
        case _:
            raise SaltError(f"{worker}, which has {name}, does not answer.", "`saltern workers` shows since when.")


def _refusal(code: str, message: str, hint: str) -> MasterError:
    text = message[:1000]
    if code == Code.POLICY:
        return Forbidden(text, hint)
    if code == Code.NOT_FOUND:
        return NotFound(text, hint)
    if code == Code.TOO_MANY:
        return TooMany(text)
    return Conflict(text, hint)
