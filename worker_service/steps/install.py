"""The steps between the boot of a guest and its being ready."""

from __future__ import annotations

import msgspec

from worker_service.core.failpoints import failpoint
from worker_service.guest_agent.readiness import Readiness, State
from worker_service.guest_agent.report import LOG
from worker_service.state.context import WorkerContext
from worker_service.state.observation import read_readiness
from worker_service.state.record import Phase, Record
from worker_service.steps import seed_files
from worker_service.steps.cleanup import remove_disks


def note_ready(worker: WorkerContext, record: Record) -> None:
    """The guest has reported all that was asked of it: take the seed away, then say so for good."""
    driver, folder = worker.hypervisor(record.spec.hypervisor), worker.store.folder(record.uuid)
    readiness = read_readiness(worker, record, worker.domain(record))
    if readiness.state is not State.READY:
        return  # the log is not what it was: the next look decides anew
    if seed_files.seed_of(folder):
        driver.eject_seed(record.uuid)
        seed_files.remove_seed(folder)
    failpoint("ready.ejected")
    worker.note(
        record,
        lambda current: msgspec.structs.replace(
            current, **made_ready(worker, readiness), tries=0, next_try_at=None, problem=None
        ),
    )


def made_ready(worker: WorkerContext, readiness: Readiness) -> dict[str, object]:
    """What a record says of a guest from the moment on at which it was ready."""
    return {"ready_at": worker.now(), "software": readiness.software}


def give_up(worker: WorkerContext, record: Record) -> None:
    """The guest cannot be made ready. Nothing of it is saved: it never was what was asked for; its logs stay."""
    readiness = read_readiness(worker, record, worker.domain(record))
    if readiness.state is not State.FAILED:
        return  # it has reported since: the next look decides anew
    worker.hypervisor(record.spec.hypervisor).power_off(record.uuid)
    failpoint("give_up.off")
    if (
        read_readiness(worker, record, worker.domain(record)).state is State.FAILED
    ):  # what it said to its very end counts
        failed_to_start(worker, record, readiness)


def failed_to_start(worker: WorkerContext, record: Record, readiness: Readiness) -> None:
    """The end of a VM that is off and never was ready.

    The domain goes last: without it, whoever is cut off before the end is noted would take the VM for one that was
    undefined from outside, whose disks are kept. A domain that is left is removed by the next start, or by destroy.
    """
    folder = worker.store.folder(record.uuid)
    remove_disks(folder)
    failpoint("not_ready.removed")
    failed = readiness.state is State.FAILED
    why = readiness.message if failed else f"The guest shut down before it was ready. {readiness.message}"
    worker.advance(
        record,
        Phase.START_FAILED,
        message=f"{why} All that the agent said is in {folder / LOG}.",
        software=readiness.software,
    )
    failpoint("not_ready.noted")
    worker.hypervisor(record.spec.hypervisor).forget(record.uuid)
