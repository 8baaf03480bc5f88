"""The verbs of the contract, one function each, for all doors. Nothing slow happens here: helpers do the work.

Every function returns the plain dict of the contract, `{"success": true, "message": …}` with what the verb adds, and
raises SalternError; `answer` turns that into `{"success": false, "message": …, "code": …}`.
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
from worker_service.contract import PROTOCOL, Action, Code, HaltCause, Status
from worker_service.core.errors import BadRequest, HypervisorError, NotFound, Refused, SalternError, TimedOut
from worker_service.fs.space_reserve import FULL
from worker_service.helper import launcher
from worker_service.hypervisor.base import DomainState, Power
from worker_service.operations import cache as cache_verbs
from worker_service.operations import queries, validation
from worker_service.operations.common import (
    Reply,
    check_generation,
    read_target_versions,
    reply,
    start_helper_and_notify,
    with_target_versions,
)
from worker_service.operations.screen import screen
from worker_service.operations.start import start
from worker_service.operations.status_report import list_reply, plain, vm_status
from worker_service.state.context import WorkerContext
from worker_service.state.lifecycle import after_halt, status_of
from worker_service.state.record import DISKS, ENDING, SETTLED, STARTING, Phase, Record, move

log = logging.getLogger("saltern.operations")

_POLL_S: Final = 0.05
_DISK: Final = FULL | {errno.EROFS, errno.EIO}
"""Nothing that the request or the program did: another time it works, once there is room or the disk is mended."""
_BEFORE_SAVE: Final = STARTING | {Phase.UP, Phase.KEPT}


def answer(verb: Callable[..., Reply], *arguments: Any, **parameters: Any) -> Reply:
    """Call a verb; errors that a user may see become the contract's reply of failure."""
    try:
        return verb(*arguments, **parameters)
    except SalternError as err:
        return {"success": False, "message": str(err), "code": err.code.value}
    except OSError as err:
        where = f" ({err.filename})" if err.filename else ""
        text = (
            f"The worker's disk failed: {err.strerror}{where}. Check the data root's space and owner, then ask again."
        )
        return {"success": False, "message": text, "code": (Code.DISK if err.errno in _DISK else Code.INTERNAL).value}


def status(worker: WorkerContext, *, uuid: object = None, name: object = None) -> Reply:
    """What a VM does."""
    record, domain = _look(worker, uuid, name)
    _go_on(worker, record, domain)
    on = record.phase is Phase.UP and domain.power in (Power.RUNNING, Power.PAUSED)
    return plain(vm_status(worker, record, domain, console_url(worker.settings.api, record.uuid) if on else ""))


def list_(worker: WorkerContext) -> Reply:
    """Every VM of this worker with its status, foreign domains, tombstones and what is free."""
    return plain(list_reply(worker, lambda record, domain: _go_on(worker, record, domain)))


def modify(
    worker: WorkerContext, *, uuid: object = None, name: object = None, generation: object = None, **changes: Any
) -> Reply:
    """Change where disks are saved, or the disc in the drive (`""` ejects)."""
    record = worker.store.find(*validation.identity(uuid, name))
    given = {key: str(value) for key, value in changes.items() if value is not None}
    if unknown := sorted(set(given) - {"hda_save_to", "hdb_save_to", "cd_image"}):
        raise Refused(
            f"{', '.join(unknown)} cannot be modified. Only hda_save_to, hdb_save_to and cd_image can.",
            code=Code.BAD_REQUEST,
        )
    validation.check_image(given.get("cd_image"), worker.settings.images)
    save_to = {disk_name: given.get(f"{disk_name}_save_to") for disk_name in DISKS}
    for uri in save_to.values():
        validation.check_save_to(uri, worker.settings.images)
    seen = read_target_versions(worker, save_to)

    def change(current: Record) -> Record:
        number = check_generation(current, validation.generation(generation))
        movable = _BEFORE_SAVE | {Phase.SAVE_FAILED}
        if current.phase not in (movable if "cd_image" not in given else {Phase.UP}):
            raise Refused(f"{current.name!r} is {current.phase} and cannot be modified so now. `status` says more.")
        if "cd_image" in given and current.installing:
            raise Refused(f"{current.name!r} is installing: its CD can be changed once that is done.")
        spec = msgspec.structs.replace(current.spec, **given)
        current = msgspec.structs.replace(
            current, spec=spec, generation=number, tries=0, next_try_at=None, problem=None
        )
        return with_target_versions(current, seen)

    record = worker.store.update(record.uuid, change)
    start_helper_and_notify(worker, record)
    return reply(record, "Changed.")


