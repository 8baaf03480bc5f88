"""The steps between the boot of a guest and its readiness."""

from __future__ import annotations

import msgspec

from worker_service.contract import TRIES
from worker_service.core.errors import HypervisorError
from worker_service.core.failpoints import failpoint
from worker_service.guest_agent.readiness import Readiness, State
from worker_service.guest_agent.report import LOG
from worker_service.state.context import WorkerContext
from worker_service.state.observation import read_readiness
from worker_service.state.record import Phase, Record
from worker_service.steps import seed_files
from worker_service.steps.cleanup import remove_disks


def note_ready(worker: WorkerContext, record: Record) -> None:
    """Remove the seed of a guest that has reported everything, then note that it is ready."""
    driver, folder = worker.hypervisor(record.spec.hypervisor), worker.store.folder(record.uuid)
    readiness = read_readiness(worker, record, worker.domain(record))
    if readiness.state is not State.READY:
        return  # the log has changed; the next pass decides
    problem = None
    if seed_files.seed_of(folder):
        try:
            driver.eject_seed(record.uuid)
        except HypervisorError as err:
            if record.tries + 1 < TRIES:
                raise
            problem = f"It is ready, but its seed is still in a drive: {err} Eject it there, or leave it."
        seed_files.remove_seed(folder)
    failpoint("ready.ejected")
    worker.note(
        record,
        lambda current: msgspec.structs.replace(
            current, **ready_fields(worker, readiness), tries=0, next_try_at=None, problem=problem
        ),
    )


def ready_fields(worker: WorkerContext, readiness: Readiness) -> dict[str, object]:
    """Return the fields of the record of a guest that is ready."""
    return {"ready_at": worker.now(), "software": readiness.software}


def give_up(worker: WorkerContext, record: Record) -> None:
    """Power off a guest that failed to get ready. Its disks were never complete and are discarded; its logs stay."""
    readiness = read_readiness(worker, record, worker.domain(record))
    if readiness.state is not State.FAILED:
        return  # it has reported meanwhile; the next pass decides
    worker.hypervisor(record.spec.hypervisor).power_off(record.uuid)
    failpoint("give_up.off")
    if read_readiness(worker, record, worker.domain(record)).state is State.FAILED:  # its last reports count
        failed_to_start(worker, record, readiness)


def failed_to_start(worker: WorkerContext, record: Record, readiness: Readiness) -> None:
    """End a VM that is off and never was ready.

    The domain is removed last. After a crash before the note, a VM without a domain would look as if it had been
    undefined from outside, and its disks would be kept. The next start or destroy removes a domain that is left.
    """
    folder = worker.store.folder(record.uuid)
    remove_disks(worker, record)
    failpoint("not_ready.removed")
    failed = readiness.state is State.FAILED
    reason = readiness.message if failed else f"The guest shut down before it was ready. {readiness.message}"
    worker.advance(
        record,
        Phase.START_FAILED,
        message=f"{reason} The agent's log is {folder / LOG}.",
        software=readiness.software,
    )
    failpoint("not_ready.noted")
    worker.hypervisor(record.spec.hypervisor).forget(record.uuid)
