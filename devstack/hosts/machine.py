"""One emulated host: QEMU with a disk of its own run, a serial log that says when it is ready, and ssh into it.

Its folder gets `disk.qcow2`, an overlay on the image's disk, which survives `reboot`; `serial.log`, all that the host
wrote to its first serial port; and `qemu.log`.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self
from urllib.parse import quote

from devstack import process
from devstack.console import Trouble
from devstack.guests.tools import run
from devstack.hosts.connection import Connection
from devstack.layout import bound

READY: Final = "saltern-host: ready"
_FAILURES: Final = ("saltern-host: failed", "Kernel panic", "Dom0 crashed", "Panic on CPU")
_BOOT_S: Final = 120.0
_POLL_S: Final = 0.05
_LAST_LINES: Final = 12
SSH_PORT: Final = 22


@dataclass(frozen=True)
class Image:
    """What a host starts from.

    `folder` has `disk.raw`, the ssh key `key`, and `known_hosts` with the host's key for the name `saltern-host`.
    """

    folder: Path
    boot: tuple[str, ...]
    """QEMU's arguments for machine, processor, memory and kernel."""
    extra_disks: tuple[Path, ...] = ()
    """Raw disks that the host only reads: /dev/vdb, /dev/vdc, …"""


def command_line(image: Image, folder: Path, ports: Mapping[int, int]) -> tuple[str, ...]:
    """Return QEMU's command line. `ports` has the host's ports, each with the one on 127.0.0.1 that leads there."""
    forward = "".join(f",hostfwd=tcp:127.0.0.1:{here}-:{there}" for there, here in sorted(ports.items()))
    disks = [f"if=none,id=disk0,file={folder / 'disk.qcow2'},format=qcow2,cache=unsafe,discard=unmap"]
    disks += [
        f"if=none,id=disk{number},file={path},format=raw,readonly=on"
        for number, path in enumerate(image.extra_disks, start=1)
    ]
    drives = [
        word
        for number, disk in enumerate(disks)
        for word in ("-drive", disk, "-device", f"virtio-blk-pci,drive=disk{number}")
    ]
    return (
        *("qemu-system-x86_64", "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"),
        *("-accel", "tcg,thread=multi,tb-size=512", *image.boot, *drives),
        *("-netdev", f"user,id=net0{forward}", "-device", "virtio-net-pci,netdev=net0,romfile="),
        *("-device", "virtio-rng-pci"),
        *("-chardev", f"file,id=serial0,path={folder / 'serial.log'},append=on", "-serial", "chardev:serial0"),
    )


def linux_words(disks: Mapping[Path, Path], *, systemd: bool) -> str:
    """Return the kernel arguments that say where a host mounts its further disks, and what starts as process 1."""
    mounts = ",".join(f"vd{letter}:{quote(str(place))}" for letter, place in zip("bcdef", disks.values(), strict=False))
    first = " saltern.init=/sbin/init systemd.unit=multi-user.target systemd.show_status=0 quiet" if systemd else ""
    return f"saltern.mounts={mounts}{first}"


class Machine(Connection):
    """A host in emulation, from its start to its stop. `with machine:` starts and stops it."""

    def __init__(self, image: Image, folder: Path, *, ports: Mapping[int, int] | None = None) -> None:
        """Prepare a host with the files of its run in `folder`; `ports` as in `command_line`, with free ones for 0."""
        self.image = image
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        with ExitStack() as held:  # all are held at once, so that none is drawn twice
            self.ports: Final = {
                there: here or held.enter_context(bound()).getsockname()[1]
                for there, here in {SSH_PORT: 0, **(ports or {})}.items()
            }
        super().__init__(image.folder, self.ports[SSH_PORT])
        self._serial: Final = folder / "serial.log"
        self._read_from = 0
        self._qemu: process.Identity | None = None

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Start the host and wait until it is ready. Raises Trouble with the last lines of its serial log."""
        disk = self.folder / "disk.qcow2"
        if not disk.exists():
            base = ("-b", str(self.image.folder / "disk.raw"), "-F", "raw")
            run(["qemu-img", "create", "-q", "-f", "qcow2", *base, disk])
        self._read_from = self._serial.stat().st_size if self._serial.exists() else 0
        argv = command_line(self.image, self.folder, self.ports)
        # It ends with this process, however that ends.
        dying = ("setpriv", "--pdeathsig", "KILL", *argv)
        self._qemu = process.spawn(dying, log=self.folder / "qemu.log", cwd=self.folder)
        self.await_line(READY, _BOOT_S)
        self.connect()

    def await_line(self, text: str, timeout_s: float) -> None:
        """Wait until the host has written a text to its serial port since its start. Raises Trouble."""
        deadline = time.monotonic() + timeout_s
        while text not in (written := self.written()):
            ended = self._qemu is None or not self._qemu.alive
            if ended or any(failure in written for failure in _FAILURES) or time.monotonic() > deadline:
                said = f"QEMU ended: {_last(self.folder / 'qemu.log')}" if ended else "it did not get ready"
                lines = "\n".join(written.splitlines()[-_LAST_LINES:])
                raise Trouble(f"The host in {self.folder} failed ({said}). The end of its {self._serial}:\n{lines}")
            time.sleep(_POLL_S)

    def written(self) -> str:
        """Return what the host wrote to its serial port since its last start."""
        if not self._serial.exists():
            return ""
        with self._serial.open("rb") as file:
            file.seek(self._read_from)
            return file.read().decode(errors="replace")

    def reboot(self) -> None:
        """Cut the power and start the host again with the same disk. Writes that were not synced may be lost."""
        self._power_off()
        self.start()

    def stop(self) -> None:
        """Cut the power, and remove the disk and all that belongs to the run, except the logs."""
        self._power_off()
        self.close()
        (self.folder / "disk.qcow2").unlink(missing_ok=True)

    def _power_off(self) -> None:
        self.disconnect()
        if self._qemu:
            process.end(self._qemu, self.folder / "qemu.log")
            self._qemu = None


def _last(log: Path) -> str:
    with suppress(OSError):
        lines = log.read_text(errors="replace").splitlines()
        return lines[-1] if lines else "no message"
    return "no message"
