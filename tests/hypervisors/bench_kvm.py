"""The bench of `kvm`: a libvirt of its own, with QEMU under emulation."""

import os
import signal
import uuid as uuids
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from xml.etree import ElementTree as ET

from tests.hypervisors.bench import Bench
from tests.lib.host import LibvirtHost
from tests.lib.support import Site, press_key, remove_domains


class KvmBench(Bench):
    name = "kvm"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._machine = LibvirtHost(folder)
        self._virsh = self._machine.host.virsh

    def _site(self, folder: Path, **settings: object) -> Site:
        return self._machine.worker(folder, **settings)

    def _remove_domains(self, site: Site) -> None:
        settings = site.worker.settings
        remove_domains(settings.data_root, settings.libvirt_uri, settings.libvirt_log_folder)

    def domains(self) -> dict[str, bool]:
        on = self._virsh("list", "--uuid").split()
        return {each: each in on for each in self._virsh("list", "--all", "--uuid").split()}

    def is_alive(self, uuid: str) -> bool:
        return self._pid(uuid) is not None

    def power_off(self, uuid: str) -> None:
        self._virsh("destroy", uuid)

    def forget(self, uuid: str) -> None:
        self._virsh("undefine", uuid)

    def crash(self, uuid: str) -> None:
        os.kill(self._pid(uuid), signal.SIGKILL)

    def press(self, uuid: str) -> None:
        listen = self._xml(uuid).find("./devices/graphics/listen")
        press_key(Path(listen.get("socket")))

    def disc(self, uuid: str) -> Path | None:
        source = self._xml(uuid).find("./devices/disk[@device='cdrom']/target[@dev='hdc']/../source")
        file = source.get("file") if source is not None else None
        return Path(file) if file else None

    @contextmanager
    def foreign(self, name: str) -> Iterator[str]:
        uuid, definition = str(uuids.uuid4()), self.folder / "foreign.xml"
        definition.write_text(
            f"<domain type='qemu'><name>{name}</name><uuid>{uuid}</uuid><memory>16384</memory>"
            "<os><type>hvm</type></os></domain>"
        )
        self._virsh("define", str(definition))
        try:
            yield uuid
        finally:
            self._virsh("undefine", uuid)

    def stop_toolstack(self) -> None:
        self._machine.stop_libvirtd("kill")

    def start_toolstack(self) -> None:
        self._machine.start()

    def _cut_power(self) -> None:
        self._machine.host.cut_power()

    def close(self) -> None:
        self._machine.close()

    def _xml(self, uuid: str) -> ET.Element:
        return ET.fromstring(self._virsh("dumpxml", uuid))

    def _pid(self, uuid: str) -> int | None:
        """Return the pid of a domain's QEMU."""
        words = f"-uuid\0{uuid}\0".encode()
        return next((pid for pid in self._machine.host.processes() if words in _command(pid)), None)


def _command(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""
