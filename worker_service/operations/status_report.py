"""The reports of a worker: the status of a VM, the list of all VMs, and the free capacity."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import msgspec

from worker_service import __version__
from worker_service.contract import (
    KEEP_FEATURE,
    ORIGIN_FEATURE,
    OWNER_FEATURE,
    PLAN_FEATURE,
    Capacity,
    DiskReport,
    Foreign,
    ListReply,
    Software,
    Status,
    Taken,
    VMStatus,
)
from worker_service.contract.tickets import DOWNLOAD_FEATURE
from worker_service.core.errors import HypervisorError, NotFound
from worker_service.guest_agent.readiness import Readiness
from worker_service.hypervisor.base import ABSENT, DomainState, Hypervisor
from worker_service.images.cache import free_bytes
from worker_service.state.context import WorkerContext
from worker_service.state.lifecycle import (
    NO_EVIDENCE,
    disk_fate,
    halt_cause,
    is_intended,
    message_of,
    status_of,
    try_number,
)
from worker_service.state.observation import read_evidence, read_readiness
from worker_service.state.record import ENDING, STARTING, TAKES_AS, Phase, Record
from worker_service.steps import disk_guard

_IMAGES_BYTES: Final = 256 << 10
"""Characters of all URIs of cached images in a list. They only help the placement."""
_BLOCK: Final = 512


def plain(value: object) -> dict[str, Any]:
    """Return a struct as plain data that every interface can carry: dicts, lists, strings, numbers."""
    data: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(value))
    return data


def _newest(worker: WorkerContext, record: Record, domain: DomainState) -> tuple[Record, DomainState]:
    """Return a VM whose halt seems to be unrecorded as it is now.

    Between the read of its record and that of its domain, a helper may have saved the VM and removed the domain, which
    would look as if somebody had.
    """
    if record.phase is not Phase.UP or domain.on:
        return record, domain
    try:
        current = worker.store.read(record.uuid)
    except NotFound:
        return record, domain
    return (record, domain) if current.phase_since == record.phase_since else (current, worker.domain(current))


def vm_status(worker: WorkerContext, record: Record, domain: DomainState) -> VMStatus:
    """Return the contract's status of one VM."""
    record, domain = _newest(worker, record, domain)
    unrecorded = record.phase is Phase.UP and not domain.on
    evidence = read_evidence(worker, record, domain) if unrecorded else NO_EVIDENCE
    readiness = read_readiness(worker, record, domain)
    status = status_of(record, domain, evidence, readiness)
    busy = status in (Status.STARTING, Status.SAVING)
    return VMStatus(
        uuid=record.uuid,
        name=record.name,
        status=status,
        message=message_of(record, domain, readiness),
        generation=record.generation,
        since=record.phase_since.astimezone(UTC).isoformat(timespec="seconds"),
        hypervisor=record.spec.hypervisor,
        progress=worker.store.progress(record.uuid) if busy else None,
        start_try=try_number(record, STARTING),
        save_try=try_number(record, ENDING),
        halt_cause=halt_cause(record, domain, evidence) if unrecorded else record.halt_cause,
        problem=record.problem or domain.problem,
        job=domain.job,
        disks={disk_name: _disk(worker, record, disk_name) for disk_name in record.disks},
        software=_software(record, readiness),
        minion_key=record.minion_key,
        owner=record.owner,
        origin=_origin(record),
        spec=record.spec,
    )


def _origin(record: Record) -> dict[str, str]:
    """Return the saves from which a VM started; of a disk that it discarded in the end, its last save."""
    if record.phase is not Phase.DONE:
        return record.origin
    discarded = {name for name, disk in record.disks.items() if disk.saved_to is None}
    return {**record.origin, **{name: save for name, save in record.last_saves.items() if name in discarded}}


def _software(record: Record, readiness: Readiness) -> tuple[Software, ...]:
    if not record.spec.wants_agent:
        return ()
    return readiness.software or record.software or tuple(Software(name=name) for name in record.spec.soft_list)


def _disk(worker: WorkerContext, record: Record, disk_name: str) -> DiskReport:
    disk = record.disks[disk_name]
    kept = None
    if record.phase in (Phase.KEPT, Phase.SAVE_FAILED):
        name = disk.flat_name(disk_name) if disk.flat_sha256 else disk.layers(disk_name)[0].path
        with suppress(NotFound):  # the VM is gone since its record was read
            kept = str(worker.store.folder(record.uuid) / name)
    return DiskReport(
        save_to=record.save_to(disk_name),
        saved_to=disk.saved_to,
        sha256=disk.saved_sha256 or disk.flat_sha256,
        size=disk.flat_size if disk.saved_size is None else disk.saved_size,
        kept=kept,
        fate=disk_fate(record, disk_name),
    )


