"""The steps that remove a VM from the worker, with its disks saved or discarded."""

from __future__ import annotations

from contextlib import suppress

from worker_service.core.errors import SalternError
from worker_service.core.failpoints import failpoint
from worker_service.state.context import WorkerContext
from worker_service.state.record import Phase, Record
from worker_service.steps import disk_guard
from worker_service.steps.cleanup import drop_parts, remove_disks
from worker_service.steps.save import conflict_message, discard


def clean(worker: WorkerContext, record: Record) -> None:
    """Remove disks that are saved or discarded from the worker. The logs stay."""
    driver = worker.hypervisor(record.spec.hypervisor)
    disk_guard.require_idle(worker, record)
    snapshots = driver.snapshots(record.uuid)
    driver.forget(record.uuid)
    remove_disks(worker, record)
    worker.store.folders.restore_from_failed(record.uuid)
    failpoint("clean.removed")
    saved = [disk.saved_to for disk in record.disks.values() if disk.saved_to]
    message = f"It is halted; saved to {', '.join(saved)}." if saved else "It is halted; nothing was to be saved."
    if conflict := conflict_message(record):
        message += f" {conflict}"
    if snapshots:
        message += f" Its snapshots were dropped: {', '.join(snapshots)}."
    worker.advance(record, Phase.DONE, message=f"{message} {record.message}".rstrip())


def destroy(worker: WorkerContext, record: Record) -> None:
    """Discard a VM with all its disks. Its tombstone exists already."""
    driver = worker.hypervisor(record.spec.hypervisor)
    driver.power_off(record.uuid)
    disk_guard.require_idle(worker, record)
    driver.forget(record.uuid)
    for disk_name in record.disks_to_save:
        with suppress(SalternError):  # an unreachable target must not block a destroy
            discard(worker, record, disk_name)
    drop_parts(worker, record)
    failpoint("destroy.before_remove")
    if record.unsaved:  # an error here is retried
        worker.store.folders.move_to_failed(record, worker.now())
    else:
        remove_disks(worker, record)
    worker.store.remove(record)
    worker.wake(record.uuid)