def suspend(worker: WorkerContext, *, uuid: object = None, name: object = None, generation: object = None) -> Reply:
    """Pause a running VM in memory."""
    record = _require_up(worker, uuid, name, generation)
    worker.hypervisor(record.spec.hypervisor).suspend(record.uuid)
    worker.wake(record.uuid)
    return reply(record, "It is suspended.")


def resume(worker: WorkerContext, *, uuid: object = None, name: object = None, generation: object = None) -> Reply:
    """Let a suspended VM run on."""
    record = _require_up(worker, uuid, name, generation)
    worker.resume(record)
    worker.wake(record.uuid)
    return reply(record, "It runs.")


def shutdown(
    worker: WorkerContext, *, uuid: object = None, name: object = None, generation: object = None, timeout_s: object = 0
) -> Reply:
    """Ask the guest to shut down, so that its disks are saved as asked; waits up to `timeout_s` for the end of that."""
    limit = validation.seconds(timeout_s)
    record = worker.store.find(*validation.identity(uuid, name))

    def change(current: Record) -> Record:
        number = check_generation(current, validation.generation(generation))
        current = msgspec.structs.replace(current, generation=number)
        if current.phase is Phase.KEPT:  # nobody wished it to be off until now
            ending = after_halt(current, HaltCause.OPERATOR)
            return move(current, ending, worker.now(), halt_cause=HaltCause.OPERATOR)
        if current.phase is Phase.UP or (current.phase in _BEFORE_SAVE and not current.shutdown_asked):
            # Asked again, the button is pressed again: the guest may have been too busy to hear it.
            return msgspec.structs.replace(current, shutdown_asked=True, tries=0, next_try_at=None, problem=None)
        return current

    record = worker.store.update(record.uuid, change)
    start_helper_and_notify(worker, record)
    if limit:
        _wait(lambda: worker.store.read(record.uuid).phase in SETTLED, limit, f"{record.name!r} is not halted yet")
    done = worker.store.read(record.uuid).phase in SETTLED
    return reply(record, "It is off." if done else "It was asked to shut down.")


def destroy(
    worker: WorkerContext,
    *,
    uuid: object = None,
    name: object = None,
    generation: object = None,
    timeout_s: object = 30,
) -> Reply:
    """Power off and discard a VM with all its disks; nothing is saved. Wins over whatever is under way."""
    limit = validation.seconds(timeout_s)
    number = validation.generation(generation)
    identity = validation.identity(uuid, name)
    try:
        record = worker.store.find(*identity)
    except NotFound:
        if identity[0] is None or (worker.store.tombstone(identity[0]) is None and number is None):
            raise
        # A destroy for a VM that is not here is confirmed, and remembered against a start that comes later.
        worker.store.write_tombstone(identity[0], max(number or 0, worker.store.tombstone(identity[0]) or 0))
        return {"success": True, "message": "It is not here.", "uuid": identity[0]}
    unsaved = record.unsaved or record.phase is Phase.SAVE_FAILED

    def change(current: Record) -> Record:
        latest = check_generation(current, number)
        worker.store.write_tombstone(current.uuid, latest)
        if current.phase is Phase.DESTROYING:
            return msgspec.structs.replace(current, generation=latest)
        return move(current, Phase.DESTROYING, worker.now(), generation=latest)

    record = worker.store.update(record.uuid, change)
    with suppress(HypervisorError):  # the helper tries until it is there again
        worker.hypervisor(record.spec.hypervisor).power_off(record.uuid)
    start_helper_and_notify(worker, record)
    _wait(lambda: _gone_or_forked(worker, record.uuid), limit, f"{record.name!r} is still being removed")
    left = [folder for folder, old in worker.store.destroyed_unsaved() if unsaved and old.uuid == record.uuid][-1:]
    message = (
        f"It is destroyed; its unsaved disks stay in {left[0]}." if left else "It is destroyed; nothing was saved."
    )
    return reply(record, message)


