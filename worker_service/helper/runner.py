"""Run one job in the process of a helper, whether the fork server or a command line has started it."""

from __future__ import annotations

import os
from typing import Final

from worker_service.core.failpoints import claim_failpoints
from worker_service.core.logs import configure_logging
from worker_service.fs import locks
from worker_service.helper import forkserver_client, step_loop
from worker_service.helper.jobs import Job, VmJob
from worker_service.helper.limits import JobLimits
from worker_service.helper.prefetch import Orders
from worker_service.state.context import WorkerContext

_NICENESS: Final = 5
"""Guests and the API come first: after fifty accepted starts, the fifty-first is still answered at once."""


def run(job: Job, settings: str | None, lock: int | None, slot: tuple[str, int] | None) -> None:
    """Do a job with the lock and the slot that this process has inherited. Raises SalternError."""
    configure_logging()
    os.umask(0o077)
    claim_failpoints()
    os.setpriority(os.PRIO_PROCESS, 0, max(_NICENESS, os.getpriority(os.PRIO_PROCESS, 0)))
    worker = WorkerContext(settings)
    limits = JobLimits(worker.store.slots, worker.settings.max_parallel_jobs, slot)
    if isinstance(job, VmJob):
        step_loop.run(worker, job.uuid, limits, lock)
        forkserver_client.ensure_running(worker.settings.data_root, worker.settings_argument)
        return
    lock = job.lock(worker) if lock is None else lock
    if lock is not None:
        Orders(worker).work(job.key)
        limits.release()
        locks.unlock(lock)
