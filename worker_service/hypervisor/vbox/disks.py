"""Disks in VirtualBox's format. They are made and flattened without VirtualBox, so disks are saved without it too."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from worker_service.core.errors import DiskInUse, TransferFailed
from worker_service.core.host import User
from worker_service.fs import atomic_files
from worker_service.fs.advice import advice_on
from worker_service.hypervisor.base import DiskSource, NewDisk
from worker_service.hypervisor.vbox.events import processes
from worker_service.hypervisor.vbox.machine_xml import Medium
from worker_service.images import compression, converted, flatten, vdi
from worker_service.images.overlay import Chain, Layer
from worker_service.transfer.registry import Report
from worker_service.transfer.uri import Form


class VdiDisks:
    """Makes differencing VDIs on bases that were converted once, and flattens them.

    Args:
        qemu_user: the user that qemu-img runs as; None: the user of this process.
    """

    disk_format = "vdi"

    def __init__(self, qemu_user: User | None) -> None:
        self._qemu_user = qemu_user

    def make_disk(self, disk: NewDisk) -> None:
        """Make a thin disk on a base, which is converted if it is the first one on it, or an empty one."""
        parent = None
        if disk.base is not None:
            base = converted.as_vdi(disk.base, disk.base_format, disk.size, self._qemu_user)
            with _opened(base) as descriptor:
                parent = vdi.read(descriptor)
        try:
            # The comment names the base: a snapshot has none, and the file below it has this one.
            disk.path.write_bytes(vdi.new(disk.size, parent, disk.base.name if disk.base else ""))
            disk.path.chmod(0o600)
        except OSError as err:
            disk.path.unlink(missing_ok=True)
            raise _failed(disk.path, err) from err

    def chain_of(self, disk: DiskSource) -> list[Medium]:
        """Return the files of a disk in VirtualBox's format, its base first, which is made again if it is missing."""
        own = [Path(layer.path) for layer in reversed(disk.layers)]
        chain = [_medium(path) for path in own]
        if disk.base is not None:
            with _opened(own[0]) as lowest:
                size = vdi.read(lowest).size
            chain.insert(0, _medium(converted.as_vdi(disk.base, disk.base_format, size, self._qemu_user)))
        return chain

    def flatten(self, chain: Chain, target: Path, form: Form, report: Report) -> None:
        """Write a disk and everything below it into one file."""
        for layer in chain.layers:
            _require_closed(Path(layer.path))
        whole = target if form.format == "raw" and not form.compress else target.with_suffix(".whole.part")
        try:
            size = self._copy(chain, whole, report)
            if form.format != "raw":
                flat = Chain(layers=(Layer(str(whole), "raw"),), base=None, base_format="raw", largest=size)
                flatten.flatten(flat, target, form, report, self._qemu_user)
            elif form.compress:
                compression.pack(whole, target, report)
        except BaseException as err:
            target.unlink(missing_ok=True)
            if isinstance(err, OSError):
                raise _failed(target, err) from err
            raise
        finally:
            if whole != target:
                whole.unlink(missing_ok=True)

    def _copy(self, chain: Chain, whole: Path, report: Report) -> int:
        def write_early(done: int, total: int | None) -> None:
            atomic_files.start_writing(whole)
            report(done, total)

        with ExitStack() as opened:
            own = [opened.enter_context(_opened(Path(layer.path))) for layer in chain.layers]
            if chain.base is not None:
                size = vdi.read(own[0]).size
                base = converted.as_vdi(chain.base, chain.base_format, size, self._qemu_user)
                own.append(opened.enter_context(_opened(base)))
            whole.unlink(missing_ok=True)
            made = os.open(whole, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            try:
                return vdi.copy(own, made, chain.largest, write_early)
            finally:
                os.close(made)


def _medium(path: Path) -> Medium:
    with _opened(path) as disk:
        return Medium(path, vdi.read(disk).uuid)


def _require_closed(disk: Path) -> None:
    """Raise DiskInUse if a machine has a disk open: VirtualBox puts no lock on it that others see."""
    found = disk.stat()
    for pid in processes():
        with suppress(OSError):
            for descriptor in Path(f"/proc/{pid}/fd").iterdir():
                with suppress(OSError):
                    if os.path.samestat(descriptor.stat(), found):
                        raise DiskInUse(
                            f"Process {pid} of VirtualBox has {disk} open. End that machine: nothing is read before."
                        )


@contextmanager
def _opened(path: Path) -> Iterator[int]:
    disk = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        yield disk
    finally:
        os.close(disk)


def _failed(path: Path, err: OSError) -> TransferFailed:
    words = err.strerror or str(err)
    return TransferFailed(f"Writing {path.name} failed: {words}. {advice_on(words)}".rstrip())