def save_retry(worker: WorkerContext, *, uuid: object = None, name: object = None, generation: object = None) -> Reply:
    """Try again to save the disks that lie in failed_to_save."""
    record = worker.store.find(*validation.identity(uuid, name))

    def change(current: Record) -> Record:
        number = check_generation(current, validation.generation(generation))
        if current.phase in ENDING | {Phase.CLEANING}:
            return msgspec.structs.replace(current, next_try_at=None)
        if current.phase is not Phase.SAVE_FAILED:
            raise Refused(f"{current.name!r} has not failed to save: it is {current.phase}. There is nothing to retry.")
        return move(current, Phase.FLATTENING, worker.now(), generation=number)

    record = worker.store.update(record.uuid, change)
    start_helper_and_notify(worker, record)
    return reply(record, "Its disks are being saved again.")


def apply(worker: WorkerContext, *, actions: object) -> Reply:
    """Carry out a batch of commands with generations, in order; one that fails does not stop the others."""
    results = [_apply_one(worker, given) for given in validation.actions(actions)]
    failed = [result for result in results if not result["success"]]
    message = f"{len(results) - len(failed)} of {len(results)} done."
    if not failed:
        return {"success": True, "message": message, "results": results}
    message += f" First of what was not: {failed[0]['message']}"
    return {"success": False, "message": message, "code": failed[0]["code"], "results": results}


def _apply_one(worker: WorkerContext, given: object) -> Reply:
    """The reply to one command, with whatever of its uuid and verb can be told."""
    told = given if isinstance(given, dict) else {}
    named = {key: told[key] for key in ("uuid", "verb") if isinstance(told.get(key), str)}
    return {**answer(lambda: _carry_out(worker, validation.action(given))), **named}


def _carry_out(worker: WorkerContext, action: Action) -> Reply:
    """One command of a batch; raises SalternError."""
    if twice := sorted({"uuid", "generation"} & action.params.keys()):
        raise BadRequest(f"{', '.join(twice)} stand beside params, not in it. Leave them out there.")
    given = {**action.params, "uuid": action.uuid, "generation": action.generation}
    validation.check_fitting(action.verb, VERBS[action.verb], worker, **given)
    return VERBS[action.verb](worker, **given)


def version(_worker: WorkerContext) -> Reply:
    """The version of Saltern on this worker."""
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


def _go_on(worker: WorkerContext, record: Record, domain: DomainState) -> None:
    """Whoever looks sees to it that somebody works on a VM; what was seen is told all the same where that cannot be."""
    try:
        launcher.start_helper_if_due(worker, record, domain)
    except OSError:
        log.exception("nobody can work on VM %s now", record.uuid)


def _look(worker: WorkerContext, uuid: object, name: object) -> tuple[Record, DomainState]:
    record = worker.store.find(*validation.identity(uuid, name))
    return record, worker.domain(record)


def _require_up(worker: WorkerContext, uuid: object, name: object, generation: object) -> Record:
    """The record of a VM that is on, with the generation of the command noted."""
    record, domain = _look(worker, uuid, name)
    status = status_of(record, domain)
    if status not in (Status.INSTALLING, Status.RUNNING, Status.SUSPENDED):
        raise Refused(f"{record.name!r} is {status}: only a VM that runs can be suspended or resumed.")
    number = validation.generation(generation)
    return worker.store.update(
        record.uuid, lambda current: msgspec.structs.replace(current, generation=check_generation(current, number))
    )


def _gone_or_forked(worker: WorkerContext, uuid: str) -> bool:
    """Whether a VM is gone; if not, see to it that somebody works on that."""
    launcher.start_helper(worker, uuid)
    return worker.store.is_gone(uuid)


def _wait(done: Callable[[], bool], limit: float, what: str) -> None:
    deadline = time.monotonic() + limit
    while not done():
        if time.monotonic() > deadline:
            raise TimedOut(f"{what} after {limit:g} s; the work goes on by itself. `status` shows how far it is.")
        time.sleep(_POLL_S)
