"""`start`: a VM is taken on, taken on again, or another life of one that is here begins."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import msgspec

from worker_service.contract import Code, Spec
from worker_service.core.errors import NotFound, Refused
from worker_service.helper import launcher
from worker_service.hypervisor.base import ABSENT
from worker_service.operations import validation
from worker_service.operations.admission import require_capacity
from worker_service.operations.common import (
    Reply,
    check_generation,
    read_target_versions,
    reply,
    start_helper_and_notify,
    with_target_versions,
)
from worker_service.state.context import WorkerContext
from worker_service.state.record import (
    DISKS,
    NEW_INSTANCE_FIELDS,
    OF_KEPT_DISKS,
    SETTLED,
    Phase,
    Record,
    move,
    new_uuid,
)


def start(worker: WorkerContext, *, uuid: object = None, generation: object = None, **parameters: Any) -> Reply:
    """Accept a VM: checked, admitted, durable; a helper does the rest. Repeated, it changes nothing."""
    wanted = validation.spec(parameters, worker.settings.images)
    worker.hypervisor(wanted.hypervisor)
    number = validation.generation(generation)
    identity = validation.canonical_uuid(uuid) if uuid else None
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
    existing = _existing(worker, record) or worker.store.create(record, lambda: require_capacity(worker, wanted))
    if existing is not None:
        return _start_existing(worker, existing, record, number)
    launcher.start_helper_if_due(worker, record, ABSENT)
    worker.wake(record.uuid)
    return reply(record, "Accepted; it is being started.")


def _existing(worker: WorkerContext, record: Record) -> Record | None:
    with suppress(NotFound):
        return worker.store.read(record.uuid)
    with suppress(NotFound):
        return worker.store.find(name=record.name)
    return None


def _start_existing(worker: WorkerContext, existing: Record, asked: Record, generation: int | None) -> Reply:
    """Start on a VM that is here already: a repetition, a new life, or a conflict."""
    if generation is not None and existing.uuid != asked.uuid:
        raise Refused(
            f"The name {asked.name!r} is taken here by VM {existing.uuid}. Choose another name, or destroy that VM.",
            code=Code.NAME_TAKEN,
        )

    again = False

    def change(current: Record) -> Record:
        nonlocal again
        number = check_generation(current, generation)
        if current.phase not in SETTLED or (generation is not None and generation == current.generation):
            _require_same_spec(current, asked.spec)
            return msgspec.structs.replace(current, generation=number)
        if current.phase is Phase.SAVE_FAILED:
            raise Refused(
                f"The disks of {current.name!r} could not be saved and wait. Call save_retry first, or destroy it."
            )
        if current.phase is Phase.KEPT:
            _require_kept_disks(current, asked)
        # The disks of a kept VM are here already.
        to_fetch = 0 if current.phase is Phase.KEPT else None
        require_capacity(worker, asked.spec, beside=current.uuid, to_fetch=to_fetch)
        again = True
        fresh: dict[str, Any] = {"generation": number, "spec": asked.spec, "shutdown_asked": False}
        if current.phase is Phase.KEPT:  # its own disks are there: they go on
            return move(with_target_versions(current, seen), Phase.BUILDING, worker.now(), **fresh)
        return move(current, Phase.FETCHING, worker.now(), **fresh, **NEW_INSTANCE_FIELDS)

    moved = existing.phase is Phase.KEPT
    seen = read_target_versions(
        worker, {s: asked.save_to(s) for s in DISKS if moved and asked.save_to(s) != existing.save_to(s)}
    )
    with worker.store.admission():
        record = worker.store.update(existing.uuid, change)
    start_helper_and_notify(worker, record)
    return reply(record, "Accepted; it is started again." if again else "It is here already.")


def _require_same_spec(current: Record, asked: Spec) -> None:
    old, new = msgspec.to_builtins(current.spec), msgspec.to_builtins(asked)
    differing = sorted(key for key in {*old, *new} if old.get(key) != new.get(key))
    if differing:
        raise Refused(
            f"{current.name!r} is here already with another {', '.join(differing)}. "
            "Choose another name, use modify, or destroy it first."
        )


def _require_kept_disks(current: Record, asked: Record) -> None:
    """Refuse what would put other disks in the place of those that were kept, or leave one of them out."""
    old, new = ([getattr(each.spec, key) or None for key in OF_KEPT_DISKS] for each in (current, asked))
    if fixed := [key for key, was, value in zip(OF_KEPT_DISKS, old, new, strict=True) if was != value]:
        raise Refused(
            f"The disks of {current.name!r} are kept and would go on, so {', '.join(fixed)} cannot be changed. "
            "Call shutdown first, which saves or discards them as asked, or destroy it."
        )
