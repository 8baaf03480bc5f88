"""The verbs of the contract, one function each, for all doors. Nothing slow happens here: helpers do the work.

Every function returns the plain dict of the contract, `{"success": true, "message": …}` with what the verb adds, and
raises SalternError; `answer` turns that into `{"success": false, "message": …, "code": …}`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, Final

import msgspec

from worker_service import __version__, durable, inquiries, requests
from worker_service.contract import PROTOCOL, Action, Code, HaltCause, Spec, Status
from worker_service.errors import HypervisorError, NotFound, Refused, SalternError, TimedOut
from worker_service.hypervisor.base import DomainState, Power
from worker_service.images.schemes import target
from worker_service.images.uri import parse
from worker_service.lifecycle import after_halt, status_of
from worker_service.record import SETTLED, Phase, Record, move, new_uuid, with_disk
from worker_service.reports import demand_capacity, list_reply, plain, vm_status
from worker_service.worker import Worker

_POLL_S: Final = 0.05
_BEFORE_SAVE: Final = frozenset({Phase.FETCHING, Phase.BUILDING, Phase.BOOTING, Phase.UP, Phase.KEPT})

Reply = dict[str, Any]


def answer(verb: Callable[..., Reply], *arguments: Any, **parameters: Any) -> Reply:
    """Call a verb; errors that a user may see become the contract's reply of failure."""
    try:
        return verb(*arguments, **parameters)
    except SalternError as err:
        return {"success": False, "message": str(err), "code": err.code.value}
    except OSError as err:
        where = f" ({err.filename})" if err.filename else ""
        text = f"The worker's disk failed: {err.strerror}{where}. Check the data root's space and owner."
        return {"success": False, "message": text, "code": Code.INTERNAL.value}


def start(worker: Worker, *, uuid: object = None, generation: object = None, **parameters: Any) -> Reply:
    """Accept a VM: checked, admitted, durable; a helper does the rest. Repeated, it changes nothing."""
    wanted = requests.spec(parameters, worker.settings.images)
    worker.hypervisor(wanted.hypervisor)
    requests.refuse_agent(wanted)
    number = requests.generation(generation)
    identity = requests.canonical_uuid(uuid) if uuid else None
    if identity:
        worker.store.refuse_if_destroyed(identity, number)
    now = worker.now()
    record = Record(
        uuid=identity or new_uuid(),
        spec=wanted,
        generation=number or 1,
        phase=Phase.FETCHING,
        phase_since=now,
        created_at=now,
    )
    # One at a time: two requests must not both be promised the last of the memory.
    with durable.locked(worker.store.root / "admission.lock"):
        existing = _existing(worker, record)
        if existing is None:
            demand_capacity(worker, wanted)
            existing = worker.store.create(record)
    if existing is not None:
        return _start_existing(worker, existing, record, number)
    worker.fork_helper(record.uuid)
    worker.wake(record.uuid)
    return _reply(record, "Accepted; it is being started.")


def _existing(worker: Worker, record: Record) -> Record | None:
    with suppress(NotFound):
        return worker.store.read(record.uuid)
    with suppress(NotFound):
        return worker.store.find(name=record.name)
    return None


def _start_existing(worker: Worker, existing: Record, asked: Record, generation: int | None) -> Reply:
    """Start on a VM that is here already: a repetition, a new life, or a conflict."""
    if generation is not None and existing.uuid != asked.uuid:
        raise Refused(
            f"The name {asked.name!r} is taken here by VM {existing.uuid}. Choose another name, or destroy that VM.",
            code=Code.NAME_TAKEN,
        )

    def change(current: Record) -> Record:
        number = _newer(current, generation)
        if current.phase not in SETTLED or (generation is not None and generation == current.generation):
            _demand_same_spec(current, asked.spec)
            return msgspec.structs.replace(current, generation=number)
        if current.phase is Phase.SAVE_FAILED:
            raise Refused(
                f"The disks of {current.name!r} wait in failed_to_save. Call save_retry first, or destroy it."
            )
        fresh: dict[str, Any] = {"generation": number, "spec": asked.spec, "shutdown_asked": False}
        if current.phase is Phase.KEPT:  # its own disks are there: they go on
            return move(current, Phase.BUILDING, worker.now(), **fresh)
        return move(current, Phase.FETCHING, worker.now(), **fresh, disks={}, cd=None, cd_uri="", halt_cause=None)

    if existing.phase in SETTLED:
        demand_capacity(worker, asked.spec)
    record = worker.store.update(existing.uuid, change)
    _nudge(worker, record)
    return _reply(record, "It is here already." if record.phase is existing.phase else "Accepted; it is started again.")


def _demand_same_spec(current: Record, asked: Spec) -> None:
    old, new = msgspec.to_builtins(current.spec), msgspec.to_builtins(asked)
    differing = sorted(key for key in {*old, *new} if old.get(key) != new.get(key))
    if differing:
        raise Refused(
            f"{current.name!r} is here already with another {', '.join(differing)}. "
            "Choose another name, use modify, or destroy it first."
        )


