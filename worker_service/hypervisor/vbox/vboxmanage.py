"""Run VBoxManage, VirtualBox's stable interface, and read what it prints."""

from __future__ import annotations

import os
import pwd
import re
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from worker_service.core.errors import HypervisorError

DEVICE: Final = Path("/dev/vboxdrv")
PROGRAMS: Final = Path("/usr/lib/virtualbox")
"""Where VirtualBox's programs are. Those in PATH are scripts, which search all processes before each command."""
OLDEST: Final = (7, 0)
LOCK_S: Final = 20.0
"""How long to wait for a machine that another process has locked, as each call does for a moment."""
_LOOK_S: Final = 0.25
_VERSION: Final = re.compile(r"^(\d+)\.(\d+)\S*$", re.MULTILINE)
_LINE: Final = re.compile(r'^(?:"((?:[^"\\]|\\.)*)"|([^="]+))=(?:"((?:[^"\\]|\\.)*)"|(.*))', re.DOTALL)
_MACHINE: Final = re.compile(r'^"(.*)" \{([0-9a-f-]{36})\}$', re.MULTILINE)
_LOCKED: Final = re.compile(
    r"already locked|lock request pending|being (?:un)?locked|while it is locked|object is not ready|"
    r"session is not locked|is not mutable|Failed to get a console object"
)
_MISSING: Final = re.compile(r"Could not find a registered machine")
_OFF: Final = re.compile(r"is not currently running")
_INACCESSIBLE: Final = re.compile(r"The object functionality is limited")
INACCESSIBLE: Final = "inaccessible"
"""The state of a machine whose settings VirtualBox cannot read."""
_ADVICE: Final[Mapping[str, str]] = {
    "VERR_VM_DRIVER_NOT_INSTALLED": "The kernel module vboxdrv is not loaded: run `modprobe vboxdrv`.",
    "VERR_VM_DRIVER_VERSION_MISMATCH": "The kernel module is of another version: run `modprobe -r vboxdrv; modprobe "
    "vboxdrv`, or boot the host again.",
    "VERR_SVM_IN_USE": "KVM has the processor's virtualization: boot with kvm.enable_virt_at_load=0, or unload kvm.",
    "VERR_VMX_IN_VMX_ROOT_MODE": "KVM has the processor's virtualization: boot with kvm.enable_virt_at_load=0, or "
    "unload kvm.",
    "VERR_VMX_NO_VMX": "The processor offers no virtualization. Turn it on in the firmware.",
    "VERR_SVM_NO_SVM": "The processor offers no virtualization. Turn it on in the firmware.",
    "VERR_NO_MEMORY": "The host is short of memory: give the VM less, or end another one.",
    "VERR_NO_LOW_MEMORY": "The host is short of memory: give the VM less, or end another one.",
    "VERR_ACCESS_DENIED": "Look at the rights of the worker's user on /dev/vboxdrv and on the data root.",
    "VERR_DISK_FULL": "The disk is full. Free space there.",
}


class NoSuchMachine(Exception):
    """VirtualBox has no machine of this uuid."""


class NotRunning(Exception):
    """The machine is off."""


class Inaccessible(HypervisorError):
    """VirtualBox has a machine whose settings it cannot read, because they were moved or removed."""


