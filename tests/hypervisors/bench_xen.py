"""The bench of `xen`: the libvirt of a dom0. The tests run in it, as a worker does."""

import os
import shutil
import signal
import subprocess
from pathlib import Path

from tests.hypervisors.bench_libvirt import LibvirtBench, qemu_with
from tests.lib.support import Site, eventually

_RUN = Path("/run/libvirt")


class XenBench(LibvirtBench):
    name = "xen"
    domain_type = "xen"
    triple_fault = ""
    crash_is_heard = False
    unheard_end = "unknown"
    uri = "xen:///system"
    pause_s = 1.0
    rest = 3.0

    def _site(self, folder: Path, **settings: object) -> Site:
        return Site(folder, qemu_user="root", **settings)

    def is_alive(self, uuid: str) -> bool:
        return uuid in _xl("vm-list")

    def crash(self, uuid: str) -> None:
        """Kill the QEMU that emulates its devices: the guest stands still."""
        os.kill(qemu_with(f"/{uuid}/"), signal.SIGKILL)
        eventually(lambda: qemu_with(f"/{uuid}/") is None)  # so that the next look finds it

    def disc(self, uuid: str) -> Path | None:
        found = super().disc(uuid)
        return None if found is None or found.name == "empty.iso" else found

    def stop_toolstack(self) -> None:
        pid = _libvirtd()
        os.kill(pid, signal.SIGKILL)
        eventually(lambda: _libvirtd() is None)

    def start_toolstack(self) -> None:
        subprocess.run(["libvirtd", "-d"], check=True)
        eventually(lambda: self.virsh("uri"))

    def _cut_power(self) -> None:
        self.stop_toolstack()
        for line in _xl("vm-list").splitlines()[1:]:
            if (number := line.split()[1]) != "0":
                _xl("destroy", number)
        shutil.rmtree(_RUN)
        _RUN.mkdir()

    def close(self) -> None:
        """Leave libvirtd as it is."""


def _xl(*words: str) -> str:
    return subprocess.run(["xl", *words], check=True, capture_output=True, text=True, timeout=60).stdout


def _libvirtd() -> int | None:
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if (entry / "comm").read_text().strip() == "libvirtd":
                    return int(entry.name)
            except OSError:
                continue
    return None
