"""The verb `screen`, and the way from a ticket to a VM's screen: the gate stands at both."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from worker_service.console import policy
from worker_service.console.address import console_url
from worker_service.console.tickets import LIFE_S, Ticket, Tickets
from worker_service.core.errors import Refused
from worker_service.operations import validation
from worker_service.operations.status_report import vm_status
from worker_service.state.context import WorkerContext
from worker_service.state.record import Record

_SCHEME: Final = "unix:"


def screen(
    worker: WorkerContext,
    *,
    uuid: object = None,
    name: object = None,
    ticket_sha256: object = None,
    **rights: object,
) -> dict[str, Any]:
    """Remember a ticket for a VM's screen, by its digest.

    The rights are `view_only`, and `user` and `admin`, which are the word of the door that asks.
    """
    record = worker.store.find(*validation.identity(uuid, name))
    is_admin, only_look = (validation.flag(rights.get(each, False)) for each in ("admin", "view_only"))
    _socket(worker, record, admin=is_admin)
    user = str(rights.get("user", ""))[:80]
    tickets(worker).issue(str(ticket_sha256 or ""), vm=record.uuid, user=user, admin=is_admin, view_only=only_look)
    return {
        "success": True,
        "message": f"The ticket opens the screen of {record.name!r} once, within {LIFE_S:g} s.",
        "uuid": record.uuid,
        "name": record.name,
        "url": console_url(worker.settings.api, record.uuid),
    }


def tickets(worker: WorkerContext) -> Tickets:
    """The tickets of a worker."""
    return Tickets(worker.store.root / "tickets")


def admit(worker: WorkerContext, secret: str, uuid: str) -> Ticket:
    """Take a ticket; raises Refused where it is none for this VM."""
    return tickets(worker).redeem(secret, uuid)


def socket_of(worker: WorkerContext, ticket: Ticket) -> Path:
    """Where QEMU listens for the viewers of a ticket's VM, while its screen is open to them.

    Raises Refused when the gate is shut, NotFound when the VM is gone, HypervisorError when that cannot be told.
    """
    return _socket(worker, worker.store.read(ticket.vm), admin=ticket.admin)


def screenshot(worker: WorkerContext, uuid: object, name: object, *, admin: bool) -> bytes:
    """What the screen shows now, as PNG; the same gate. Raises SalternError."""
    record = worker.store.find(*validation.identity(uuid, name))
    _require_open(worker, record, admin=admin)
    return worker.hypervisor(record.spec.hypervisor).screenshot(record.uuid)


def _socket(worker: WorkerContext, record: Record, *, admin: bool) -> Path:
    _require_open(worker, record, admin=admin)
    place = worker.hypervisor(record.spec.hypervisor).console_address(record.uuid)
    if not place.startswith(_SCHEME):
        raise Refused(f"{record.name!r} has no screen. Its console.log holds what its serial port showed.")
    return Path(place.removeprefix(_SCHEME))


def _require_open(worker: WorkerContext, record: Record, *, admin: bool) -> None:
    seen = vm_status(worker, record, worker.domain(record))
    shut = policy.refusal(record.name, seen.status, seen.message, installing=record.installing, admin=admin)
    if shut is not None:
        raise shut
