"""Builders of VMs and reports, with a default for every field that a case does not set."""

import dataclasses
from datetime import UTC, datetime, timedelta

from master_service.core.settings import Settings
from master_service.planning.observed import ObservedStatus
from master_service.planning.vm import VM, DesiredState, DesiredStatus, DispatchState, ObservedState, Worker
from worker_service.contract import Capacity, HaltCause, Spec, Status, VMStatus

NOW = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)
EARLIER = NOW - timedelta(hours=1)
SETTINGS = Settings()
SPEC = Spec(name="web01", hda_image="file:/srv/images/web.qcow2", hda_save_to="file:/srv/saved/web.qcow2")
UUID = "11111111-2222-4333-8444-555555555555"
CAPACITY = Capacity(
    hypervisors=("kvm",),
    arches=("x86_64",),
    cpu_total=8,
    cpu_free=4,
    mem_total=8192,
    mem_free=4096,
    disk_free=1 << 34,
)

REPORTS = {
    ObservedStatus.STARTING: (Status.STARTING, None),
    ObservedStatus.INSTALLING: (Status.INSTALLING, None),
    ObservedStatus.RUNNING: (Status.RUNNING, None),
    ObservedStatus.SUSPENDED: (Status.SUSPENDED, None),
    ObservedStatus.SAVING: (Status.SAVING, HaltCause.GUEST),
    ObservedStatus.HALTED: (Status.HALTED, HaltCause.GUEST),
    ObservedStatus.CRASHED: (Status.HALTED, HaltCause.CRASHED),
    ObservedStatus.FAILED_TO_START: (Status.FAILED_TO_START, None),
    ObservedStatus.FAILED_TO_SAVE: (Status.FAILED_TO_SAVE, HaltCause.GUEST),
}
"""The report of a worker that leads to each observed status."""


def status(observed=ObservedStatus.RUNNING, generation=1, **more):
    reported, cause = REPORTS[observed]
    fields = {"uuid": UUID, "name": SPEC.name, "message": "", "since": "2026-11-23T11:00:00+00:00", "spec": SPEC}
    return VMStatus(**(fields | {"status": reported, "halt_cause": cause, "generation": generation} | more))


def vm(
    desired=DesiredStatus.RUNNING,
    observed=ObservedStatus.RUNNING,
    *,
    generation=1,
    taken=1,
    dispatch=None,
    missed_polls=0,
    spec=SPEC,
    **more,
):
    """A VM desired so and observed so; `taken` is the generation that its worker took last."""
    worker = Worker(id="w1", capacity=CAPACITY, seen_at=EARLIER)
    last, more_observed = {}, {"missed_polls": missed_polls}
    match observed:
        case ObservedStatus.UNREPORTED | ObservedStatus.GONE:
            tombstone = taken if observed is ObservedStatus.GONE else None
            taken, last, more_observed = (tombstone or 0), None, {"tombstone": tombstone}
        case ObservedStatus.ABSENT:
            more_observed = {"missed_polls": missed_polls or 1}
        case ObservedStatus.UNREACHABLE:
            worker = dataclasses.replace(worker, unreachable_since=EARLIER)
        case ObservedStatus.ELSEWHERE:
            more_observed = {"elsewhere": "w2"}
        case ObservedStatus.MIGRATED:
            last = {"status": Status.HALTED, "halt_cause": HaltCause.MIGRATED}
        case ObservedStatus.BUSY:
            last = {"job": "migration"}
        case ObservedStatus.SOUGHT:
            last, more_observed = {"status": Status.HALTED, "halt_cause": HaltCause.KILLED}, {"elsewhere": None}
        case _:
            last = dict(zip(("status", "halt_cause"), REPORTS[observed], strict=True))
    at = None if observed is ObservedStatus.UNREPORTED else EARLIER
    report = status(generation=taken, **last) if last is not None else None
    real = ObservedState(**({"status": report, "real_at": at, "since": at, "elsewhere": ""} | more_observed))
    fields = {
        "uuid": UUID,
        "name": spec.name,
        "owner": "admin",
        "spec": spec,
        "status": desired,
        "generation": generation,
        "user_generation": generation,
        "status_generation": generation,
        "version": 1,
        "created_at": EARLIER,
        "changed_at": EARLIER,
        "worker": "w1",
    }
    assumed = DesiredState(**(fields | more))
    return VM(
        desired=assumed, observed=real, dispatch=dispatch or DispatchState(), worker=worker if assumed.worker else None
    )
