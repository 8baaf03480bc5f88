"""What a worker says of its VMs and of itself."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC
from typing import Any

import msgspec

from worker_service import __version__
from worker_service.contract import Capacity, Code, DiskReport, Foreign, ListReply, Spec, Status, VMStatus
from worker_service.errors import Refused
from worker_service.hypervisor.base import ABSENT, DomainState, Power
from worker_service.images.cache import free_bytes
from worker_service.lifecycle import halt_cause, message_of, status_of
from worker_service.record import RESERVING, Phase, Record
from worker_service.worker import HYPERVISORS, Worker


def plain(value: object) -> dict[str, Any]:
    """A struct as what every door can carry: dicts, lists, strings, numbers."""
    made: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(value))
    return made


def vm_status(worker: Worker, record: Record, domain: DomainState, vnc: str = "") -> VMStatus:
    """The contract's answer for one VM."""
    status = status_of(record, domain)
    busy = status in (Status.STARTING, Status.SAVING)
    return VMStatus(
        uuid=record.uuid,
        name=record.name,
        status=status,
        message=message_of(record, domain),
        generation=record.generation,
        since=record.phase_since.astimezone(UTC).isoformat(timespec="seconds"),
        vnc=vnc,
        hypervisor=record.spec.hypervisor,
        progress=worker.store.progress(record.uuid) if busy else None,
        save_try=record.tries if record.phase is Phase.SAVING else 0,
        halt_cause=halt_cause(record, domain) if _halted_unnoted(record, domain) else record.halt_cause,
        problem=record.problem or domain.problem,
        disks={slot: _disk(worker, record, slot) for slot in record.disks},
        spec=record.spec,
    )


def _halted_unnoted(record: Record, domain: DomainState) -> bool:
    return record.phase is Phase.UP and domain.power in (Power.OFF, Power.ABSENT)


def _disk(worker: Worker, record: Record, slot: str) -> DiskReport:
    disk = record.disks[slot]
    kept = None
    if record.phase in (Phase.KEPT, Phase.SAVE_FAILED):
        name = disk.sealed_name(slot) if disk.sealed_sha256 else f"{slot}.qcow2"
        kept = str(worker.store.folder(record.uuid) / name)
    return DiskReport(
        save_to=record.save_to(slot),
        saved_to=disk.saved_to,
        sha256=disk.sealed_sha256,
        size=disk.sealed_size,
        kept=kept,
    )


def list_reply(worker: Worker, seen: Callable[[Record, DomainState], None]) -> ListReply:
    """Everything a worker knows, with one question to the hypervisor. `seen` is called for each VM."""
    domains = worker.domains()
    records = tuple(worker.store.all())
    for record in records:
        seen(record, domains.get(record.uuid, ABSENT))
    ours = {record.uuid for record in records}
    return ListReply(
        vmachines=tuple(vm_status(worker, record, domains.get(record.uuid, ABSENT)) for record in records),
        foreign=tuple(
            Foreign(uuid=uuid, name=domain.name, state=domain.power.value)
            for uuid, domain in domains.items()
            if uuid not in ours
        ),
        tombstones=worker.store.tombstones(),
        capacity=capacity(worker, records),
        version=__version__,
    )


def capacity(worker: Worker, records: tuple[Record, ...]) -> Capacity:
    """What the worker has, and what it has not promised to a VM yet."""
    driver = worker.hypervisor(HYPERVISORS[0])
    holding = [record.spec for record in records if record.phase in RESERVING]
    cpu_total = int(driver.cpus() * worker.settings.cpu_overcommit)
    mem_total = driver.memory_mib() - worker.settings.reserve_mem_mib
    reserve = worker.settings.images.reserve_mib << 20
    return Capacity(
        hypervisors=HYPERVISORS,
        arches=("x86_64", "i386"),
        cpu_total=cpu_total,
        cpu_free=max(0, cpu_total - sum(spec.cpu_count for spec in holding)),
        mem_total=mem_total,
        mem_free=max(0, mem_total - sum(spec.mem_size for spec in holding)),
        disk_free=max(0, free_bytes(worker.store.root) - reserve),
        images=worker.cache.uris(),
    )


def demand_capacity(worker: Worker, wanted: Spec) -> None:
    """Raise Refused with the numbers where a VM does not fit."""
    free = capacity(worker, tuple(worker.store.all()))
    cpus = worker.hypervisor(wanted.hypervisor).cpus()
    if wanted.mem_size > free.mem_free:
        raise Refused(
            f"{wanted.name!r} wants {wanted.mem_size} MiB of memory; {free.mem_free} of {free.mem_total} MiB are free "
            "here. Ask for less, or use another worker.",
            code=Code.NO_ROOM,
        )
    if wanted.cpu_count > min(free.cpu_free, cpus):
        raise Refused(
            f"{wanted.name!r} wants {wanted.cpu_count} processors; this host has {cpus}, and {free.cpu_free} of "
            f"{free.cpu_total} promises are free. Ask for fewer, or use another worker.",
            code=Code.NO_ROOM,
        )
    if free.disk_free == 0:
        raise Refused(
            f"The data root {worker.store.root} is full. Free space there, or use another worker.", code=Code.NO_ROOM
        )
