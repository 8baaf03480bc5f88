"""One emulated host: QEMU with a disk of its own run, a serial log that says when it is ready, and ssh into it.

Its folder gets `disk.qcow2`, an overlay on the image's disk, which survives `reboot`; `serial.log`, all that the host
wrote to its first serial port; and `qemu.log`.
"""

from __future__ import annotations

import shlex
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from devstack import process
from devstack.console import Trouble
from devstack.guests.tools import run
from devstack.layout import bound

READY: Final = "saltern-host: ready"
_FAILURES: Final = ("saltern-host: failed", "Kernel panic", "Dom0 crashed", "Panic on CPU")
_BOOT_S: Final = 120.0
_CONNECT_S: Final = 60.0
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


class Machine:
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
        self._serial: Final = folder / "serial.log"
        self._read_from = 0
        self._qemu: process.Identity | None = None
        self._connection: subprocess.Popen[bytes] | None = None
        self._sockets: Final = Path(tempfile.mkdtemp(prefix="saltern-host-"))  # a unix socket needs a short path

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
        self._connect()

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

    def run(
        self, argv: Sequence[str], *, check: bool = True, stdin: bytes | None = None, timeout_s: float | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run a command as root in the host, and return its exit code and output as text.

        Raises Trouble if its code is not 0, unless `check` is False.
        """
        done = subprocess.run(self.ssh(argv), input=stdin or b"", capture_output=True, check=False, timeout=timeout_s)
        out, err = (text.decode(errors="replace") for text in (done.stdout, done.stderr))
        if check and done.returncode:
            raise Trouble(f"{shlex.join(argv)} failed with code {done.returncode} in the host: {(err or out).strip()}")
        return subprocess.CompletedProcess(list(argv), done.returncode, out, err)

    def lines(self, argv: Sequence[str]) -> Iterator[str]:
        """Run a command as root in the host, and yield each line of its output as soon as it is there.

        Raises Trouble at the end if its code is not 0 or the connection is lost.
        """
        with subprocess.Popen(self.ssh(argv), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True) as child:
            assert child.stdout is not None  # noqa: S101
            try:
                for line in child.stdout:
                    yield line.rstrip("\n")
            finally:
                child.terminate()
        if child.returncode:
            raise Trouble(f"{shlex.join(argv)} failed with code {child.returncode} in the host")

    def put(self, source: Path, target: str) -> None:
        """Copy a file into the host."""
        self.run(["sh", "-c", f"cat >{shlex.quote(target)}"], stdin=source.read_bytes())

    def get(self, source: str, target: Path) -> None:
        """Copy a file out of the host."""
        with target.open("wb") as file:
            subprocess.run(self.ssh(["cat", source]), stdin=subprocess.DEVNULL, stdout=file, check=True)

    def ssh(self, argv: Sequence[str]) -> list[str]:
        """Return the command line that runs a command in the host, through the connection that is open."""
        return [*self._ssh_words(), "saltern-host", "--", shlex.join(argv)]

    def reboot(self) -> None:
        """Cut the power and start the host again with the same disk. Writes that were not synced may be lost."""
        self._power_off()
        self.start()

    def stop(self) -> None:
        """Cut the power, and remove the disk and all that belongs to the run, except the logs."""
        self._power_off()
        (self.folder / "disk.qcow2").unlink(missing_ok=True)
        shutil.rmtree(self._sockets, ignore_errors=True)

    def _power_off(self) -> None:
        if self._connection:
            self._connection.terminate()
            self._connection.wait()
            self._connection = None
        if self._qemu:
            process.end(self._qemu, self.folder / "qemu.log")
            self._qemu = None

    def _connect(self) -> None:
        """Open the connection that all commands share: each one alone would take a second to agree on keys."""
        socket = self._sockets / "ssh"
        with suppress(FileNotFoundError):
            socket.unlink()
        keys = self.image.folder
        words = ["-o", f"UserKnownHostsFile={keys / 'known_hosts'}", "-i", str(keys / "key")]
        argv = [*self._ssh_words(), "-M", "-N", *words, "saltern-host"]
        self._connection = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE)
        deadline = time.monotonic() + _CONNECT_S
        while not socket.exists():
            if self._connection.poll() is not None or time.monotonic() > deadline:
                assert self._connection.stderr is not None  # noqa: S101
                self._connection.kill()
                said = self._connection.stderr.read().decode(errors="replace").strip()
                raise Trouble(f"The host in {self.folder} accepts no ssh connection: {said or 'no answer'}")
            time.sleep(_POLL_S)

    def _ssh_words(self) -> list[str]:
        options = {
            "ControlPath": self._sockets / "ssh",
            "HostName": "127.0.0.1",
            "Port": self.ports[SSH_PORT],
            "User": "root",
            "HostKeyAlias": "saltern-host",
            "StrictHostKeyChecking": "yes",
            "BatchMode": "yes",
            "IdentitiesOnly": "yes",
            "LogLevel": "ERROR",
        }
        words = [word for name, value in options.items() for word in ("-o", f"{name}={value}")]
        return ["ssh", "-F", "/dev/null", *words]


def _last(log: Path) -> str:
    with suppress(OSError):
        lines = log.read_text(errors="replace").splitlines()
        return lines[-1] if lines else "no message"
    return "no message"
