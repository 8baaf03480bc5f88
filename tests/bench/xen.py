"""The cost of the xen driver beside libvirt's own create, in a dom0: `python -m tests.bench.xen` as root.

It prints a table and asserts nothing. It works in a folder of its own and removes it.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from uuid import uuid4

import libvirt
import msgspec

from devstack.guests import build_bootchain
from tests.bench.measure import Row, median, rounds, seconds, show
from tests.lib.support import Site
from worker_service.hypervisor.xen.empty_cd import provided
from worker_service.hypervisor.xen.xml import domain_xml
from worker_service.images import qemu_img
from worker_service.steps import start
from worker_service.watcher.loop import Watcher

_URI = "xen:///system"
_ROUNDS = 5


class Bench:
    """A worker in this dom0, with its watcher, and libvirt beside it."""

    def __init__(self, folder: Path) -> None:
        self.site = Site(folder, hypervisors=["xen"], qemu_user="root")
        self.site.defaults = {"hypervisor": "xen", "network": "none", "hda_save_to": ""}
        self.fired: list[tuple[float, str, str]] = []
        self.events: dict[tuple[str, int], float] = {}
        libvirt.virEventRegisterDefaultImpl()
        self.connection = libvirt.open(_URI)
        self.connection.domainEventRegisterAny(None, libvirt.VIR_DOMAIN_EVENT_ID_LIFECYCLE, self._lifecycle, None)
        watcher = Watcher(self.site.worker, "w1", self._fire)
        threading.Thread(target=watcher.run, daemon=True).start()
        self.image = self.site.images / "start.raw"
        build_bootchain(self.image, variant="spin")
        self.site.start("warm", self.image)  # brings the image into the cache
        self.site.wait("warm", "running")
        self.record = self.site.worker.store.find(name="warm")
        self._off("warm")

    def _lifecycle(self, _connection: object, domain: libvirt.virDomain, event: int, *_more: object) -> None:
        self.events[domain.name(), event] = time.perf_counter()

    def _fire(self, tag: str, data: object) -> None:
        status = dict(data).get("status", {}) if isinstance(data, dict) else {}
        self.fired.append((time.perf_counter(), tag, str(status or data)))

    def _off(self, name: str) -> None:
        self.connection.lookupByName(name).destroy()
        self.site.wait(name, "powered off", "halted")

    def ours(self, number: int) -> float:
        """Start at the worker's verb, until libvirt's event says that the domain runs."""
        name = f"ours-{number}"
        began = time.perf_counter()
        self.site.start(name, self.image)
        self.site.wait(name, "running")
        taken = self.events[name, libvirt.VIR_DOMAIN_EVENT_STARTED] - began
        self.site.call("destroy", name=name)
        return taken

    def bare(self, number: int) -> float:
        """Run `virsh create` with the same XML and an overlay that is there."""
        name, path = f"bare-{number}", self.site.folder / f"bare-{number}"
        path.mkdir()
        disk = self.record.disks["hda"]
        spec = start.domain_spec(self.site.worker, self.record)
        top = msgspec.structs.replace(spec.disks[0].layers[0], path=str(path / "hda.qcow2"))
        base = self.site.worker.cache.path(disk.base or "")
        qemu_img.create_overlay(path / "hda.qcow2", base, disk.base_format, disk.virtual_size)
        spec = msgspec.structs.replace(
            spec,
            uuid=str(uuid4()),
            name=name,
            disks=(msgspec.structs.replace(spec.disks[0], layers=(top,)),),
            console_log=path / "console",
            agent_log=path / "agent",
        )
        disc = provided(self.site.worker.settings.data_root)
        xml = path / "domain.xml"
        xml.write_text(domain_xml(spec, "hvm", empty_cd=disc, grub=Path("/"), screen=path / "vnc"))
        taken = seconds(lambda: subprocess.run(["virsh", "-q", "-c", _URI, "create", str(xml)], check=True))
        self.connection.lookupByName(name).destroy()
        return taken

    def death(self, number: int) -> float:
        """Measure from libvirt's event of a domain's end to the watcher's event with the new status."""
        name = f"death-{number}"
        self.site.start(name, self.image)
        self.site.wait(name, "running")
        uuid = self.site.worker.store.find(name=name).uuid
        self.connection.lookupByName(name).destroy()
        began = time.perf_counter()
        while time.perf_counter() - began < 60:
            end = self.events.get((name, libvirt.VIR_DOMAIN_EVENT_STOPPED))
            later = [at for at, tag, _data in self.fired if uuid in tag and end and at >= end]
            if later and end:
                self.site.call("destroy", name=name)
                return later[0] - end
            time.sleep(0.01)
        raise SystemExit(f"no event: {self.fired[-5:]}")


def main() -> int:
    """Measure, and return 1 unless all bounds were kept."""
    folder = Path(tempfile.mkdtemp(prefix="saltern-bench-", dir="/var/tmp"))
    try:
        bench = Bench(folder)
        middle = {
            name: median(values)
            for name, values in rounds(_ROUNDS, {"ours": bench.ours, "bare": bench.bare, "death": bench.death}).items()
        }
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    rows = [
        Row(
            "xen: start of a cached image, verb -> active",
            f"{middle['ours']:.3f} s",
            f"virsh create: {middle['bare']:.3f} s",
            middle["ours"] / middle["bare"],
            1.3,
        ),
        Row("xen: death of a domain -> status event", f"{middle['death']:.3f} s", "1 s", middle["death"], 1.0),
    ]
    show("Xen", rows)
    return 0 if all(row.kept for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
