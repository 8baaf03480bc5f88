"""The verbs of the contract, one function each, for all interfaces. They are quick; helpers do the slow work.

Every function returns the contract's dict, `{"success": true, "message": …}` with further fields of the verb, and
raises SalternError. `answer` turns that into `{"success": false, "message": …, "code": …}`.
"""

from __future__ import annotations

import errno
import logging
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, Final

import msgspec

from worker_service import __version__
from worker_service.console.address import console_url
from worker_service.contract import PROTOCOL, Action, Changes, Code, ModifyAction, StartAction, describe_ends
from worker_service.core.errors import HypervisorError, NotFound, SalternError, TimedOut
from worker_service.fs.space_reserve import FULL
from worker_service.helper import launcher
from worker_service.hypervisor.base import DomainState, Power
from worker_service.operations import cache as cache_verbs
from worker_service.operations import queries, validation
from worker_service.operations.common import (
    Reply,
    known_domain,
    noted,
    read_target_versions,
    reply,
    start_helper_and_notify,
)
from worker_service.operations.screen import screen
from worker_service.operations.start import start, start_spec
from worker_service.operations.status_report import list_reply, plain, vm_status
from worker_service.state.command_rules import (
    after_destroy,
    after_modify,
    after_save_retry,
    after_shutdown,
    after_suspend_or_resume,
)
from worker_service.state.context import WorkerContext
from worker_service.state.lifecycle import disk_fate
from worker_service.state.outside_changes import require_no_job
from worker_service.state.record import DISKS, SETTLED, STARTING, Phase, Record
from worker_service.steps.save import drop_memory

log = logging.getLogger("saltern.operations")

_POLL_S: Final = 0.05
_DISK_ERRNOS: Final = FULL | {errno.EROFS, errno.EIO}
"""Errors of the disk, neither of the request nor of the program: it works again with free space or a repaired disk."""


def answer(verb: Callable[..., Reply], *arguments: Any, **parameters: Any) -> Reply:
    """Call a verb. Errors for users become the contract's reply of failure."""
    try:
        return verb(*arguments, **parameters)
    except SalternError as err:
        return {"success": False, "message": str(err), "code": err.code.value}
    except OSError as err:
        where = f" ({err.filename})" if err.filename else ""
        text = f"The worker's disk failed: {err.strerror}{where}. Check the data root's space and owner, then retry."
        return {
            "success": False,
            "message": text,
            "code": (Code.DISK if err.errno in _DISK_ERRNOS else Code.INTERNAL).value,
        }


def status(worker: WorkerContext, *, uuid: object = None, name: object = None) -> Reply:
    """Return the status of a VM."""
    record, domain = _look(worker, uuid, name)
    _start_due_helper(worker, record, domain)
    on = record.phase is Phase.UP and domain.power in (Power.RUNNING, Power.PAUSED)
    shown = vm_status(worker, record, domain)
    if on and (kind := worker.capabilities(record).console):
        url = console_url(worker.settings.api, record.uuid)
        shown = msgspec.structs.replace(shown, vnc=url, console=kind)
    return plain(shown)


def list_(worker: WorkerContext, *, tombstones: object = False) -> Reply:
    """Return every VM of this worker with its status, foreign domains, the free capacity and perhaps the tombstones."""
    wants_tombstones = validation.flag(tombstones)
    listed = plain(list_reply(worker, lambda record, domain: _start_due_helper(worker, record, domain)))
    if not wants_tombstones:
        del listed["tombstones"]
    return listed


def modify(
    worker: WorkerContext, *, uuid: object = None, name: object = None, generation: object = None, **changes: Any
) -> Reply:
    """Change where disks are saved (`keep` keeps them here, `""` discards them), or the disc in the drive."""
    record = worker.store.find(*validation.identity(uuid, name))
    number = validation.generation(generation)
    return _modify(worker, record, number, validation.changes(changes, worker.policy_of(record.owner)), record.owner)


def _modify(worker: WorkerContext, record: Record, number: int | None, changes: Changes, owner: str) -> Reply:
    given = msgspec.to_builtins(changes)
    if "cd_image" in given and record.phase is Phase.UP:
        worker.require_can(record, "cd_image")
    versions = read_target_versions(worker, record, {disk: given.get(f"{disk}_save_to") for disk in DISKS}, owner)
    folder = str(worker.store.folder(record.uuid))
    record = worker.store.update(
        record.uuid, lambda current: after_modify(current, given, number, versions, owner, folder=folder)
    )
    start_helper_and_notify(worker, record)
    ends = any(given.get(f"{disk}_save_to") is not None for disk in DISKS)
    return reply(record, f"Changed. {describe_ends(record.spec)}" if ends else "Changed.")


