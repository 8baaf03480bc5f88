"""Read what a status needs beside the record and the domain: the guest's readiness, and the evidence about a halt."""

from __future__ import annotations

from contextlib import suppress
from datetime import UTC, datetime

from worker_service.contract import HaltCause
from worker_service.core import host
from worker_service.guest_agent import progress, report
from worker_service.guest_agent.readiness import AWAITED, Readiness, judge
from worker_service.hypervisor.base import DomainState, Power
from worker_service.state.context import WorkerContext
from worker_service.state.lifecycle import Evidence
from worker_service.state.record import Phase, Record
from worker_service.state.record_store import RecordStore


def read_readiness(worker: WorkerContext, record: Record, domain: DomainState) -> Readiness:
    """Return how far the guest of a VM is that is on and has still to report. Raises HypervisorError."""
    if record.phase is not Phase.UP or not record.installing:
        return AWAITED
    folder = worker.store.folder(record.uuid)
    log, written_at = report.read(folder / report.LOG)
    reported = report.fold(record.spec.soft_list, report.parse(log))
    progress_at = progress.changed_at(folder, record.instance_id, reported, written_at)
    # Only a guest whose own agent is silent is asked through libvirt.
    ask = domain.power is Power.RUNNING and not reported.up
    return judge(
        reported,
        guest_agent=ask and worker.hypervisor(record.spec.hypervisor).guest_agent_answers(record.uuid),
        since=max(
            record.phase_since, record.resumed_at or record.phase_since, datetime.fromtimestamp(progress_at, UTC)
        ),
        limit_s=worker.settings.install_limit_s,
        now=worker.now(),
    )


def read_evidence(worker: WorkerContext, record: Record, domain: DomainState) -> Evidence:
    """Return the evidence about a VM's halt. The hypervisor's log is read only if libvirt has forgotten the cause."""
    forgotten = not domain.on and domain.cause is None
    driver = worker.hypervisor(record.spec.hypervisor)
    return Evidence(
        host_boot=host.boot_id(),
        host_stopping=domain.cause is HaltCause.GUEST and host.stopping(),
        logged=driver.logged_end(record.uuid, record.name) if forgotten else None,
    )


def agent_log_stamp(store: RecordStore, uuid: str) -> tuple[int, float]:
    """Return the size and time of a guest's report. It changes whenever the guest reports something."""
    with suppress(OSError):
        found = (store.vms / uuid / report.LOG).stat()
        return found.st_size, found.st_mtime
    return 0, 0.0
