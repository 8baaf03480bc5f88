"""Report the progress of a step, and interrupt a step that is no longer wanted."""

from __future__ import annotations

from collections.abc import Callable

from worker_service.contract import Progress
from worker_service.core.progress import throttle
from worker_service.state.context import WorkerContext
from worker_service.state.record import Record, with_disk
from worker_service.transfer.registry import Report


def reporter(worker: WorkerContext, record: Record, phase: str) -> Report:
    """Return a report function that shows progress. It raises Superseded when the step is no longer desired."""

    def publish(progress: Progress) -> None:
        worker.require_current(record)
        worker.store.report(record.uuid, progress)
        worker.wake(record.uuid)

    return throttle(phase, publish)


def disk_change(disk_name: str, **changes: object) -> Callable[[Record], Record]:
    """Return the change of a record that replaces fields of one disk."""
    return lambda current: with_disk(current, disk_name, **changes)