class VBoxManage:
    """The program, run as the user of this process, whose machines it sees.

    Args:
        program: its path, or its name in PATH.
        limit_s: how long a call may take.
    """

    def __init__(self, program: str = "VBoxManage", limit_s: float = 60.0) -> None:
        direct = PROGRAMS / program
        self._program = str(direct) if direct.exists() else program
        self._limit_s = limit_s

    def run(self, *argv: str, times: float = 1.0) -> str:
        """Run a command and return its output. A locked machine is tried again for a while.

        Raises NoSuchMachine, NotRunning, Inaccessible, and HypervisorError with the last words of VBoxManage.
        """
        deadline = time.monotonic() + LOCK_S
        while True:
            code, output, errors = self._run(argv, self._limit_s * times)
            if code == 0:
                return output
            if _MISSING.search(errors):
                raise NoSuchMachine
            if _INACCESSIBLE.search(errors):
                raise Inaccessible(f"VBoxManage {argv[0]} failed: {said(errors)}")
            if _OFF.search(errors):
                raise NotRunning
            if not _LOCKED.search(errors) or time.monotonic() > deadline:
                # `snapshot list` of a machine without any writes its reason to the output.
                raise HypervisorError(f"VBoxManage {argv[0]} failed: {said(errors.strip() or output)}")
            time.sleep(_LOOK_S)

    def _run(self, argv: tuple[str, ...], limit_s: float) -> tuple[int, str, str]:
        home = os.environ.get("HOME") or pwd.getpwuid(os.geteuid()).pw_dir
        environment = {**os.environ, "HOME": home, "LC_ALL": "C.UTF-8", "LANGUAGE": "C"}
        try:
            done = subprocess.run(
                [self._program, *argv],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                check=False,
                timeout=limit_s,
                env=environment,
            )
        except FileNotFoundError:
            raise HypervisorError(
                f"VirtualBox is not installed: there is no {self._program}. Install the package virtualbox, or take "
                "vbox out of `hypervisors` in the worker's settings."
            ) from None
        except PermissionError:
            raise HypervisorError(
                f"{self._program} may not be run by the worker's user. Look at its rights (ls -l)."
            ) from None
        except subprocess.TimeoutExpired:
            raise HypervisorError(
                f"VBoxManage {argv[0]} has not ended for {limit_s:g} s: VBoxSVC or a VM hangs. The call may "
                "still take effect. Look at `ps -C VBoxSVC,VBoxHeadless`; running VMs keep running."
            ) from None
        return done.returncode, done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace")

    def version(self) -> str:
        """Return the version. Raises HypervisorError if VirtualBox is missing or too old."""
        output = self.run("--version")
        found = _VERSION.search(output)
        if found is None:
            raise HypervisorError(f"VBoxManage states no version: {said(output)}")
        if (int(found[1]), int(found[2])) < OLDEST:
            raise HypervisorError(f"VirtualBox {found[0]} is too old. Install 7.0 or later.", retry=False)
        return found[0]

    def info(self, uuid: str) -> dict[str, str] | None:
        """Return what VirtualBox says about a machine, or None if it has none of this uuid."""
        try:
            return parse(self.run("showvminfo", uuid, "--machinereadable"))
        except NoSuchMachine:
            return None
        except Inaccessible:
            return {"VMState": INACCESSIBLE}

    def machines(self, which: str = "vms") -> dict[str, str]:
        """Return the names of all machines by uuid, or of the `runningvms`."""
        return {found[2]: found[1] for found in _MACHINE.finditer(self.run("list", which))}


def parse(output: str) -> dict[str, str]:
    """Return the pairs that `--machinereadable` prints. Lines without a pair are ignored."""
    found = {}
    for line in _lines(output):
        if pair := _LINE.fullmatch(line):
            quoted_key, key, quoted, plain = pair.groups()
            found[_unquoted(quoted_key) if quoted_key is not None else key] = (
                _unquoted(quoted) if quoted is not None else plain
            )
    return found


def _lines(output: str) -> list[str]:
    """Return the lines of an output. A quoted text, such as a description, may have several."""
    lines: list[str] = []
    for line in output.splitlines():
        if lines and _is_open(lines[-1]):
            lines[-1] += f"\n{line}"
        else:
            lines.append(line)
    return lines


def _is_open(line: str) -> bool:
    return bool(re.sub(r"\\.", "", line, flags=re.DOTALL).count('"') % 2)


def _unquoted(text: str) -> str:
    return re.sub(r"\\(.)", r"\1", text, flags=re.DOTALL)


def said(errors: str) -> str:
    """Return the message of VBoxManage as a sentence, with advice for a known cause."""
    lines = [line.removeprefix("VBoxManage: error: ").strip() for line in errors.splitlines()]
    lines = [line for line in lines if line and not line.startswith(("Details:", "Context:", "0%", "Waiting for"))]
    words = " ".join(lines[:3])[:400].rstrip(".") or "it gave no reason"
    advice = next((text for cause, text in _ADVICE.items() if cause in errors), "")
    return f"{words}. {advice}".rstrip()
