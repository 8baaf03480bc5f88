"""The disks of hypervisors whose guests run on QEMU's images: thin qcow2 overlays, made and flattened by qemu-img."""

from __future__ import annotations

from pathlib import Path

from worker_service.core.host import User
from worker_service.hypervisor.base import NewDisk
from worker_service.images import flatten, qemu_img
from worker_service.images.overlay import Chain
from worker_service.transfer.registry import Report
from worker_service.transfer.uri import Form


class Qcow2Disks:
    """Makes and flattens disks. It calls no hypervisor, so disks are saved without one too.

    Args:
        qemu_user: the user that qemu-img runs as; None: the user of this process.
    """

    disk_format = "qcow2"

    def __init__(self, qemu_user: User | None) -> None:
        self._qemu_user = qemu_user

    def make_disk(self, disk: NewDisk) -> None:
        """Make a thin overlay, or an empty disk."""
        if disk.base is None:
            qemu_img.create_blank(disk.path, disk.size, self._qemu_user)
        else:
            qemu_img.create_overlay(disk.path, disk.base, disk.base_format, disk.size, self._qemu_user)

    def flatten(self, chain: Chain, target: Path, form: Form, report: Report) -> None:
        """Write a disk and everything below it into one file."""
        flatten.flatten(chain, target, form, report, self._qemu_user)