def status(worker: Worker, *, uuid: object = None, name: object = None) -> Reply:
    """What a VM does."""
    record, domain = _look(worker, uuid, name)
    _fork_if_due(worker, record, domain)
    screen = ""
    if record.phase is Phase.UP and domain.power in (Power.RUNNING, Power.PAUSED):
        screen = worker.hypervisor(record.spec.hypervisor).screen(record.uuid)
    return plain(vm_status(worker, record, domain, screen))


def list_(worker: Worker) -> Reply:
    """Every VM of this worker with its status, foreign domains, tombstones and what is free."""
    return plain(list_reply(worker, lambda record, domain: _fork_if_due(worker, record, domain)))


def modify(
    worker: Worker, *, uuid: object = None, name: object = None, generation: object = None, **changes: Any
) -> Reply:
    """Change where disks are saved, or the disc in the drive (`""` ejects)."""
    record = worker.store.find(*requests.identity(uuid, name))
    given = {key: str(value) for key, value in changes.items() if value is not None}
    if unknown := sorted(set(given) - {"hda_save_to", "hdb_save_to", "cd_image"}):
        raise Refused(
            f"{', '.join(unknown)} cannot be modified. Only hda_save_to, hdb_save_to and cd_image can.",
            code=Code.BAD_REQUEST,
        )
    requests.check_image(given.get("cd_image"), worker.settings.images)
    seen: dict[str, str | None] = {}
    for slot in ("hda", "hdb"):
        save_to = given.get(f"{slot}_save_to")
        requests.check_save_to(save_to, worker.settings.images)
        if save_to:
            seen[slot] = target(parse(save_to), worker.settings.images).observe(parse(save_to))

    def change(current: Record) -> Record:
        number = _newer(current, requests.generation(generation))
        movable = _BEFORE_SAVE | {Phase.SAVE_FAILED}
        if current.phase not in (movable if "cd_image" not in given else {Phase.UP}):
            raise Refused(f"{current.name!r} is {current.phase} and cannot be modified so now. `status` says more.")
        spec = msgspec.structs.replace(current.spec, **given)
        current = msgspec.structs.replace(
            current, spec=spec, generation=number, tries=0, next_try_at=None, problem=None
        )
        for slot in seen.keys() & current.disks.keys():
            current = with_disk(current, slot, target_seen=seen[slot])
        return current

    record = worker.store.update(record.uuid, change)
    _nudge(worker, record)
    return _reply(record, "Changed.")


def suspend(worker: Worker, *, uuid: object = None, name: object = None, generation: object = None) -> Reply:
    """Pause a running VM in memory."""
    record = _demand_up(worker, uuid, name, generation)
    worker.hypervisor(record.spec.hypervisor).suspend(record.uuid)
    worker.wake(record.uuid)
    return _reply(record, "It is suspended.")


def resume(worker: Worker, *, uuid: object = None, name: object = None, generation: object = None) -> Reply:
    """Let a suspended VM run on."""
    record = _demand_up(worker, uuid, name, generation)
    worker.hypervisor(record.spec.hypervisor).resume(record.uuid)
    worker.wake(record.uuid)
    return _reply(record, "It runs.")


def shutdown(
    worker: Worker, *, uuid: object = None, name: object = None, generation: object = None, timeout_s: object = 0
) -> Reply:
    """Ask the guest to shut down, so that its disks are saved as asked; waits up to `timeout_s` for the end of that."""
    limit = requests.seconds(timeout_s)
    record = worker.store.find(*requests.identity(uuid, name))

    def change(current: Record) -> Record:
        number = _newer(current, requests.generation(generation))
        current = msgspec.structs.replace(current, generation=number)
        if current.phase is Phase.KEPT:  # nobody wished it to be off until now
            ending = after_halt(current, HaltCause.OPERATOR)
            return move(current, ending, worker.now(), halt_cause=HaltCause.OPERATOR)
        if current.phase in _BEFORE_SAVE and not current.shutdown_asked:
            return msgspec.structs.replace(current, shutdown_asked=True, tries=0, next_try_at=None)
        return current

    record = worker.store.update(record.uuid, change)
    _nudge(worker, record)
    if limit:
        _wait(lambda: worker.store.read(record.uuid).phase in SETTLED, limit, f"{record.name!r} is not halted yet")
    done = worker.store.read(record.uuid).phase in SETTLED
    return _reply(record, "It is off." if done else "It was asked to shut down.")


