"""Facts for tests, with everything that a case does not care about filled in."""

from datetime import UTC, datetime, timedelta

from master_service.core.settings import Settings
from master_service.planning.observed import Seen
from master_service.planning.vm import VM, Assumed, Push, Real, Wanted, Worker
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
    Seen.STARTING: (Status.STARTING, None),
    Seen.INSTALLING: (Status.INSTALLING, None),
    Seen.RUNNING: (Status.RUNNING, None),
    Seen.SUSPENDED: (Status.SUSPENDED, None),
    Seen.SAVING: (Status.SAVING, HaltCause.GUEST),
    Seen.HALTED: (Status.HALTED, HaltCause.GUEST),
    Seen.CRASHED: (Status.HALTED, HaltCause.CRASHED),
    Seen.FAILED_TO_START: (Status.FAILED_TO_START, None),
    Seen.FAILED_TO_SAVE: (Status.FAILED_TO_SAVE, HaltCause.GUEST),
}
"""What a worker reports so that this is seen."""


def status(seen=Seen.RUNNING, generation=1, **more):
    told, cause = REPORTS[seen]
    fields = {"uuid": UUID, "name": SPEC.name, "message": "", "since": "2026-11-23T11:00:00+00:00", "spec": SPEC}
    return VMStatus(**(fields | {"status": told, "halt_cause": cause, "generation": generation} | more))


def vm(wanted=Wanted.RUNNING, seen=Seen.RUNNING, *, generation=1, taken=1, push=None, misses=0, spec=SPEC, **more):
    """A VM wanted so and seen so; `taken` is the generation that its worker took last."""
    worker = Worker(id="w1", capacity=CAPACITY, seen_at=EARLIER)
    real = Real(misses=misses)
    match seen:
        case Seen.UNREPORTED:
            taken = 0
        case Seen.ABSENT:
            real = Real(status=status(generation=taken), real_at=EARLIER, since=EARLIER, misses=misses or 1)
        case Seen.GONE:
            real = Real(tombstone=taken, real_at=EARLIER, since=EARLIER)
        case Seen.UNREACHABLE:
            real = Real(status=status(generation=taken), real_at=EARLIER, since=EARLIER)
            worker = Worker(id="w1", capacity=CAPACITY, seen_at=EARLIER, unreachable_since=EARLIER)
        case _:
            real = Real(status=status(seen, taken), real_at=EARLIER, since=EARLIER, misses=misses)
    fields = {
        "uuid": UUID,
        "name": spec.name,
        "owner": "admin",
        "spec": spec,
        "wanted": wanted,
        "generation": generation,
        "asked": generation,
        "version": 1,
        "created_at": EARLIER,
        "changed_at": EARLIER,
        "worker": "w1",
    }
    assumed = Assumed(**(fields | more))
    return VM(assumed=assumed, real=real, push=push or Push(), worker=worker if assumed.worker else None)
