"""The bench of `kvm`: a libvirt of its own, with QEMU under emulation."""

import os
import signal
from pathlib import Path

from tests.hypervisors.bench_libvirt import LibvirtBench, qemu_with
from tests.lib.host import LibvirtHost
from tests.lib.support import Site


class KvmBench(LibvirtBench):
    name = "kvm"
    domain_type = "qemu"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._libvirt = LibvirtHost(folder)

    @property
    def uri(self) -> str:
        return self._libvirt.host.uri

    def _site(self, folder: Path, **settings: object) -> Site:
        return self._libvirt.worker(folder, **settings)

    def is_alive(self, uuid: str) -> bool:
        return qemu_with(f"-uuid\0{uuid}") is not None

    def crash(self, uuid: str) -> None:
        os.kill(qemu_with(f"-uuid\0{uuid}"), signal.SIGKILL)

    def stop_toolstack(self) -> None:
        self._libvirt.stop_libvirtd("kill")

    def start_toolstack(self) -> None:
        self._libvirt.start()

    def _cut_power(self) -> None:
        self._libvirt.host.cut_power()

    def close(self) -> None:
        self._libvirt.close()