def suspend(worker: WorkerContext, *, uuid: object = None, name: object = None, generation: object = None) -> Reply:
    """Pause a running VM in memory."""
    record = _record_live_command(worker, uuid, name, generation)
    worker.require_can(record, "suspend")
    worker.hypervisor(record.spec.hypervisor).suspend(record.uuid)
    worker.wake(record.uuid)
    return reply(record, "It is suspended.")


def resume(worker: WorkerContext, *, uuid: object = None, name: object = None, generation: object = None) -> Reply:
    """Let a suspended VM run on."""
    record = _record_live_command(worker, uuid, name, generation)
    worker.resume(record)
    worker.wake(record.uuid)
    return reply(record, "It runs.")


def shutdown(
    worker: WorkerContext, *, uuid: object = None, name: object = None, generation: object = None, timeout_s: object = 0
) -> Reply:
    """Ask the guest to shut down; then its disks are saved, kept or discarded. Wait up to `timeout_s` for that."""
    limit = validation.seconds(timeout_s)
    record = worker.store.find(*validation.identity(uuid, name))
    domain = known_domain(worker, record)
    record = noted(worker, record, domain)
    number = validation.generation(generation)
    folder = str(worker.store.folder(record.uuid))
    record = worker.store.update(record.uuid, lambda current: after_shutdown(current, number, worker.now(), folder))
    start_helper_and_notify(worker, record)
    dropped = " Its saved memory is dropped." if domain.saved_memory else ""
    if limit:
        _wait(lambda: worker.store.read(record.uuid).phase in SETTLED, limit, f"{record.name!r} is not halted yet")
    if record.phase is Phase.KEPT:  # its disks stay
        drop_memory(worker, record)
    ended = worker.store.read(record.uuid)
    if ended.phase in SETTLED:
        return reply(record, (ended.message or "It is off.") + dropped)
    if ended.phase not in STARTING | {Phase.UP}:
        fates = "".join(f" {disk_name}: {disk_fate(ended, disk_name)}." for disk_name in ended.disks)
        return reply(record, f"It is off.{fates}{dropped}")
    never_ran = ended.phase in STARTING and not ended.has_own_disks
    ends = "It has not run yet: nothing is saved." if never_ran else describe_ends(ended.spec)
    return reply(record, f"It was asked to shut down. {ends}{dropped}")


def destroy(
    worker: WorkerContext,
    *,
    uuid: object = None,
    name: object = None,
    generation: object = None,
    timeout_s: object = 30,
) -> Reply:
    """Power off and discard a VM with all its disks; nothing is saved. It stops any other work on the VM."""
    limit = validation.seconds(timeout_s)
    number = validation.generation(generation)
    identity = validation.identity(uuid, name)
    try:
        record = worker.store.find(*identity)
    except NotFound:
        if identity[0] is None or (worker.store.tombstones.generation(identity[0]) is None and number is None):
            raise
        _confirm_gone(worker, identity[0], number)
        return {"success": True, "message": "It is not here.", "uuid": identity[0]}
    require_no_job(record, known_domain(worker, record))
    unsaved = record.unsaved or record.phase is Phase.SAVE_FAILED
    # The order is the crash safety: first the tombstone is durable, then the record, and only then is anything taken
    # away. A crash after the tombstone leaves the VM as it is: its sender repeats the destroy, and an older start that
    # comes late is refused. The rule runs before both, so a refused command leaves no tombstone.
    try:
        record = worker.store.update(
            record.uuid,
            lambda current: after_destroy(current, number, worker.now()),
            before_write=lambda _, after: worker.store.tombstones.write(after.uuid, after.generation),
        )
    except NotFound:  # another destroy has ended just now
        _confirm_gone(worker, record.uuid, number)
    else:
        with suppress(HypervisorError):  # the helper retries until libvirt is back
            worker.hypervisor(record.spec.hypervisor).power_off(record.uuid)
        start_helper_and_notify(worker, record)
    try:
        _wait(lambda: _is_gone(worker, record.uuid), limit, f"{record.name!r} is still being removed")
    except TimedOut as err:
        with suppress(NotFound):
            if problem := worker.store.read(record.uuid).problem:
                raise TimedOut(f"{err} The last try failed: {problem}") from err
        raise
    left = [folder for folder, old in worker.store.destroyed_unsaved() if unsaved and old.uuid == record.uuid][-1:]
    message = (
        f"It is destroyed; its unsaved disks stay in {left[0]}." if left else "It is destroyed; nothing was saved."
    )
    return reply(record, message)


def _confirm_gone(worker: WorkerContext, uuid: str, number: int | None) -> None:
    """Write the tombstone that confirms a destroy of a VM that is not here, and refuses a start that comes later."""
    worker.store.tombstones.write(uuid, max(number or 0, worker.store.tombstones.generation(uuid) or 0))


def save_retry(worker: WorkerContext, *, uuid: object = None, name: object = None, generation: object = None) -> Reply:
    """Try again to save the disks that lie in failed_to_save."""
    record = worker.store.find(*validation.identity(uuid, name))
    number = validation.generation(generation)
    record = worker.store.update(record.uuid, lambda current: after_save_retry(current, number, worker.now()))
    start_helper_and_notify(worker, record)
    return reply(record, "Its disks are being saved again.")


