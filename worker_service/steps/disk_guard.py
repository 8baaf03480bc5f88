"""The files of a VM's disks, and the one check before a step reads, moves or removes them, or forgets their domain."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from worker_service.core.errors import DiskInUse, HypervisorError, TransferFailed
from worker_service.images import image_lock
from worker_service.images.overlay import Layer
from worker_service.state.context import Superseded, WorkerContext
from worker_service.state.record import Record


def layers(worker: WorkerContext, record: Record, disk_name: str) -> tuple[Layer, ...]:
    """Return the files of a disk above its base, by absolute paths. Raises TransferFailed for what is no file here."""
    folder, disk = worker.store.folder(record.uuid), record.disks[disk_name]
    for layer in disk.chain:
        path = folder / layer.path
        if not path.is_file() or path.is_symlink():
            raise TransferFailed(
                f"The disk {disk_name} of {record.name!r} was last on {layer.path}, which is no file here. "
                "Put it back, or copy the disk to a file with `virsh blockcopy` while the VM runs."
            )
    return in_folder(worker, record, disk_name)


def in_folder(worker: WorkerContext, record: Record, disk_name: str) -> tuple[Layer, ...]:
    """Return the layers of a disk by absolute paths, wherever the VM's folder is."""
    folder = worker.store.folder(record.uuid)
    return tuple(Layer(str(folder / layer.path), layer.format) for layer in record.disks[disk_name].layers(disk_name))


def require_idle(worker: WorkerContext, record: Record) -> None:
    """Make sure that the VM is off and that nobody writes to its disks.

    Raises Superseded if somebody has started it, because another step is next then; DiskInUse if a process that
    libvirt does not know may write to a disk. Without libvirt, the locks on the disks have to do.
    """
    with suppress(HypervisorError):
        if worker.domain(record).on:
            raise Superseded
    for path in disk_files(worker, record):
        if image_lock.is_written(path):
            raise DiskInUse(
                f"Another process has {path} open to write. Find it with `fuser -v {path}` and end it: nothing is read "
                "or removed until then."
            )


def disk_files(worker: WorkerContext, record: Record) -> list[Path]:
    """Return the files on which the VM's data is or was: the overlays made for it, and those above or instead."""
    folder = worker.store.folder(record.uuid)
    made = [folder / f"{disk_name}.qcow2" for disk_name in record.disk_names]
    moved = [folder / layer.path for disk in record.disks.values() for layer in disk.chain]
    return list(dict.fromkeys([*made, *moved]))


def remove_files(paths: Iterable[Path]) -> None:
    """Remove files of disks. One that some process uses stays, because another VM may have it as its base."""
    for path in paths:
        with suppress(OSError):
            if path.is_file() and not path.is_symlink() and not image_lock.is_used(path):
                path.unlink()
