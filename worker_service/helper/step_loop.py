"""The contract's worker_helper: a process of its own that does what is pending for one VM, then ends.

    python -m worker_service.helper UUID [--settings FILE]

Forked by whoever saw that a step is due, with the VM's work lock in its hands; it survives them. It
starts fast because transfers and libvirt are imported only by the steps that use them.
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
from worker_service.core.failpoints import claim_failpoints
from worker_service.fs import locks
from worker_service.helper import forkserver_client, launcher
from worker_service.helper.limits import JOB_KIND, JobLimits
from worker_service.hypervisor.base import ABSENT, DomainState
from worker_service.images.cache import BeingFetched
from worker_service.state.context import Superseded, WorkerContext
from worker_service.state.lifecycle import Step, next_step, wait_s
from worker_service.state.record import Phase, Record

log = logging.getLogger("saltern.helper")

_HYPERVISOR_TRIES: Final = 5
_POLL_S: Final = 0.5
_NICENESS: Final = 5
"""Guests and doors come first: fifty accepted starts do not keep the fifty-first waiting for an answer."""
_CALM_S: Final = 0.05
_BURST_S: Final = 0.5
_GRACE_S: Final = 3.0
"""How long a step may take to see that its VM is to be destroyed, and the destroy itself to be done."""
_FREES: Final = {**JOB_KIND, Step.CHANGE_CD: JOB_KIND[Step.FETCH]}
"""The kind of work that others can go on with after a step: a disc is an image too, and may be what they wait for."""
_NEEDS_NO_DOMAIN: Final = frozenset({Phase.FETCHING, Phase.FLATTENING, Phase.SAVING})


def work(worker: WorkerContext, uuid: str, limits: JobLimits, lock: int | None = None) -> None:
    """Do steps until none is pending, or none that there is a slot for. Returns at once where another helper is at it.

    Args:
        worker: the worker that has the VM.
        uuid: the VM.
        limits: the worker's limits on parallel jobs.
        lock: descriptor of the VM's work lock, held already; None takes it.
    """
    if lock is not None:
        _run_steps(worker, uuid, limits)
        limits.release()
        locks.unlock(lock)
    # Whoever changed the record, or freed a seat, while the lock was still held forked nobody: hence one more look.
    while (
        (step := _pending(worker, uuid)) and not limits.is_exhausted(step) and not _awaits_another(worker, uuid, step)
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
        with limits.slot(step) as seated:
            if not seated:
                return
            awaited = not _do(worker, uuid, step)
        start_waiting_helpers(worker, step)
        if awaited:
            return


def start_waiting_helpers(worker: WorkerContext, done: Step) -> None:
    """Fork helpers for those who wait for the seat that was freed, or for the image: the oldest first."""
    kind = _FREES.get(done)
    for record in sorted(worker.store.all(), key=lambda record: record.phase_since) if kind else ():
        step = next_step(record, ABSENT) if record.phase is not Phase.UP else None
        if step is None or JOB_KIND.get(step) != kind or wait_s(record, step, worker.now()) > 0:
            continue
        if launcher.waits_for_download(worker, record, step):
            continue
        if not launcher.start_helper(worker, record.uuid, kind):
            return


def kill_if_destroying(worker: WorkerContext, uuid: str) -> None:
    """End this process group when a step hangs (a silent server, a stuck disk) while its VM waits to be destroyed.

    Steps look by themselves whenever bytes move. Ending hard is safe, since every step may be cut off anywhere; whoever
    waits for the destroy forks the next helper, which meets a VM that is destroying from its start.
    """
    with suppress(NotFound):
        while worker.store.read(uuid).phase is not Phase.DESTROYING:
            time.sleep(_POLL_S)
        time.sleep(_GRACE_S)
        log.warning("ended: a step hung while the VM was to be destroyed")
        os.killpg(0, signal.SIGKILL)


def _pending(worker: WorkerContext, uuid: str) -> Step | None:
    try:
        record = worker.store.read(uuid)
    except NotFound:
        return None
    domain = _domain(worker, record)
    return next_step(record, domain, worker.readiness(record, domain))


def _domain(worker: WorkerContext, record: Record) -> DomainState:
    """The domain's state; a libvirtd that is just being restarted is waited for."""
    if record.phase in _NEEDS_NO_DOMAIN:
        return ABSENT
    for attempt in range(_HYPERVISOR_TRIES):
        try:
            return worker.domain(record)
        except HypervisorError as err:
            log.warning("%s", err)
            time.sleep(2**attempt * _POLL_S)
    return worker.domain(record)


