"""The steps from an accepted VM to a running one: fetch its images, make its disks, boot it."""

from __future__ import annotations

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
from worker_service.hypervisor.base import DiskSource, DomainSpec, Power
from worker_service.images import qemu_img
from worker_service.images.inspection import Use
from worker_service.state.context import WorkerContext
from worker_service.state.record import Disk, Phase, Record
from worker_service.steps import manifest, seed_files
from worker_service.steps.progress import reporter
from worker_service.transfer.uri import blank_size, parse

_PATIENCE_S: Final = 1.0
"""Seconds to hold a slot while another process fetches the image: that process may only check for changes."""


def fetch(worker: WorkerContext, record: Record) -> None:
    """Fetch all images into the cache, and note the version of the file at each target."""
    cache, policy = worker.cache_of(record.owner), worker.policy_of(record.owner)
    document = seed_files.document_of(record, policy)  # first, as an image takes longer
    disks: dict[str, Disk] = {}
    for disk_name in record.disk_names:
        uri = record.image(disk_name) or ""
        disk = Disk(virtual_size=blank_size(uri) or 0)
        if not disk.virtual_size:
            use: Use = "disk" if disk_name == "hda" else "data"
            report = reporter(worker, record, f"fetch {disk_name}")
            base = cache.fetch(parse(uri), use, report, patience_s=_PATIENCE_S)
            disk = Disk(base=base.digest, base_format=base.image.format, virtual_size=base.image.virtual_size)
        disks[disk_name] = disk
    claim = manifest.claim_of(record, record.owner, just_fetched=True)
    for disk_name, save_to in record.targets.items():
        if disk_name in disks:
            version = manifest.version_to_replace(save_to.uri, policy, claim)
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
    power = driver.state(record.uuid).power
    if power is Power.OFF:
        driver.forget(record.uuid)  # libvirt then forgets how an earlier instance ended
    folder = worker.store.folder(record.uuid)
    for disk_name in record.disk_names:
        path, disk = folder / f"{disk_name}.qcow2", record.disks[disk_name]
        if path.exists():
            if record.has_own_disks and power in (Power.OFF, Power.ABSENT):
                require_whole(worker, path)
            continue
        if record.has_own_disks:  # a new overlay would look like it, without its data
            raise Refused(f"The kept disk {path} is missing. Put it back and start the VM again, or destroy it.")
        part = path.with_suffix(".part")
        part.unlink(missing_ok=True)
        if disk.base is None:
            qemu_img.create_blank(part, disk.virtual_size, worker.qemu_user)
        else:
            base = worker.cache.path(disk.base)
            qemu_img.create_overlay(part, base, disk.base_format, disk.virtual_size, worker.qemu_user)
        atomic_files.sync_file(part)
        part.replace(path)
        failpoint("build.disk_made")
    key = seed_files.write_seed(folder, record)
    atomic_files.sync_folder(folder)
    worker.advance(record, Phase.BOOTING, minion_key=key)


def require_whole(worker: WorkerContext, path: Path) -> None:
    """Raise Refused for a kept disk that is damaged: a guest would get zeros, and write on top of them."""
    try:
        qemu_img.check(path, worker.qemu_user)
    except BadImage as err:
        raise Refused(f"The kept disk {path} cannot be booted. {err}") from err


def boot(worker: WorkerContext, record: Record) -> None:
    """Define and start the domain, unless it has run already and a crash prevented the note."""
    driver = worker.hypervisor(record.spec.hypervisor)
    domain = driver.state(record.uuid)
    if domain.power is Power.ABSENT or (domain.power is Power.OFF and domain.cause is None):
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
                path=folder / f"{disk_name}.qcow2",
                base=worker.cache.lend(disk.base) if disk.base else None,
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
        console_socket=console_socket(folder),
    )
