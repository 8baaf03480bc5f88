"""The verb `screen`, and the way from a ticket to a VM's console. The console policy is checked for both."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from worker_service.console import policy
from worker_service.console.address import console_url
from worker_service.console.tickets import LIFE_S, Ticket, Tickets
from worker_service.core.errors import Refused
from worker_service.hypervisor.base import Console
from worker_service.operations import saved_disk, validation
from worker_service.operations.status_report import vm_status
from worker_service.state.context import WorkerContext
from worker_service.state.record import Record


def screen(
    worker: WorkerContext,
    *,
    uuid: object = None,
    name: object = None,
    ticket_sha256: object = None,
    **rights: object,
) -> dict[str, Any]:
    """Store a ticket for a VM's console, or for one of its saved disks, by its digest.

    The rights are `view_only`, `user`, `admin`, `token_sha256` and `disk`. The calling interface vouches for the last
    four.
    """
    record = worker.store.find(*validation.identity(uuid, name))
    disk = validation.optional_word("disk", rights.get("disk"))
    digest = validation.optional_word("ticket_sha256", ticket_sha256)
    user, token_sha256 = (validation.optional_word(each, rights.get(each)) for each in ("user", "token_sha256"))
    is_admin, view_only = (validation.flag(rights.get(each, False)) for each in ("admin", "view_only"))
    if disk:
        saved_disk.find(worker, record, disk)
    else:
        _console(worker, record, admin=is_admin)
    tickets(worker).issue(
        digest,
        vm=record.uuid,
        user=user[:80],
        admin=is_admin,
        view_only=view_only,
        token_sha256=token_sha256,
        disk=disk,
    )
    what = f"disk {disk}" if disk else "console"
    return {
        "success": True,
        "message": f"The ticket opens the {what} of {record.name!r} once, within {LIFE_S:g} s.",
        "uuid": record.uuid,
        "name": record.name,
        "url": console_url(worker.settings.api, record.uuid),
    }


def tickets(worker: WorkerContext) -> Tickets:
    """Return the store of console tickets."""
    return Tickets(worker.store.root / "tickets")


def admit(worker: WorkerContext, secret: str, uuid: str) -> Ticket:
    """Redeem a ticket; raises Refused if it is not one for this VM."""
    return tickets(worker).redeem(secret, uuid)


def console_of(worker: WorkerContext, ticket: Ticket) -> Console:
    """Return the way to the screen of a ticket's VM.

    Raises Refused if the policy closes the console, NotFound if the VM is gone, HypervisorError if libvirt fails.
    """
    return _console(worker, worker.store.read(ticket.vm), admin=ticket.admin)


def pictures_of(worker: WorkerContext, ticket: Ticket) -> tuple[str, Callable[[], bytes], Callable[[bytes], None]]:
    """Return what shows a screen that has no VNC: the VM's name, its picture, and the way of scancodes to its guest."""
    record = worker.store.read(ticket.vm)
    driver = worker.hypervisor(record.spec.hypervisor)
    return record.name, partial(driver.screenshot, record.uuid), partial(driver.send_keys, record.uuid)


def screenshot(worker: WorkerContext, uuid: object, name: object, *, admin: bool) -> bytes:
    """Return the console's picture as PNG, under the same policy. Raises SalternError."""
    record = worker.store.find(*validation.identity(uuid, name))
    _require_open(worker, record, admin=admin)
    return worker.hypervisor(record.spec.hypervisor).screenshot(record.uuid)


def _console(worker: WorkerContext, record: Record, *, admin: bool) -> Console:
    _require_open(worker, record, admin=admin)
    worker.require_can(record, "screen")
    console = worker.hypervisor(record.spec.hypervisor).console(record.uuid)
    if console is None:
        raise Refused(f"{record.name!r} has no console. Its console.log has the output of its serial port.")
    return console


def _require_open(worker: WorkerContext, record: Record, *, admin: bool) -> None:
    shown = vm_status(worker, record, worker.domain(record))
    refusal = policy.refusal(record.name, shown.status, shown.message, installing=record.installing, admin=admin)
    if refusal is not None:
        raise refusal
