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
from tests.lib.support import Site, remove_domains, stop_helpers
from worker_service.hypervisor.xen.empty_cd import provided
from worker_service.hypervisor.xen.xml import domain_xml
from worker_service.images import qemu_img
from worker_service.steps import start

_URI = "xen:///system"
_ROUNDS = 4
_PATIENCE_S = 60


_LISTEN = """
import sys, threading, time
import libvirt
libvirt.virEventRegisterDefaultImpl()
libvirt.open(sys.argv[1]).domainEventRegisterAny(
    None, libvirt.VIR_DOMAIN_EVENT_ID_LIFECYCLE,
    lambda _connection, domain, event, *_more: print(time.time(), domain.UUIDString(), event, flush=True), None)
print(time.time(), "listens", 0, flush=True)
while True:
    libvirt.virEventRunDefaultImpl()
"""
_WATCH = """
import sys, time
from worker_service.state.context import WorkerContext
from worker_service.watcher.loop import Watcher
Watcher(WorkerContext(sys.argv[1]), "w1", lambda tag, data: print(time.time(), tag, 0, flush=True)).run()
"""


class Lines:
    """What a program says, each line with its time."""

    def __init__(self, program: str, argument: str) -> None:
        argv = [sys.executable, "-c", program, argument]
        self.child = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)
        self.lines: list[list[str]] = []
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        for line in self.child.stdout or ():
            self.lines.append(line.split())

    def first(self, word: str, number: int = 0, after: float = 0.0) -> float:
        """Return the time of the first line with a word and a number; wait for it."""
        for _ in range(_PATIENCE_S * 20):
            for at, what, kind in list(self.lines):
                if word in what and int(kind) == number and float(at) > after:
                    return float(at)
            time.sleep(0.05)
        raise SystemExit(f"no {word}: {self.lines[-5:]}")


class Bench:
    """A worker in this dom0 with its watcher, and libvirt beside it."""

    def __init__(self, folder: Path) -> None:
        self.site = Site(folder, hypervisors=["xen"], qemu_user="root")
        self.site.defaults = {"hypervisor": "xen", "network": "none", "hda_save_to": ""}
        self.site.pause_s = 0.3
        self.connection = libvirt.open(_URI)
        self.events, self.status = Lines(_LISTEN, _URI), Lines(_WATCH, str(self.site.settings))
        self.events.first("listens")
        self.image = self.site.images / "start.raw"
        build_bootchain(self.image, variant="spin")
        self.site.start("warm", self.image)  # brings the image into the cache
        self.site.wait("warm", "running")
        self.record = self.site.worker.store.find(name="warm")

    def close(self) -> None:
        """End the watcher and all VMs."""
        self.status.child.kill()
        self.events.child.kill()
        stop_helpers(self.site.settings, self.site.folder / "end.log")
        settings = self.site.worker.settings
        remove_domains(settings.data_root, _URI, settings.libvirt_log_folder)

    def _uuid(self, name: str) -> str:
        return self.site.worker.store.find(name=name).uuid

    def ours(self, number: int) -> float:
        """Start at the worker's verb, until libvirt's event says that the domain runs."""
        name = f"ours-{number}"
        began = time.time()
        self.site.start(name, self.image)
        taken = self.events.first(self._uuid(name), libvirt.VIR_DOMAIN_EVENT_STARTED) - began
        self.site.wait(name, "running")
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
        uuid = self._uuid(name)
        self.status.first(uuid)
        time.sleep(1.0)  # the watcher has shown the start
        began = time.time()
        self.connection.lookupByName(name).destroy()
        end = self.events.first(uuid, libvirt.VIR_DOMAIN_EVENT_STOPPED, began)
        taken = self.status.first(uuid, 0, began) - end
        self.site.call("destroy", name=name)
        return max(0.0, taken)


def main() -> int:
    """Measure, and return 1 unless all bounds were kept."""
    folder = Path(tempfile.mkdtemp(prefix="saltern-bench-", dir="/var/tmp"))
    bench = Bench(folder)
    try:
        middle = {
            name: median(values)
            for name, values in rounds(_ROUNDS, {"ours": bench.ours, "bare": bench.bare, "death": bench.death}).items()
        }
    finally:
        bench.close()
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