def _waits(worker: WorkerContext, uuid: str, step: Step) -> bool:
    """Whether a step is not due yet; sleeps for a part of that time, since another one may be next after it."""
    with suppress(NotFound):
        left = wait_s(worker.store.read(uuid), step, worker.now())
        time.sleep(min(_POLL_S, left))
        return left > 0
    return False


def _awaits_another(worker: WorkerContext, uuid: str, step: Step) -> bool:
    with suppress(NotFound):
        return launcher.waits_for_download(worker, worker.store.read(uuid), step)
    return False


def _do(worker: WorkerContext, uuid: str, step: Step) -> bool:
    """Do a step; whether there is more to be done now, and not only once somebody else is ready."""
    from worker_service.steps import registry  # noqa: PLC0415 - msgspec and the lock come first: an idle helper leaves quickly

    with suppress(NotFound):
        record = worker.store.read(uuid)
        log.info("%s (%s): %s, try %d", record.name, record.phase, step, record.tries + (not record.try_open))
        try:
            registry.STEPS[step](worker, record)
        except BeingFetched:
            log.info("%s: another helper fetches its image", record.name)
            return False
        except Superseded:
            log.info("%s: no longer wanted: %s", record.name, step)
        except SalternError as err:
            log.warning("%s: %s failed: %s", record.name, step, err)
            _note_failure(worker, record, step, err)
        except OSError as err:
            log.exception("%s: %s failed", record.name, step)
            where = f" ({err.filename})" if err.filename else ""
            _note_failure(worker, record, step, TransferFailed(f"{step}: {err.strerror}{where}. Check that disk."))
        except Exception as err:  # a bug: whoever dies of it is forked anew, for ever
            log.exception("%s (%s): %s failed", record.name, uuid, step)
            what = f"{type(err).__name__}: {err}".rstrip(": ")
            unknown = SalternError(f"{step} failed ({what}). helper.log says where.", retry=True)
            _note_failure(worker, record, step, unknown)
        finally:
            worker.store.report(uuid, None)
        worker.wake(uuid)
    return True


def _note_failure(worker: WorkerContext, record: Record, step: Step, err: SalternError) -> None:
    from worker_service.steps import retry  # noqa: PLC0415 - see above

    with suppress(Superseded):
        retry.failed(worker, record, step, err)


def run(uuid: str, settings: str | None, lock: int | None, slot: tuple[str, int] | None) -> None:
    """Work on a VM with what this process was born with; raises SalternError."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    logging.Formatter.converter = time.gmtime
    claim_failpoints()
    os.setpriority(os.PRIO_PROCESS, 0, max(_NICENESS, os.getpriority(os.PRIO_PROCESS, 0)))
    worker = WorkerContext(settings)
    record = worker.store.read(uuid)
    if record.phase is not Phase.DESTROYING:
        threading.Thread(target=kill_if_destroying, args=(worker, uuid), daemon=True).start()
    if record.phase is Phase.FETCHING:
        _yield_to_request_burst(worker, record)
    work(worker, uuid, JobLimits(worker.store.slots, worker.settings.max_parallel_jobs, slot), lock)
    forkserver_client.ensure_running(worker.settings.data_root, worker.settings_argument)


def _yield_to_request_burst(worker: WorkerContext, record: Record) -> None:
    """In a burst of starts all are answered before any is carried out: whoever boots takes the processors for long."""
    ends = time.monotonic() + _BURST_S
    with suppress(OSError):
        mine = (worker.store.names / record.name).lstat().st_mtime
        while (latest := worker.store.names.stat().st_mtime) > mine and latest > time.time() - _CALM_S:
            if time.monotonic() > ends:
                break
            time.sleep(_CALM_S / 2)
