"""`start`: accept a new VM, repeat the start of one that is here, or start it again."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from worker_service.contract import NAME, Code, Spec, describe_ends
from worker_service.core.errors import NotFound, Refused
from worker_service.helper import launcher
from worker_service.hypervisor.base import ABSENT
from worker_service.operations import validation
from worker_service.operations.admission import from_saves, require_capacity, require_network
from worker_service.operations.common import (
    Reply,
    from_what,
    known_domain,
    noted,
    read_target_versions,
    reply,
    start_helper_and_notify,
)
from worker_service.state.command_rules import after_start, starts_again
from worker_service.state.context import WorkerContext
from worker_service.state.record import DISKS, Phase, Record, new_uuid


def start(
    worker: WorkerContext,
    *,
    uuid: object = None,
    generation: object = None,
    origin: object = None,
    **parameters: Any,
) -> Reply:
    """Check, admit and record a VM; a helper does the rest. A repeated start changes nothing.

    The VM boots what it is given: its images, or the saves of its disks that `origin` names. Disks that were kept come
    first.
    The caller of a worker's own interface is its administrator, so a new VM belongs to the site itself.
    """
    spec = validation.parse_spec(parameters)
    identity = validation.canonical_uuid(uuid) if uuid not in (None, "") else None
    return start_spec(worker, spec, identity, validation.generation(generation), origin=origin)


def start_spec(  # noqa: PLR0913 - the fields of a `StartAction`
    worker: WorkerContext,
    spec: Spec,
    identity: str | None,
    number: int | None,
    *,
    owner: str = "",
    origin: object = None,
) -> Reply:
    """Start a VM from typed parameters; see `start`. `owner`: as in `StartAction`; "" leaves the owner of a VM here."""
    existing = _existing(worker, identity, spec.name)
    owner = owner or (existing.owner if existing else "")
    spec = validation.checked_spec(spec, worker.policy_of(owner))
    saves = validation.origin(origin, spec, worker.policy_of(owner))
    require_network(worker.settings, spec.network, owner)
    worker.require_supported(spec)
    if identity:
        worker.store.tombstones.refuse_late(identity, number)
    now = worker.now()
    record = Record(
        uuid=identity or new_uuid(),
        spec=spec,
        generation=number or 1,
        phase=Phase.FETCHING,
        phase_since=now,
        created_at=now,
        owner=owner,
        origin=saves,
    )
    if existing is None:
        if identity is None:  # a master checks the names of new VMs, and sends old ones with their uuid
            validation.check_new_name(spec.name)
        existing = worker.store.create(record, lambda: require_capacity(worker, from_saves(spec, saves), owner))
    if existing is not None:
        if number is not None and existing.uuid != record.uuid:
            raise Refused(
                f"The name {record.name!r} is taken here by VM {existing.uuid}. "
                "Choose another name, or destroy that VM.",
                code=Code.NAME_TAKEN,
            )
        return _start_existing(worker, existing, record, number)
    launcher.start_helper_if_due(worker, record, ABSENT)
    worker.wake(record.uuid)
    return reply(record, f"Accepted; it is being started. {describe_ends(spec)}")


def _existing(worker: WorkerContext, identity: str | None, name: str) -> Record | None:
    if identity:
        with suppress(NotFound):
            return worker.store.read(identity)
    with suppress(NotFound):
        # Names are looked up as files, and this one is not checked yet.
        return worker.store.find(name=name) if NAME.fullmatch(name) else None
    return None


def _start_existing(worker: WorkerContext, existing: Record, new: Record, generation: int | None) -> Reply:
    """Start a VM that is here already, as the record of a new one says: a repetition, a new instance, or a conflict."""
    spec, owner = new.spec, new.owner
    save_to = {disk: getattr(spec, f"{disk}_save_to") for disk in DISKS}
    new_targets = {disk: uri for disk, uri in save_to.items() if uri != existing.save_to(disk)}
    versions = read_target_versions(worker, existing, new_targets if existing.phase is Phase.KEPT else {}, owner)
    now = worker.now()
    domain = known_domain(worker, existing)
    existing = noted(worker, existing, domain)

    def require_room(before: Record, after: Record) -> None:
        if starts_again(before, after):
            to_fetch = 0 if before.phase is Phase.KEPT else None  # the images of a kept VM are in its disks
            booted = from_saves(spec, new.origin)
            require_capacity(worker, booted, owner, own_uuid=before.uuid, to_fetch=to_fetch)

    with worker.store.admission():
        record = worker.store.update(
            existing.uuid,
            lambda current: after_start(
                current, spec, generation, now, versions, owner, origin=new.origin, saved_memory=domain.saved_memory
            ),
            before_write=require_room,
        )
    start_helper_and_notify(worker, record)
    # The rule stamps its own time on a VM that it starts.
    if record.phase_since != now:
        return reply(record, "It is here already.")
    where = from_what(existing, record.origin)
    return reply(record, f"Accepted; it is started again{where}. {describe_ends(spec)}")
