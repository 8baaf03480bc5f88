"""Report the progress of a step, and interrupt a step that is no longer wanted."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from worker_service.contract import Progress
from worker_service.state.context import WorkerContext
from worker_service.state.record import Record, with_disk
from worker_service.transfer.registry import Report

_REPORT_EVERY_S: Final = 0.5


def reporter(worker: WorkerContext, record: Record, phase: str) -> Report:
    """Return a report function that shows progress. It raises Superseded when the step is no longer wanted."""
    started = time.monotonic()
    last = 0.0

    def report(done: int, total: int | None) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last < _REPORT_EVERY_S and done != total:
            return
        last = now
        worker.check_wanted(record)
        rate = done / (now - started) if now > started else None
        eta = (total - done) / rate if rate and total else None
        worker.store.report(record.uuid, Progress(phase=phase, done=done, total=total, rate=rate, eta_s=eta))
        worker.wake(record.uuid)

    return report


def disk_change(disk_name: str, **changes: object) -> Callable[[Record], Record]:
    """Return the change of a record that replaces fields of one disk."""
    return lambda current: with_disk(current, disk_name, **changes)
