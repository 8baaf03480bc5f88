"""What people are to be told of without asking: one incident each, however often it is reported. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Final

from master_service.core.settings import Settings
from master_service.planning.planner import recent_restarts
from master_service.planning.vm import VM, DispatchState, ObservedState
from worker_service.contract import INTENDED_HALTS, Status


class Kind(StrEnum):
    """The kinds."""

    FAILED_TO_START = "failed_to_start"
    FAILED_TO_SAVE = "failed_to_save"
    CRASH_LOOP = "crash_loop"
    STUCK = "stuck"
    UNREACHABLE = "unreachable"
    TEST = "test"
    """Somebody asked whether notices reach them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Incident:
    """One incident. `key` is the same for every report of it. `owner`: of the VM; empty: the administrators'."""

    key: str
    kind: Kind
    owner: str
    uuid: str
    name: str
    text: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Notice:
    """One incident as it is kept. `owner`: empty when it is the administrators'."""

    id: int
    at: datetime
    kind: str
    owner: str
    uuid: str
    name: str
    text: str


_NAMED: Final = 10
"""So many of one's VMs are named in one notice."""

_WORD: Final = 64
"""So much of a worker's word goes into a key: a column has an end, and what workers say need not have one."""

_FAILED = {Status.FAILED_TO_START: Kind.FAILED_TO_START, Status.FAILED_TO_SAVE: Kind.FAILED_TO_SAVE}


def incident_from_report(vm: VM, real: ObservedState, now: datetime, settings: Settings) -> Incident | None:
    """The incident that a report of a VM tells of, if any.

    The worker's own word for when it began tells one from the next: events and polls repeat it.
    """
    status = real.status
    if status is None:
        return None
    kind = _FAILED.get(status.status)
    text = f"{vm.desired.name}: {status.status.value} on {vm.desired.worker}. {status.message}".strip()
    if kind is None:
        crashed = status.halt_cause is not None and status.halt_cause not in INTENDED_HALTS
        restarts = recent_restarts(vm, now, settings)
        if not crashed or status.status is not Status.HALTED or not 0 < settings.restart_limit <= restarts:
            return None
        kind = Kind.CRASH_LOOP
        text = f"{vm.desired.name} went off again after {restarts} restarts, and is left off."
    return _about(vm, kind, f"{status.generation}:{status.since[:_WORD]}", text)


def stuck_incident(vm: VM, why: str) -> Incident:
    """A step of its worker that shows no progress. Told again when it has gone on and is stuck once more."""
    status = vm.observed.status
    step = status.progress if status else None
    how_far = f"{step.phase[:_WORD]}:{step.done}" if step else ""
    which = f"{vm.dispatch.accepted}:{vm.observed.generation}:{status.since[:_WORD] if status else ''}:{how_far}"
    return _about(vm, Kind.STUCK, which, f"{vm.desired.name} seems to be stuck: {why}.")


def _about(vm: VM, kind: Kind, which: str, text: str) -> Incident:
    key = f"{kind.value}:{vm.uuid}:{which}"
    return Incident(key=key, kind=kind, owner=vm.desired.owner, uuid=vm.uuid, name=vm.desired.name, text=text)


def refusal_incident(vm: VM, push: DispatchState) -> Incident | None:
    """The incident of a start that a worker refused for good, if this is one: no report will ever tell of it.

    One for each command: the same answer may come twice.
    """
    if push.verb != "start" or push.problem is None or not push.refused_for_good:
        return None
    return Incident(
        key=f"{Kind.FAILED_TO_START.value}:{vm.uuid}:{push.generation}:refused",
        kind=Kind.FAILED_TO_START,
        owner=vm.desired.owner,
        uuid=vm.uuid,
        name=vm.desired.name,
        text=f"{vm.desired.name}: refused by {vm.desired.worker}, and not tried again. {push.problem.message}",
    )


def worker_incidents(worker_id: str, since: datetime, vms: Iterable[VM] = ()) -> list[Incident]:
    """A worker that fell silent: for the administrators, and for each owner of VMs there."""
    told = f"Worker {worker_id} has not answered since {since:%Y-%m-%d %H:%M:%S} UTC."
    names: dict[str, list[str]] = {}
    for vm in vms:
        names.setdefault(vm.desired.owner, []).append(vm.desired.name)
    texts = {"": f"{told} Its VMs stay where they are."}
    for owner, own in names.items():
        shown = ", ".join(sorted(own)[:_NAMED]) + (", …" if len(own) > _NAMED else "")
        texts[owner] = f"{told} What became of your VMs there is not known; they stay where they are: {shown}."
    key = f"{Kind.UNREACHABLE.value}:{worker_id}:{since.isoformat()}"
    return [
        Incident(
            key=f"{key}:{owner}" if owner else key,
            kind=Kind.UNREACHABLE,
            owner=owner,
            uuid="",
            name=worker_id,
            text=text,
        )
        for owner, text in texts.items()
    ]
