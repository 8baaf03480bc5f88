"""Count the tries of a step durably, and end a VM after the last one."""

from __future__ import annotations

from contextlib import suppress
from datetime import timedelta

import msgspec

from worker_service.contract import CONTINUABLE_HALTS, TRIES, HaltCause
from worker_service.core.errors import DiskInUse, HypervisorError, SalternError
from worker_service.state.context import WorkerContext
from worker_service.state.lifecycle import Step, after_giving_up
from worker_service.state.record import STARTING, Phase, Record
from worker_service.steps.cleanup import drop_parts, remove_disks


def begin_try(worker: WorkerContext, record: Record) -> Record:
    """Count a try before it begins. A try that a crash interrupted keeps its number."""
    if record.try_open:
        return record
    return worker.note(record, lambda current: msgspec.structs.replace(current, tries=current.tries + 1, try_open=True))


def failed(worker: WorkerContext, record: Record, step: Step, err: SalternError) -> None:
    """Note that a step failed: schedule another try, or give up."""
    record = worker.store.read(record.uuid)
    tries = record.tries if record.try_open else record.tries + 1
    if isinstance(err, DiskInUse):
        tries = max(0, tries - 1)
    if record.phase in STARTING and (not err.retry or tries >= TRIES):
        try:
            give_up_start(worker, record, str(err))
        except SalternError as hindered:  # a disk is in use: it stays, and this is tried again
            err = hindered
        else:
            return
    settings = worker.settings
    delay = (settings.start_retry_delay if record.phase in STARTING else settings.retry_delay)(tries)
    wait, problem = pause(delay, err)
    worker.note(
        record,
        lambda current: msgspec.structs.replace(
            current,
            tries=tries,
            try_open=False,
            next_try_at=worker.now() + wait,
            next_try_of=step,
            problem=problem,
        ),
    )


def pause(delay: timedelta, err: SalternError) -> tuple[timedelta, str]:
    """Return the time until the next try, which a server may have asked for, and the problem."""
    wait = max(delay, timedelta(seconds=err.wait_s))
    return wait, f"{err} The worker waits {wait.total_seconds():.0f} s." if err.wait_s else str(err)


def give_up_start(worker: WorkerContext, record: Record, reason: str) -> None:
    """Give up a start. The record with the reason stays, and so do the disks of an earlier instance."""
    driver = worker.hypervisor(record.spec.hypervisor)
    if record.phase is Phase.BOOTING:
        with suppress(HypervisorError):
            driver.power_off(record.uuid)
            if not driver.state(record.uuid).saved_memory:  # only a person drops that
                driver.forget(record.uuid)
    drop_parts(worker, record)
    ending = after_giving_up(record)
    if ending is Phase.START_FAILED:
        remove_disks(worker, record)
        worker.advance(record, ending, message=reason)
        return
    message, problem = (f"It could not be started: {reason}", reason) if ending is Phase.KEPT else ("", None)
    cause = record.halt_cause if record.halt_cause in CONTINUABLE_HALTS else HaltCause.CRASHED
    worker.advance(record, ending, halt_cause=cause, message=message, problem=problem, shutdown_asked=False)