def destroy(
    worker: Worker, *, uuid: object = None, name: object = None, generation: object = None, timeout_s: object = 30
) -> Reply:
    """Power off and discard a VM with all its disks; nothing is saved. Wins over whatever is under way."""
    limit = requests.seconds(timeout_s)
    number = requests.generation(generation)
    identity = requests.identity(uuid, name)
    try:
        record = worker.store.find(*identity)
    except NotFound:
        if identity[0] is None or (worker.store.tombstone(identity[0]) is None and number is None):
            raise
        # A destroy for a VM that is not here is confirmed, and remembered against a start that comes later.
        worker.store.bury(identity[0], max(number or 0, worker.store.tombstone(identity[0]) or 0))
        return {"success": True, "message": "It is not here.", "uuid": identity[0]}
    kept = worker.store.folder(record.uuid) if record.phase is Phase.SAVE_FAILED else None

    def change(current: Record) -> Record:
        newer = _newer(current, number)
        worker.store.bury(current.uuid, newer)
        if current.phase is Phase.DESTROYING:
            return msgspec.structs.replace(current, generation=newer)
        return move(current, Phase.DESTROYING, worker.now(), generation=newer)

    record = worker.store.update(record.uuid, change)
    with suppress(HypervisorError):  # the helper tries until it is there again
        worker.hypervisor(record.spec.hypervisor).power_off(record.uuid)
    _nudge(worker, record)
    _wait(lambda: _gone_or_forked(worker, record.uuid), limit, f"{record.name!r} is still being removed")
    message = f"It is destroyed; its unsaved disks stay in {kept}." if kept else "It is destroyed; nothing was saved."
    return _reply(record, message)


def save_retry(worker: Worker, *, uuid: object = None, name: object = None, generation: object = None) -> Reply:
    """Try again to save the disks that lie in failed_to_save."""
    record = worker.store.find(*requests.identity(uuid, name))

    def change(current: Record) -> Record:
        number = _newer(current, requests.generation(generation))
        if current.phase in (Phase.SEALING, Phase.SAVING, Phase.CLEANING):
            return msgspec.structs.replace(current, next_try_at=None)
        if current.phase is not Phase.SAVE_FAILED:
            raise Refused(f"{current.name!r} has not failed to save: it is {current.phase}. There is nothing to retry.")
        return move(current, Phase.SEALING, worker.now(), generation=number)

    record = worker.store.update(record.uuid, change)
    _nudge(worker, record)
    return _reply(record, "Its disks are being saved again.")


def apply(worker: Worker, *, actions: object) -> Reply:
    """Carry out a batch of commands with generations, in order; one that fails does not stop the others."""
    results = [_apply_one(worker, action) for action in requests.actions(actions)]
    good = sum(result["success"] for result in results)
    return {"success": good == len(results), "message": f"{good} of {len(results)} done.", "results": results}


def _apply_one(worker: Worker, action: Action) -> Reply:
    reply = answer(VERBS[action.verb], worker, uuid=action.uuid, generation=action.generation, **action.params)
    reply["uuid"] = action.uuid
    return reply


def version(_worker: Worker) -> Reply:
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
    "list": list_,
    "apply": apply,
    "version": version,
    "plan": inquiries.plan,
    "capabilities": inquiries.capabilities,
    "cache": inquiries.cache,
    "cache_clean": inquiries.cache_clean,
}


def _look(worker: Worker, uuid: object, name: object) -> tuple[Record, DomainState]:
    record = worker.store.find(*requests.identity(uuid, name))
    return record, worker.domain(record)


def _demand_up(worker: Worker, uuid: object, name: object, generation: object) -> Record:
    """The record of a VM that is on, with the generation of the command noted."""
    record, domain = _look(worker, uuid, name)
    status = status_of(record, domain)
    if status not in (Status.INSTALLING, Status.RUNNING, Status.SUSPENDED):
        raise Refused(f"{record.name!r} is {status}: only a VM that runs can be suspended or resumed.")
    number = requests.generation(generation)
    return worker.store.update(
        record.uuid, lambda current: msgspec.structs.replace(current, generation=_newer(current, number))
    )


def _newer(current: Record, generation: int | None) -> int:
    """The generation that holds from now on; raises Refused for a command that comes too late."""
    if generation is not None and generation < current.generation:
        raise Refused(
            f"This command is older (generation {generation}) than what {current.name!r} was last told "
            f"({current.generation}). Nothing was done.",
            code=Code.STALE,
        )
    return current.generation if generation is None else generation


def _nudge(worker: Worker, record: Record) -> None:
    worker.fork_helper(record.uuid)
    worker.wake(record.uuid)


def _fork_if_due(worker: Worker, record: Record, domain: DomainState) -> None:
    """Every look is a chance to find an orphan, with or without a watcher."""
    if worker.due(record, domain):
        worker.fork_helper(record.uuid)


def _gone_or_forked(worker: Worker, uuid: str) -> bool:
    """Whether a VM is gone; if not, see to it that somebody works on that."""
    with suppress(NotFound):
        worker.fork_helper(uuid)
    return worker.store.is_gone(uuid)


def _wait(done: Callable[[], bool], limit: float, what: str) -> None:
    deadline = time.monotonic() + limit
    while not done():
        if time.monotonic() > deadline:
            raise TimedOut(f"{what} after {limit:g} s; the work goes on by itself. `status` shows how far it is.")
        time.sleep(_POLL_S)


def _reply(record: Record, message: str) -> Reply:
    return {"success": True, "message": message, "uuid": record.uuid, "name": record.name}