def apply(worker: WorkerContext, *, actions: object) -> Reply:
    """Execute a batch of commands with generations, in order. One that fails does not stop the others."""
    results = [_apply_one(worker, given) for given in validation.actions(actions)]
    failed = [result for result in results if not result["success"]]
    message = f"{len(results) - len(failed)} of {len(results)} done."
    if not failed:
        return {"success": True, "message": message, "results": results}
    message += f" First failure: {failed[0]['message']}"
    return {"success": False, "message": message, "code": failed[0]["code"], "results": results}


_MESSAGE_LIMIT: Final = 300
_LABELS: Final[Mapping[str, type]] = {"uuid": str, "verb": str, "generation": int, "attempt": int}


def _apply_one(worker: WorkerContext, given: object) -> Reply:
    """Return the reply to one command, with the fields that identify the command as far as it has them."""
    fields = given if isinstance(given, dict) else {}
    labels = {key: fields[key] for key, kind in _LABELS.items() if type(fields.get(key)) is kind}
    try:
        result = answer(lambda: _execute(worker, validation.action(given)))
    except Exception as err:  # a bug: the other commands and the master's user get to know
        log.exception("the command %s failed", labels)
        message = f"The worker could not carry it out: {type(err).__name__}: {err}"
        result = {"success": False, "message": message[:_MESSAGE_LIMIT], "code": Code.INTERNAL.value}
    return {**result, **labels}


def _execute(worker: WorkerContext, action: Action) -> Reply:
    """Execute one command of a batch; raises SalternError."""
    uuid, number = validation.canonical_uuid(action.uuid), validation.generation(action.generation)
    match action:
        case StartAction(params=spec):
            return start_spec(worker, spec, uuid, number, owner=validation.owner(action.owner), origin=action.origin)
        case ModifyAction(params=changes):
            record = worker.store.find(uuid)
            owner = validation.owner(action.owner) or record.owner
            return _modify(worker, record, number, validation.checked_changes(changes, worker.policy_of(owner)), owner)
        case _:
            limit = msgspec.to_builtins(action.params)
            return VERBS[action.verb](worker, uuid=uuid, generation=number, **limit)


def version(_worker: WorkerContext) -> Reply:
    """Return the version of Saltern on this worker."""
    return {"success": True, "message": f"Saltern {__version__}", "version": __version__, "protocol": PROTOCOL}


VERBS: Final[Mapping[str, Callable[..., Reply]]] = {
    "start": start,
    "status": status,
    "modify": modify,
    "destroy": destroy,
    "suspend": suspend,
    "resume": resume,
    "shutdown": shutdown,
    "save_retry": save_retry,
    "screen": screen,
    "list": list_,
    "apply": apply,
    "version": version,
    "plan": queries.plan,
    "capabilities": queries.capabilities,
    "agent_log": queries.agent_log,
    "cache": cache_verbs.cache,
    "cache_clean": cache_verbs.cache_clean,
    "cache_prefetch": cache_verbs.cache_prefetch,
    "cache_pin": cache_verbs.cache_pin,
    "cache_unpin": cache_verbs.cache_unpin,
}


def _start_due_helper(worker: WorkerContext, record: Record, domain: DomainState) -> None:
    """Start the helper of a VM with pending work. A failure is only logged: the caller still reports the status."""
    try:
        launcher.start_helper_if_due(worker, record, domain)
    except OSError:
        log.exception("the helper of VM %s cannot be started", record.uuid)


def _look(worker: WorkerContext, uuid: object, name: object) -> tuple[Record, DomainState]:
    """Return a VM and its domain. A VM that somebody has started meanwhile is up from now on."""
    record = worker.store.find(*validation.identity(uuid, name))
    domain = worker.domain(record)
    return noted(worker, record, domain), domain


def _record_live_command(worker: WorkerContext, uuid: object, name: object, generation: object) -> Record:
    """Record the generation of a command to a VM that is on, and return the record."""
    record, domain = _look(worker, uuid, name)
    require_no_job(record, domain)
    number = validation.generation(generation)
    return worker.store.update(record.uuid, lambda current: after_suspend_or_resume(current, domain, number))


def _is_gone(worker: WorkerContext, uuid: str) -> bool:
    """Return whether a VM is gone. If not, start its helper unless one runs."""
    launcher.start_helper(worker, uuid)
    return worker.store.is_gone(uuid)


def _wait(done: Callable[[], bool], limit: float, what: str) -> None:
    deadline = time.monotonic() + limit
    while not done():
        if time.monotonic() > deadline:
            raise TimedOut(f"{what} after {limit:g} s; the work goes on by itself. `status` shows how far it is.")
        time.sleep(_POLL_S)