def list_reply(worker: WorkerContext, visit: Callable[[Record, DomainState], None]) -> ListReply:
    """Return everything that a worker knows, with one call of the hypervisor. `visit` is called for each VM."""
    records = tuple(worker.store.all())
    domains = worker.domains(records)
    for record in records:
        visit(record, domains.get(record.uuid, ABSENT))
    ours = {record.uuid for record in records}
    return ListReply(
        vmachines=tuple(vm_status(worker, record, domains.get(record.uuid, ABSENT)) for record in records),
        foreign=tuple(
            Foreign(uuid=uuid, name=domain.name, state=domain.power.value)
            for uuid, domain in domains.items()
            if uuid not in ours
        ),
        tombstones=worker.store.tombstones.recent(),
        capacity=msgspec.structs.replace(capacity(worker, records), guests_isolated=worker.guest_isolation()[0]),
        version=__version__,
    )


def capacity(worker: WorkerContext, records: tuple[Record, ...]) -> Capacity:
    """Return the worker's total capacity, and the part that no VM has reserved."""
    found = {name: driver.capabilities() for name, driver in worker.hypervisors.items()}
    cpus, memory_mib = _totals(worker.hypervisors.values())
    taken = taken_by(records, worker.now(), timedelta(seconds=worker.settings.kept_room_s))
    used = sum(taken.values(), Taken())
    kept = [record for record in records if record.phase is Phase.KEPT]
    cpu_total = int(cpus * worker.settings.cpu_overcommit)
    mem_total = max(0, memory_mib - worker.settings.reserve_mem_mib)
    reserve = worker.settings.images.reserve_mib << 20
    return Capacity(
        hypervisors=tuple(found),
        arches=tuple(dict.fromkeys(arch for each in found.values() for arch in each.arches)),
        cpu_total=cpu_total,
        cpu_free=max(0, cpu_total - used.cpus),
        mem_total=mem_total,
        mem_free=max(0, mem_total - used.mem),
        disk_free=max(0, free_bytes(worker.store.root) - reserve),
        images=fitting(worker.cache.uris(), _IMAGES_BYTES),
        clock=worker.now().isoformat(),
        features=(DOWNLOAD_FEATURE, KEEP_FEATURE, ORIGIN_FEATURE, OWNER_FEATURE, PLAN_FEATURE),
        taken=taken,
        kept_vms=len(kept),
        kept_bytes=sum(_bytes_of_disks(worker, record) for record in kept),
        drivers=found,
    )


def _totals(drivers: Iterable[Hypervisor]) -> tuple[int, int]:
    """Return the processors and the memory in MiB that all drivers have that answer; they are of one host."""
    totals = []
    for driver in drivers:
        with suppress(HypervisorError):  # its `problem` says so
            totals.append((driver.cpus(), driver.memory_mib()))
    return (min(cpus for cpus, _mib in totals), min(mib for _cpus, mib in totals)) if totals else (0, 0)


def _bytes_of_disks(worker: WorkerContext, record: Record) -> int:
    """Return the space of a VM's disks on this worker. A file that is gone takes none."""
    used = 0
    with suppress(NotFound):
        for path in disk_guard.disk_files(worker, record):
            with suppress(OSError):
                used += path.stat().st_blocks * _BLOCK
    return used


def taken_by(records: Iterable[Record], now: datetime, kept_for: timedelta) -> dict[str, Taken]:
    """Return what VMs take, by their state.

    A VM that went off unexpectedly, with kept disks, counts for `kept_for`: its next start is due in that time, and
    each failed start begins the time again. Any later start has to find room. One that is meant to be off counts never.
    """
    taken: dict[str, Taken] = {}
    for record in records:
        state = TAKES_AS.get(record.phase)
        due = not is_intended(record, record.halt_cause) and now - record.phase_since < kept_for
        if state is not None and (record.phase is not Phase.KEPT or due):
            spec = record.spec
            taken[state] = taken.get(state, Taken()) + Taken(vms=1, cpus=spec.cpu_count, mem=spec.mem_size)
    return taken


def fitting(texts: Sequence[str], limit: int) -> tuple[str, ...]:
    """Return the first texts that have at most `limit` characters together: a report has to fit into a Salt event."""
    ends = itertools.accumulate(map(len, texts))
    return tuple(text for text, end in zip(texts, ends, strict=True) if end <= limit)
