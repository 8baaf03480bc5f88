"""Incidents: problems that users are notified of, each once however often it is reported. Pure."""

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
    """The kind of an incident."""

    FAILED_TO_START = "failed_to_start"
    FAILED_TO_SAVE = "failed_to_save"
    CRASH_LOOP = "crash_loop"
    STUCK = "stuck"
    UNREACHABLE = "unreachable"
    NOT_BELIEVED = "not_believed"
    """Somebody speaks in the name of a worker."""
    VERIFY_EMAIL = "verify_email"
    """A mail with the code that verifies its address. The notice has neither."""
    TEST = "test"
    """A test that an account requested."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Incident:
    """One incident. `key` is the same for every report of it.

    `owner` and `owner_id`: name and account of the VM's owner; empty for administrators.
    """

    key: str
    kind: Kind
    owner: str
    owner_id: str
    uuid: str
    name: str
    text: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Notice:
    """A stored incident. `owner` is empty if it concerns the administrators.

    `acknowledged_by`: the account that takes care of it; empty as long as none does.
    """

    id: int
    at: datetime
    kind: str
    owner: str
    owner_id: str
    uuid: str
    name: str
    text: str
    acknowledged_at: datetime | None = None
    acknowledged_by: str = ""


_NAMED: Final = 10
"""At most this many VMs are named in one notice."""

_VALUE_LIMIT: Final = 64
"""Characters of a worker's value in a key: the column is limited, and values from workers are not."""

_FAILED = {Status.FAILED_TO_START: Kind.FAILED_TO_START, Status.FAILED_TO_SAVE: Kind.FAILED_TO_SAVE}


def incident_from_report(vm: VM, observed: ObservedState, now: datetime, settings: Settings) -> Incident | None:
    """Return the incident that a report of a VM shows, or None.

    The worker's own time of its start identifies it: events and polls repeat the report.
    """
    status = observed.status
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
    return _incident_of(vm, kind, f"{status.generation}:{status.since[:_VALUE_LIMIT]}", text)


def stuck_incident(vm: VM, why: str) -> Incident:
    """Return the incident of a step without progress. A step that goes on and gets stuck again is a new incident."""
    status = vm.observed.status
    step = status.progress if status else None
    how_far = f"{step.phase[:_VALUE_LIMIT]}:{step.done}" if step else ""
    which = (
        f"{vm.dispatch.generation}:{vm.observed.generation}:{status.since[:_VALUE_LIMIT] if status else ''}:{how_far}"
    )
    return _incident_of(vm, Kind.STUCK, which, f"{vm.desired.name} seems to be stuck: {why}.")


def _incident_of(vm: VM, kind: Kind, which: str, text: str) -> Incident:
    key = f"{kind.value}:{vm.uuid}:{which}"
    return Incident(
        key=key,
        kind=kind,
        owner=vm.desired.owner,
        owner_id=vm.desired.owner_id,
        uuid=vm.uuid,
        name=vm.desired.name,
        text=text,
    )


def refusal_incident(vm: VM, dispatch: DispatchState) -> Incident | None:
    """Return the incident of a start that a worker refused permanently, or None: no report will ever show it.

    There is one for each command: the same answer may arrive twice.
    """
    if dispatch.verb != "start" or dispatch.problem is None or not dispatch.refused_for_good:
        return None
    return Incident(
        key=f"{Kind.FAILED_TO_START.value}:{vm.uuid}:{dispatch.generation}:refused",
        kind=Kind.FAILED_TO_START,
        owner=vm.desired.owner,
        owner_id=vm.desired.owner_id,
        uuid=vm.uuid,
        name=vm.desired.name,
        text=f"{vm.desired.name}: refused by {vm.desired.worker}, and not tried again. {dispatch.problem.message}",
    )


def worker_incidents(worker_id: str, since: datetime, vms: Iterable[VM] = ()) -> list[Incident]:
    """Return the incidents of a silent worker: for the administrators, and for each owner of VMs there."""
    message = f"Worker {worker_id} has not answered since {since:%Y-%m-%d %H:%M:%S} UTC."
    names: dict[tuple[str, str], list[str]] = {}
    for vm in vms:
        names.setdefault((vm.desired.owner, vm.desired.owner_id), []).append(vm.desired.name)
    texts = {("", ""): f"{message} Its VMs stay where they are."}
    for owner, own in names.items():
        shown = ", ".join(sorted(own)[:_NAMED]) + (", …" if len(own) > _NAMED else "")
        texts[owner] = f"{message} The state of your VMs there is unknown; they stay where they are: {shown}."
    key = f"{Kind.UNREACHABLE.value}:{worker_id}:{since.isoformat()}"
    return [
        Incident(
            key=f"{key}:{owner_id}" if owner else key,
            kind=Kind.UNREACHABLE,
            owner=owner,
            owner_id=owner_id,
            uuid="",
            name=worker_id,
            text=text,
        )
        for (owner, owner_id), text in texts.items()
    ]


def doubt_incident(worker_id: str, doubt: str, now: datetime) -> Incident:
    """Return the incident of refused messages, for the administrators: one a day for each worker and reason."""
    return Incident(
        key=f"{Kind.NOT_BELIEVED.value}:{worker_id}:{doubt}:{now:%Y-%m-%d}",
        kind=Kind.NOT_BELIEVED,
        owner="",
        owner_id="",
        uuid="",
        name=worker_id,
        text=f"A message in the name of worker {worker_id} {doubt}. It had no effect. "
        "Another minion may speak in its name. If its data root is new, compare `saltern-worker fingerprint` there "
        "and enroll it again.",
    )
