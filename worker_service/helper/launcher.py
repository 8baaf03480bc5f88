"""Start helpers: processes of their own session, which outlive whoever started them."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import IO

from worker_service.fs import locks
from worker_service.helper import forkserver_client
from worker_service.helper.limits import JOB_KIND, acquire
from worker_service.hypervisor.base import DomainState
from worker_service.state.bases import image_uris
from worker_service.state.context import WorkerContext
from worker_service.state.lifecycle import Step, next_step, wait_s
from worker_service.state.record import Record


def start_helper_if_due(worker: WorkerContext, record: Record, domain: DomainState) -> None:
    """Start a helper for a VM if a step is due, no other download blocks it and a slot is free.

    Every look at a VM calls this, so a VM whose helper died is found by the next look.
    """
    step = next_step(record, domain, worker.readiness(record, domain))
    if step is None or wait_s(record, step, worker.now()) > 0 or waits_for_download(worker, record, step):
        return
    start_helper(worker, record.uuid, JOB_KIND.get(step))


def waits_for_download(worker: WorkerContext, record: Record, step: Step) -> bool:
    """Return whether a helper could only wait for a download that another process does; that process starts it."""
    return step is Step.FETCH and worker.cache.are_being_fetched(image_uris(record))


def start_helper(worker: WorkerContext, uuid: str, kind: str | None = None) -> bool:
    """Start a helper for a VM unless one is running.

    The helper inherits the VM's lock, so two can never run at once. If `kind` is given it also inherits a slot of that
    kind. Return False, and start nothing, when all slots are taken.
    """
    while not _try_to_start(worker, uuid, kind):
        # A helper that freed its slot while this process held the VM's lock could not start one for this VM.
        free = acquire(worker.store.slots, kind or "", worker.settings.max_parallel_jobs)
        if free is None:
            return False
        locks.unlock(free)
    return True


def _try_to_start(worker: WorkerContext, uuid: str, kind: str | None) -> bool:
    lock = worker.store.lock_for_helper(uuid)
    if lock is None:
        return True
    descriptors, let_go = [lock], locks.unlock
    try:
        slot = None
        if kind is not None:
            taken = acquire(worker.store.slots, kind, worker.settings.max_parallel_jobs)
            if taken is None:
                return False
            descriptors.append(taken)
            slot = (kind, taken)
        let_go = os.close  # the helper unlocks them
        with (worker.store.folder(uuid) / "helper.log").open("ab") as log:
            if not forkserver_client.request_fork(worker.settings.data_root, uuid, log.fileno(), lock, slot):
                _start_process(worker, uuid, log, lock, slot)
    finally:
        for descriptor in descriptors:
            let_go(descriptor)
    return True


def _start_process(worker: WorkerContext, uuid: str, log: IO[bytes], lock: int, slot: tuple[str, int] | None) -> None:
    argv = ["setsid", "--fork", sys.executable, "-m", "worker_service.helper", uuid, "--lock", str(lock)]
    argv += ["--slot", slot[0], str(slot[1])] if slot else []
    argv += worker.settings_argument
    inherited = [lock, *([slot[1]] if slot else [])]
    subprocess.run(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd="/", pass_fds=inherited, check=True)
