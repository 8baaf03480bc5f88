"""The job of a VM's helper: do the pending steps of the VM, then end.

It starts fast because only the steps that use transfers and libvirt import them.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from contextlib import suppress
from typing import Final

from worker_service.core.errors import HypervisorError, NotFound, SalternError, TransferFailed
from worker_service.fs import locks
from worker_service.fs.advice import explained
from worker_service.helper import launcher
from worker_service.helper.limits import JobLimits
from worker_service.hypervisor.base import ABSENT, DomainState
from worker_service.images.cache import BeingFetched
from worker_service.state.context import Superseded, WorkerContext
from worker_service.state.lifecycle import Step, next_step, wait_s
from worker_service.state.observation import read_readiness
from worker_service.state.record import ENDING, Phase, Record

log = logging.getLogger("saltern.helper")

_HYPERVISOR_TRIES: Final = 5
_POLL_S: Final = 0.5
_CALM_S: Final = 0.05
_BURST_S: Final = 0.5
_GRACE_S: Final = 3.0
"""Time for a step to notice that its VM is to be destroyed, and for the destroy itself."""


def work(worker: WorkerContext, uuid: str, limits: JobLimits, lock: int | None = None) -> None:
    """Do steps until no step is pending, or no slot is free for it. Return at once if another helper is running.

    Args:
        worker: the worker that has the VM.
        uuid: the VM.
        limits: the worker's limits on parallel jobs.
        lock: descriptor of the VM's work lock, which this process holds. With None, it takes the lock.
    """
    if lock is not None:
        _run_steps(worker, uuid, limits)
        limits.release()
        locks.unlock(lock)
    # A process that changed the record, or released a slot, while the lock was held has started no helper.
    while (
        (step := _pending(worker, uuid)) and not limits.is_exhausted(step) and not _awaits_download(worker, uuid, step)
    ):
        with worker.store.work_lock(uuid) as mine:
            if not mine:
                return
            _run_steps(worker, uuid, limits)


def _run_steps(worker: WorkerContext, uuid: str, limits: JobLimits) -> None:
    while step := _pending(worker, uuid):
        if _waits(worker, uuid, step):
            limits.release()
            continue
        with limits.slot(step) as acquired:
            if not acquired:
                return
            may_continue = _do(worker, uuid, step)
        launcher.start_waiting_helpers(worker, step)
        if not may_continue:
            return


def kill_if_destroying(worker: WorkerContext, uuid: str) -> None:
    """Kill this process group if a step hangs (a silent server, a stuck disk) while its VM waits to be destroyed.

    Steps check for that by themselves whenever bytes move. A kill is safe because a step may be interrupted anywhere.
    The process that waits for the destroy starts the next helper, which finds the VM in the phase `destroying`.
    """
    with suppress(NotFound):
        while worker.store.read(uuid).phase is not Phase.DESTROYING:
            time.sleep(_POLL_S)
        time.sleep(_GRACE_S)
        log.warning("killed: a step hung while the VM was to be destroyed")
        os.killpg(0, signal.SIGKILL)


def _pending(worker: WorkerContext, uuid: str) -> Step | None:
    try:
        record = worker.store.read(uuid)
    except NotFound:
        return None
    domain = _domain(worker, record)
    return next_step(record, domain, read_readiness(worker, record, domain))


def _domain(worker: WorkerContext, record: Record) -> DomainState:
    """Return the domain's state; wait for a libvirtd that is restarting."""
    if record.phase is Phase.FETCHING:
        return ABSENT
    if record.phase in ENDING:  # disks are saved without libvirt too; then their locks have to do
        try:
            return worker.domain(record)
        except HypervisorError as err:
            log.warning("%s", err)
            return ABSENT
    for attempt in range(_HYPERVISOR_TRIES):
        try:
            return worker.domain(record)
        except HypervisorError as err:
            log.warning("%s", err)
            time.sleep(2**attempt * _POLL_S)
    return worker.domain(record)


def _waits(worker: WorkerContext, uuid: str, step: Step) -> bool:
    """Return whether a step is not due yet. Sleep for a part of that time, because another step may be next by then."""
    with suppress(NotFound):
        left = wait_s(worker.store.read(uuid), step, worker.now())
        time.sleep(min(_POLL_S, left))
        return left > 0
    return False


def _awaits_download(worker: WorkerContext, uuid: str, step: Step) -> bool:
    with suppress(NotFound):
        return launcher.waits_for_download(worker, worker.store.read(uuid), step)
    return False


def _do(worker: WorkerContext, uuid: str, step: Step) -> bool:
    """Do a step; return False if the next one has to wait for another process."""
    from worker_service.steps import registry  # noqa: PLC0415 - imported late, so that an idle helper ends quickly

    with suppress(NotFound):
        record = worker.store.read(uuid)
        log.info("%s (%s): %s, try %d", record.name, record.phase, step, record.tries + (not record.try_open))
        try:
            registry.STEPS[step](worker, record)
        except BeingFetched:
            log.info("%s: another process fetches its image", record.name)
            return False
        except Superseded:
            log.info("%s: %s is no longer needed", record.name, step)
        except SalternError as err:
            log.warning("%s: %s failed: %s", record.name, step, err)
            _note_failure(worker, record, step, err)
        except OSError as err:
            log.exception("%s: %s failed", record.name, step)
            where = f" ({err.filename})" if err.filename else ""
            _note_failure(worker, record, step, TransferFailed(f"{step}{where}: {explained(err)}"))
        except Exception as err:  # a bug: without this, the helper would die and be started again for ever
            log.exception("%s (%s): %s failed", record.name, uuid, step)
            what = f"{type(err).__name__}: {err}".rstrip(": ")
            unknown = SalternError(f"{step} failed ({what}). helper.log says where.", retry=True)
            _note_failure(worker, record, step, unknown)
        finally:
            worker.store.report(uuid, None)
        worker.wake(uuid)
    return True


def _note_failure(worker: WorkerContext, record: Record, step: Step, err: SalternError) -> None:
    from worker_service.steps import retry  # noqa: PLC0415 - as above

    with suppress(Superseded):
        retry.failed(worker, record, step, err)


def run(worker: WorkerContext, uuid: str, limits: JobLimits, lock: int | None) -> None:
    """Do the job of a helper process: the pending steps of one VM. Raises SalternError."""
    record = worker.store.read(uuid)
    if record.phase is not Phase.DESTROYING:
        threading.Thread(target=kill_if_destroying, args=(worker, uuid), daemon=True).start()
    if record.phase is Phase.FETCHING:
        _yield_to_request_burst(worker, record)
    work(worker, uuid, limits, lock)


def _yield_to_request_burst(worker: WorkerContext, record: Record) -> None:
    """Wait for the end of a burst of start requests, because a boot takes the processors that answer them."""
    ends = time.monotonic() + _BURST_S
    with suppress(OSError):
        mine = (worker.store.names / record.name).lstat().st_mtime
        while (latest := worker.store.names.stat().st_mtime) > mine and latest > time.time() - _CALM_S:
            if time.monotonic() > ends:
                break
            time.sleep(_CALM_S / 2)
