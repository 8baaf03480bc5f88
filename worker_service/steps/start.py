"""The steps from an accepted VM to a running one: fetch its images, make its disks, boot it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import msgspec

from worker_service.console.address import console_socket
from worker_service.contract import Code
from worker_service.core import host
from worker_service.core.errors import BadImage, Refused
from worker_service.core.failpoints import failpoint
from worker_service.fs import atomic_files
from worker_service.guest_agent.report import LOG
from worker_service.hypervisor.base import DiskSource, DomainSpec, DomainState, NewDisk, Power
from worker_service.images import qemu_img
from worker_service.images.inspection import Use
from worker_service.images.overlay import Layer
from worker_service.state.context import WorkerContext
from worker_service.state.mac_addresses import free_mac, mac_of
from worker_service.state.record import NOT_SAVED, Disk, Phase, Record, own_layer
from worker_service.steps import disk_guard, manifest, seed_files
from worker_service.steps.progress import reporter
from worker_service.transfer.uri import blank_size, parse

_PATIENCE_S: Final = 1.0
"""Seconds to hold a slot while another process fetches the image: that process may only check for changes."""


def fetch(worker: WorkerContext, record: Record) -> None:
    """Fetch all images into the cache, and note the version of the file at each target."""
    cache, policy = worker.cache_of(record.owner), worker.policy_of(record.owner)
    document = seed_files.document_of(record, policy)  # first, as an image takes longer
    fetched = manifest.versions_before_fetch(record, policy)
    disks: dict[str, Disk] = {}
    for disk_name in record.disk_names:
        uri = record.image(disk_name) or ""
        disk = Disk(virtual_size=blank_size(uri) or 0)
        if not disk.virtual_size:
            use: Use = "disk" if disk_name == "hda" else "data"
            report = reporter(worker, record, f"fetch {disk_name}")
            base = cache.fetch(parse(uri), use, report, patience_s=_PATIENCE_S)
            disk = Disk(
                base=base.digest,
                base_format=base.image.format,
                virtual_size=base.image.virtual_size,
                base_source=base.source if base.source != base.digest else None,
            )
        disks[disk_name] = disk
    known = msgspec.structs.replace(record, disks=disks)
    for disk_name, save_to in record.targets.items():
        if disk_name in disks:
            claim = manifest.claim_of(known, disk_name, record.owner)
            version = manifest.version_to_replace(save_to.uri, policy, claim, fetched.get(disk_name))
            disks[disk_name] = msgspec.structs.replace(disks[disk_name], target_version=version)
    cd = None
    if record.spec.cd_image:
        report = reporter(worker, record, "fetch cd")
        cd = cache.fetch(parse(record.spec.cd_image), "cd", report, patience_s=_PATIENCE_S).digest
    instance_id = seed_files.new_instance(worker, record, document)
    failpoint("fetch.done")
    worker.advance(
        record, Phase.BUILDING, disks=disks, cd=cd, cd_uri=record.spec.cd_image or "", instance_id=instance_id
    )


def build(worker: WorkerContext, record: Record) -> None:
    """Make the overlays. Kept disks of an earlier instance of this VM stay as they are."""
    driver = worker.hypervisor(record.spec.hypervisor)
    for uuid, domain in driver.states().items():
        if domain.name == record.name and uuid != record.uuid:
            raise Refused(
                f"The hypervisor has a domain named {record.name!r} already, which is not this VM ({uuid}). "
                "Choose another name, or remove that domain.",
                code=Code.NAME_TAKEN,
            )
    domain = driver.state(record.uuid)
    if domain.power is Power.OFF and not domain.saved_memory:
        driver.forget(record.uuid)  # libvirt then forgets how an earlier instance ended
    folder, disks = worker.store.folder(record.uuid), dict(record.disks)
    for disk_name, disk in record.disks.items():
        if record.has_own_disks:  # a new overlay would look like a missing one, without its data
            require_whole(worker, disk_guard.in_folder(worker, record, disk_name), domain)
            continue
        made = own_layer(disk_name, driver.disk_format)
        disks[disk_name] = msgspec.structs.replace(disk, chain=() if (made,) == disk.layers(disk_name) else (made,))
        path = folder / made.path
        if path.exists():
            continue
        part = path.with_suffix(".part")
        part.unlink(missing_ok=True)
        base = worker.cache.path(disk.base) if disk.base else None
        driver.make_disk(NewDisk(path=part, size=disk.virtual_size, base=base, base_format=disk.base_format))
        atomic_files.sync_file(part)
        part.replace(path)
        failpoint("build.disk_made")
    record = _with_free_mac(worker, record)
    key = seed_files.write_seed(folder, record)
    atomic_files.sync_folder(folder)
    # From here on a guest may write: what was saved of kept disks is not all any more.
    disks = {name: msgspec.structs.replace(disk, **NOT_SAVED) for name, disk in disks.items()}
    worker.advance(record, Phase.BOOTING, minion_key=key, disks=disks)


def _with_free_mac(worker: WorkerContext, record: Record) -> Record:
    """Give a VM another address if that of its uuid is taken. One VM looks at a time."""
    with worker.store.admission():
        mac = free_mac(record, {mac_of(other) for other in worker.store.all() if other.uuid != record.uuid})
        if mac == mac_of(record):
            return record
        return worker.note(record, lambda current: msgspec.structs.replace(current, mac=mac))


def require_whole(worker: WorkerContext, layers: Sequence[Layer], domain: DomainState) -> None:
    """Raise Refused for a kept disk that is missing or damaged: a guest would get zeros, and write on top of them."""
    for layer in layers:
        if not Path(layer.path).is_file():
            raise Refused(f"The kept disk {layer.path} is missing. Put it back and start the VM again, or destroy it.")
        if layer.format == "qcow2" and not domain.on:
            try:
                qemu_img.check(Path(layer.path), worker.qemu_user)
            except BadImage as err:
                raise Refused(f"The kept disk {layer.path} cannot be booted. {err}") from err


def boot(worker: WorkerContext, record: Record) -> None:
    """Define and start the domain, unless it has run already and a crash prevented the note."""
    driver = worker.hypervisor(record.spec.hypervisor)
    domain = driver.state(record.uuid)
    if domain.power is Power.ABSENT or domain.saved_memory or (domain.power is Power.OFF and domain.cause is None):
        failpoint("boot.before")
        driver.start(domain_spec(worker, record))
        failpoint("boot.started")
    worker.advance(record, Phase.UP, host_boot=host.boot_id(), ended_by_host=False, halt_cause=None)


def domain_spec(worker: WorkerContext, record: Record) -> DomainSpec:
    """Return the domain of a record, for the hypervisor driver."""
    folder = worker.store.folder(record.uuid)
    return DomainSpec(
        uuid=record.uuid,
        name=record.name,
        cpu_count=record.spec.cpu_count,
        memory_mib=record.spec.mem_size,
        arch=record.spec.sys_arch,
        disks=tuple(
            DiskSource(
                disk_name=disk_name,
                layers=disk_guard.in_folder(worker, record, disk_name),
                base=worker.cache.lend(disk.base) if disk.base and disk.on_base else None,
                base_format=disk.base_format,
            )
            for disk_name, disk in record.disks.items()
        ),
        cd=worker.cache.lend(record.cd) if record.cd else None,
        console_log=folder / "console.log",
        agent_log=folder / LOG,
        seed=seed_files.seed_of(folder),
        guest_agent=record.spec.wants_agent,
        network=record.spec.network,
        mac=mac_of(record),
        console_socket=console_socket(folder),
    )
