"""Start helpers: processes in a session of their own, which outlive the process that starts them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Final

from worker_service.fs import locks
from worker_service.helper import forkserver_client
from worker_service.helper.jobs import PREFETCH_SLOT, Job, PrefetchJob, VmJob
from worker_service.helper.limits import JOB_KIND, acquire, has_free_slot
from worker_service.hypervisor.base import ABSENT, DomainState
from worker_service.state.bases import image_uris
from worker_service.state.context import WorkerContext
from worker_service.state.lifecycle import Step, next_step, wait_s
from worker_service.state.observation import read_readiness
from worker_service.state.record import Phase, Record

_RELEASES: Final = {**JOB_KIND, Step.CHANGE_CD: JOB_KIND[Step.FETCH]}
"""The kind of job that can continue after a step. A CD is an image too, and VMs may wait for its download."""


def start_helper_if_due(worker: WorkerContext, record: Record, domain: DomainState) -> None:
    """Start a helper for a VM if a step is due, no other download blocks it and a slot is free.

    Every look at a VM calls this, so the next look finds a VM whose helper died.
    """
    step = next_step(record, domain, read_readiness(worker, record, domain))
    if step is not None and _is_due(worker, record, step):
        start_helper(worker, record.uuid, JOB_KIND.get(step))


def start_waiting_helpers(worker: WorkerContext, done: Step) -> None:
    """Start helpers for the VMs that wait for the slot or the image that a step has released, the oldest first."""
    kind = _RELEASES.get(done)
    for record in sorted(worker.store.all(), key=lambda record: record.phase_since) if kind else ():
        step = next_step(record, ABSENT) if record.phase is not Phase.UP else None
        if step is None or JOB_KIND.get(step) != kind or not _is_due(worker, record, step):
            continue
        if not start_helper(worker, record.uuid, kind):
            return


def _is_due(worker: WorkerContext, record: Record, step: Step) -> bool:
    return wait_s(record, step, worker.now()) <= 0 and not waits_for_download(worker, record, step)


def waits_for_download(worker: WorkerContext, record: Record, step: Step) -> bool:
    """Return whether a helper could only wait for a download that another process does; that process starts it."""
    return step is Step.FETCH and worker.cache_of(record.owner).are_being_fetched(image_uris(record))


def start_helper(worker: WorkerContext, uuid: str, kind: str | None = None) -> bool:
    """Start a helper for a VM unless one is running.

    The helper inherits the VM's lock, so two can never run at once. If `kind` is given it also inherits a slot of that
    kind. Return False, and start nothing, when all slots are taken.
    """
    return _start(worker, VmJob(uuid), kind)


def start_prefetch(worker: WorkerContext, key: str) -> bool:
    """Start a helper for an order to prefetch an image, unless one is running; return False if all slots are taken."""
    return _start(worker, PrefetchJob(key), PREFETCH_SLOT)


def _start(worker: WorkerContext, job: Job, kind: str | None) -> bool:
    while not _try_to_start(worker, job, kind):
        # A helper that released its slot while this process held the job's lock could not start one for this job.
        if not has_free_slot(worker.store.slots, kind, worker.settings.max_parallel_jobs):
            return False
    return True


def _try_to_start(worker: WorkerContext, job: Job, kind: str | None) -> bool:
    lock = job.lock(worker)
    if lock is None:
        return True
    descriptors, release = [lock], locks.unlock
    try:
        if kind is not None:
            slot = acquire(worker.store.slots, kind, worker.settings.max_parallel_jobs)
            if slot is None:
                return False
            descriptors.append(slot)
        release = os.close  # the helper unlocks them
        with _opened(job.log(worker)) as log:
            if not forkserver_client.request_fork(worker.settings.data_root, job, kind, [log.fileno(), *descriptors]):
                _start_process(worker, job, kind, log, descriptors)
    finally:
        for descriptor in descriptors:
            release(descriptor)
    return True


def _opened(log: Path) -> IO[bytes]:
    """Open a log to append to it, which only its owner may read, whatever the umask of this process is."""
    return os.fdopen(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600), "ab")


def _start_process(
    worker: WorkerContext, job: Job, kind: str | None, log: IO[bytes], descriptors: Sequence[int]
) -> None:
    lock, *slot = descriptors
    argv = ["setsid", "--fork", sys.executable, "-m", "worker_service.helper", *job.argv(), "--lock", str(lock)]
    argv += ["--slot", kind, str(slot[0])] if kind else []
    argv += worker.settings_argument
    subprocess.run(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd="/", pass_fds=descriptors, check=True)
