"""The bench of `vbox`: VirtualBox of the host that the tests run in, as a worker does."""

import os
import re
import signal
import subprocess
import uuid as uuids
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from devstack.guests import read_counter
from tests.hypervisors.bench import Bench
from tests.lib.support import Site, eventually
from worker_service.hypervisor.vbox import serial_logs
from worker_service.hypervisor.vbox.arguments import FOLDER
from worker_service.hypervisor.vbox.vboxmanage import PROGRAMS, parse
from worker_service.images.overlay import Chain, Layer
from worker_service.transfer.uri import Form

_MACHINE = re.compile(r"\{([0-9a-f-]{36})\}")
_DISC = "drives-1-0"
_DAEMON = PROGRAMS / "VBoxSVC"
_IPC = (_DAEMON.name, "VBoxXPCOMIPCD")


class VboxBench(Bench):
    name = "vbox"
    pause_s = 0.5
    rest = 1.0

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._program = folder / "VBoxManage"
        self.start_toolstack()

    def manage(self, *words: str) -> str:
        """Return the output of VBoxManage. Errors are ignored."""
        command = [PROGRAMS / "VBoxManage", *words]
        return subprocess.run(command, check=False, capture_output=True, text=True, timeout=120).stdout

    def _site(self, folder: Path, **settings: object) -> Site:
        return Site(folder, qemu_user="root", vboxmanage=str(self._program), **settings)

    def _remove_domains(self, site: Site) -> None:
        driver = self.driver(site)
        for record in site.worker.store.all():
            driver.power_off(record.uuid)
            driver.forget(record.uuid)

    def domains(self) -> dict[str, bool]:
        on = _MACHINE.findall(self.manage("list", "runningvms"))
        return {each: each in on for each in _MACHINE.findall(self.manage("list", "vms"))}

    def is_alive(self, uuid: str) -> bool:
        return _headless(uuid) is not None

    def power_off(self, uuid: str) -> None:
        self.manage("controlvm", uuid, "poweroff")

    def forget(self, uuid: str) -> None:
        eventually(lambda: self.manage("unregistervm", uuid) or uuid not in self.domains())

    def crash(self, uuid: str) -> None:
        os.kill(_headless(uuid), signal.SIGKILL)

    def press(self, uuid: str) -> None:
        self.manage("controlvm", uuid, "keyboardputscancode", "1c", "9c")

    def output(self, site: Site, uuid: str) -> bytes:
        serial_logs.collect(site.worker.store.folder(uuid) / FOLDER)  # as at each look of the watcher
        return super().output(site, uuid)

    def counted_on(self, site: Site, uuid: str, disk: Path) -> int:
        """Return it from a flat copy: qemu-img reads no VDI that lies on another one."""
        hda, flat = site.worker.store.read(uuid).disks["hda"], self.folder / "flat.raw"
        chain = Chain(
            layers=(Layer(str(disk), "vdi"),),
            base=site.worker.cache.path(hda.base),
            base_format=hda.base_format,
            largest=hda.virtual_size,
        )
        form = Form(format="raw", compress=False)
        self.driver(site).flatten(chain, flat, form, lambda _done, _total: None)
        return read_counter(flat, "raw")

    def disc(self, uuid: str) -> Path | None:
        found = parse(self.manage("showvminfo", uuid, "--machinereadable")).get(_DISC, "none")
        return None if found in ("none", "emptydrive") else Path(found).resolve()

    @contextmanager
    def foreign(self, name: str) -> Iterator[str]:
        uuid = str(uuids.uuid4())
        self.manage(
            "createvm", "--name", name, "--uuid", uuid, "--basefolder", str(self.folder / "foreign"), "--register"
        )
        try:
            yield uuid
        finally:
            self.manage("unregistervm", uuid)

    def stop_toolstack(self) -> None:
        """Let every command of the worker fail. A kill of VirtualBox's daemon would end its machines too."""
        self._write_program('echo "VBoxManage: error: Failed to create the VirtualBox object!" >&2; exit 1')

    def start_toolstack(self) -> None:
        """Let the commands of the worker reach VirtualBox, whose daemon runs as the unit of `states/worker` has it."""
        if not _processes(_DAEMON.name):
            subprocess.Popen([_DAEMON], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, start_new_session=True)
        self._write_program(f'exec {PROGRAMS}/VBoxManage "$@"')

    def _write_program(self, line: str) -> None:
        part = self._program.with_suffix(".part")
        part.write_text(f"#!/bin/sh\n{line}\n")
        part.chmod(0o755)
        part.replace(self._program)

    def _cut_power(self) -> None:
        for name in (*_IPC, "VBoxHeadless"):
            for pid in _processes(name):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        eventually(lambda: not any(map(_processes, ("VBoxHeadless", *_IPC))))

    def close(self) -> None:
        """Leave VirtualBox as it is."""


def _processes(name: str) -> list[int]:
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if (entry / "comm").read_text().strip() == name and "Z" not in (entry / "stat").read_text().split()[2]:
                found.append(int(entry.name))
    return found


def _headless(uuid: str) -> int | None:
    for pid in _processes("VBoxHeadless"):
        with suppress(OSError):
            if uuid.encode() in Path(f"/proc/{pid}/cmdline").read_bytes():
                return pid
    return None
