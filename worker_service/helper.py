"""The contract's worker_helper: a process of its own that does what is pending for one VM, then ends.

    python -m worker_service.helper UUID [--settings FILE]

Forked by whoever saw that a step is due, with the VM's work lock in its hands; it survives them. It
starts fast because transfers and libvirt are imported only by the steps that use them.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import threading
import time
from contextlib import suppress
from typing import Final

from worker_service.errors import HypervisorError, NotFound, SalternError, TransferFailed
from worker_service.hypervisor.base import ABSENT, DomainState
from worker_service.lifecycle import Step, next_step, wait_s
from worker_service.record import Phase, Record
from worker_service.slots import seat
from worker_service.worker import Superseded, Worker

log = logging.getLogger("saltern.helper")

_HYPERVISOR_TRIES: Final = 5
_POLL_S: Final = 0.5
_GRACE_S: Final = 3.0
"""How long a step may take to see that its VM is to be destroyed, and the destroy itself to be done."""
_NEEDS_NO_DOMAIN: Final = frozenset({Phase.FETCHING, Phase.SEALING, Phase.SAVING})


def work(worker: Worker, uuid: str, lock: int | None = None) -> None:
    """Do steps until none is pending. Returns at once where another helper is at it.

    Args:
        worker: the worker that has the VM.
        uuid: the VM.
        lock: descriptor of the VM's work lock, held already; None takes it.
    """
    if lock is not None:
        _work_off(worker, uuid)
        os.close(lock)
    # Whoever changed the record while the lock was still held forked nobody: hence one more look.
    while _pending(worker, uuid):
        with worker.store.work_lock(uuid) as mine:
            if not mine:
                return
            _work_off(worker, uuid)


def _work_off(worker: Worker, uuid: str) -> None:
    while step := _pending(worker, uuid):
        _do(worker, uuid, step)


def guard(worker: Worker, uuid: str) -> None:
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


def _pending(worker: Worker, uuid: str) -> Step | None:
    try:
        record = worker.store.read(uuid)
    except NotFound:
        return None
    return next_step(record, _domain(worker, record))


def _domain(worker: Worker, record: Record) -> DomainState:
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


def _do(worker: Worker, uuid: str, step: Step) -> None:
    from worker_service import steps  # noqa: PLC0415 - msgspec and the lock come first: an idle helper leaves quickly

    with suppress(NotFound):
        record = worker.store.read(uuid)
        if wait_s(record, worker.now()) > 0:
            time.sleep(min(_POLL_S, wait_s(record, worker.now())))
            return
        log.info("%s (%s): %s, try %d", record.name, record.phase, step, record.tries + (not record.try_open))
        try:
            with seat(worker.store.seats, step, worker.settings.seats, lambda: worker.check_wanted(record)):
                steps.STEPS[step](worker, record)
        except Superseded:
            log.info("%s: no longer wanted: %s", record.name, step)
        except SalternError as err:
            log.warning("%s: %s failed: %s", record.name, step, err)
            _note_failure(worker, record, err)
        except OSError as err:
            log.exception("%s: %s failed", record.name, step)
            where = f" ({err.filename})" if err.filename else ""
            _note_failure(worker, record, TransferFailed(f"{step}: {err.strerror}{where}. Check that disk."))
        finally:
            worker.store.report(uuid, None)
        worker.wake(uuid)


def _note_failure(worker: Worker, record: Record, err: SalternError) -> None:
    from worker_service import steps  # noqa: PLC0415 - see above

    with suppress(Superseded):
        steps.failed(worker, record, err)


def main() -> None:
    """Work on the VM that the command line names."""
    parser = argparse.ArgumentParser(prog="worker_service.helper", description=__doc__.partition("\n")[0])
    parser.add_argument("uuid", help="the VM to work on")
    parser.add_argument("--settings", help="the worker's settings file")
    parser.add_argument("--lock", type=int, help="descriptor of the VM's work lock, inherited from whoever forked this")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    logging.Formatter.converter = time.gmtime
    try:
        worker = Worker(arguments.settings)
        if worker.store.read(arguments.uuid).phase is not Phase.DESTROYING:
            threading.Thread(target=guard, args=(worker, arguments.uuid), daemon=True).start()
        work(worker, arguments.uuid, arguments.lock)
    except SalternError as err:
        raise SystemExit(str(err)) from err


if __name__ == "__main__":
    main()
