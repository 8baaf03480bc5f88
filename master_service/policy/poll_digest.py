"""The effects of a poll or an event, computed from the known state and the replies of workers. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Final

from master_service.core.settings import Settings
from master_service.planning.vm import VM, ObservedState, Worker
from master_service.policy.incidents import Incident, incident_from_report, worker_incidents
from worker_service.contract import ListReply, VMStatus

_OFF: Final = frozenset({"off", "absent"})
"""States of foreign domains that do not run. A state that only newer workers know counts as on."""

_FENCED_BUT_ANSWERS: Final = "it was fenced, and yet it answers: its VMs are second copies"


@dataclass(frozen=True, kw_only=True, slots=True)
class Poll:
    """The outcome of one poll. `refused`: minions that answered something other than a list, and what it was.

    If it is not `complete`, the replies are those so far and say nothing about other workers. `destroyed`: uuids of VMs
    that were destroyed since it was requested, which some reply may still list.
    """

    requested_at: datetime
    replies: Mapping[str, ListReply]
    refused: Mapping[str, str] = field(default_factory=dict)
    complete: bool = True
    destroyed: Collection[str] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Observation:
    """One VM with another observed state than before."""

    vm: VM
    after: ObservedState

    @property
    def updated(self) -> VM:
        """The VM in its new state."""
        return replace(self.vm, observed=self.after)


@dataclass(frozen=True, kw_only=True, slots=True)
class PollEffects:
    """The changes to be written after a poll, and the VMs as they are known then."""

    observations: Sequence[Observation]
    workers: Sequence[Worker]
    incidents: Sequence[Incident]
    vms: Sequence[VM]


def digest_poll(vms: Sequence[VM], workers: Mapping[str, Worker], poll: Poll, settings: Settings) -> PollEffects:
    """Return the effects of a poll on these VMs and enrolled workers (by id). The time of the poll counts as now.

    A worker's answer to one poll counts once, however often it is given.
    """
    assigned: dict[str, list[VM]] = {}
    for vm in vms:
        assigned.setdefault(vm.desired.worker or "", []).append(vm)
    observed: dict[str, ObservedState] = {}
    incidents: list[Incident] = []
    changed: dict[str, Worker] = {}
    for minion, reply in poll.replies.items():
        worker = workers.get(minion)
        if worker is None or worker.seen_at == poll.requested_at:
            continue
        own = assigned.get(minion, ())
        changed[minion] = _after_reply(worker, reply, {vm.uuid for vm in own} | set(poll.destroyed), poll.requested_at)
        for vm in own:
            after = apply_poll(vm, reply, poll.requested_at)
            if after != vm.observed:
                observed[vm.uuid] = after
                incident = incident_from_report(vm, after, poll.requested_at, settings)
                incidents += [incident] if incident else []
    for minion, worker in workers.items() if poll.complete else ():
        if minion not in poll.replies:
            # The first poll without an answer is the first moment at which the silence is known.
            since = worker.unreachable_since or poll.requested_at
            changed[minion] = replace(worker, unreachable_since=since, problem=poll.refused.get(minion))
            incidents += worker_incidents(minion, since, assigned.get(minion, ()))
    known = {**workers, **changed}
    elsewhere = unmanaged_domains(known.values())
    for vm in vms:
        before = observed.get(vm.uuid, vm.observed)
        after = before.after_search(elsewhere.get(vm.uuid, ""), poll.requested_at, complete=poll.complete)
        if after != before:
            observed[vm.uuid] = after
    return PollEffects(
        observations=[Observation(vm=vm, after=observed[vm.uuid]) for vm in vms if vm.uuid in observed],
        workers=list(changed.values()),
        incidents=incidents,
        vms=[
            replace(vm, observed=observed.get(vm.uuid, vm.observed), worker=known.get(vm.desired.worker or ""))
            for vm in vms
        ],
    )


def unmanaged_domains(workers: Iterable[Worker]) -> dict[str, str]:
    """Return uuid -> worker for all domains that are on and that their workers do not manage.

    A silent worker counts by its last answer, and one that is certainly off does not count.
    """
    return {
        domain.uuid: worker.id
        for worker in workers
        if worker.fenced_at is None
        for domain in worker.foreign
        if domain.state not in _OFF
    }


def digest_event(
    vm: VM, minion: str, status: VMStatus, now: datetime, settings: Settings
) -> tuple[Observation, list[Incident]] | None:
    """Return the effects of an event about a VM, or None if it is not news or not this minion's VM."""
    after = apply_event(vm, minion, status, now)
    if after is None:
        return None
    incident = incident_from_report(vm, after, now, settings)
    return Observation(vm=vm, after=after), [incident] if incident else []


def apply_event(vm: VM, minion: str, status: VMStatus, now: datetime) -> ObservedState | None:
    """Return the state after an event, or None if it is not new or from another minion."""
    if vm.desired.worker != minion or vm.observed.is_newer_than(status):
        return None
    if vm.observed.tombstone is not None and status.generation <= vm.observed.tombstone:
        return None
    return vm.observed.reported(status, now)


def apply_poll(vm: VM, reply: ListReply, requested_at: datetime) -> ObservedState:
    """Return the state after a list of its worker, which counts as of the time of the poll's request.

    The list may be older than an event or a command since then. In this case the event stays, and the VM is not missed.
    """
    observed, dispatch = vm.observed, vm.dispatch
    if observed.real_at is not None and observed.real_at > requested_at:
        return observed
    for status in reply.vmachines:
        if status.uuid == vm.uuid:
            return observed.reported(status, requested_at)
    if vm.uuid in reply.tombstones:
        return observed.missed().mark_destroyed(reply.tombstones[vm.uuid], requested_at)
    return observed if dispatch.sent_at is not None and dispatch.sent_at > requested_at else observed.missed()


def _after_reply(worker: Worker, reply: ListReply, own: set[str], requested_at: datetime) -> Worker:
    """Return the worker after its answer. `own`: VMs that it may list without being told about."""
    return replace(
        worker,
        capacity=reply.capacity,
        version=reply.version,
        seen_at=requested_at,
        unreachable_since=None,
        foreign=reply.foreign,
        unassigned_vms=tuple(status for status in reply.vmachines if status.uuid not in own),
        problem=_FENCED_BUT_ANSWERS if worker.fenced_at else None,
    )
