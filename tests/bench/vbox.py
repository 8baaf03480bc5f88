"""The worker beside VBoxManage, within a VirtualBox host: `python -m tests.bench.vbox`. It asserts nothing."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from uuid import uuid4

from devstack.guests import build_bootchain
from tests.bench.measure import Row, median, show
from tests.lib.support import Site, stop_helpers
from worker_service.hypervisor.vbox import arguments
from worker_service.hypervisor.vbox.events import processes
from worker_service.hypervisor.vbox.vboxmanage import PROGRAMS
from worker_service.images import converted
from worker_service.steps.start import domain_spec

_ROUNDS = 3
_START = 1.3
_DEATH_S = 2.5


def main() -> int:
    """Measure, and return 1 unless the bounds were kept."""
    folder = Path(tempfile.mkdtemp(prefix="saltern-bench-", dir="/var/tmp"))
    folder.chmod(0o755)
    site = Site(folder, hypervisors=["vbox"], qemu_user="root")
    site.defaults = {"hypervisor": "vbox", "network": "none", **site.defaults}
    build_bootchain(folder / "images/spin.raw", variant="spin")
    try:
        rows = _rows(site)
    finally:
        stop_helpers(site.settings, folder / "end.log")
        shutil.rmtree(folder)
    show("VirtualBox", rows)
    return 0 if all(row.kept for row in rows) else 1


def _rows(site: Site) -> list[Row]:
    _started(site, "first")  # fetches and converts the image
    ours, theirs, deaths = [], [], []
    for number in range(_ROUNDS):
        uuid, taken = _started(site, f"ours{number}")
        ours.append(taken)
        deaths.append(_death(site, uuid))
        theirs.append(_by_hand(site, f"theirs{number}", uuid))
        site.call("destroy", uuid=uuid)
    start, plain, death = median(ours), median(theirs), median(deaths)
    return [
        Row(
            "start of a cached image, from the verb to running",
            f"{start:.2f} s",
            f"VBoxManage createvm … startvm: {plain:.2f} s",
            start / plain,
            _START,
        ),
        Row("death of a guest to the watcher's news", f"{death:.2f} s", f"{_DEATH_S:g} s", death / _DEATH_S, 1.0),
    ]


def _started(site: Site, name: str) -> tuple[str, float]:
    begin = time.perf_counter()
    uuid = site.start(name, site.images / "spin.raw")["uuid"]
    log = site.worker.store.folder(uuid) / arguments.FOLDER / name / "Logs/VBox.log"
    _until(lambda: _runs(log))
    taken = time.perf_counter() - begin
    site.wait(name, "running")
    if name == "first":
        site.call("destroy", uuid=uuid)
    return uuid, taken


def _by_hand(site: Site, name: str, like: str) -> float:
    """Return the seconds in which VBoxManage alone makes and starts a machine like that of a VM."""
    folder, uuid = site.folder / name, str(uuid4())
    folder.mkdir()
    spec = domain_spec(site.worker, site.worker.store.read(like))
    base, disk = converted.path_of(spec.disks[0].base or Path()), folder / "hda.vdi"
    drives = ("storageattach", uuid, "--storagectl", "drives", "--device", "0", "--port")
    begin = time.perf_counter()
    _manage("createvm", "--name", name, "--uuid", uuid, "--ostype", "Other_64", "--basefolder", folder, "--register")
    _manage("createmedium", "disk", "--filename", disk, "--diffparent", base, "--format", "VDI")
    _manage(
        *("modifyvm", uuid, "--memory", str(spec.memory_mib), "--cpus", "1", "--long-mode", "on", "--nic1", "none"),
        *("--graphicscontroller", "vmsvga", "--vram", "16", "--audio-driver", "none", "--snapshot-folder", folder),
        *("--uart1", "0x3F8", "4", "--uart-mode1", "file", folder / "console.log"),
        *("--uart2", "0x2F8", "3", "--uart-mode2", "file", folder / "agent.log"),
    )
    _manage("storagectl", uuid, "--name", "drives", "--add", "ide", "--controller", "PIIX4")
    _manage(*drives, "0", "--type", "hdd", "--medium", disk)
    _manage(*drives, "1", "--type", "dvddrive", "--medium", "emptydrive")
    _manage("startvm", uuid, "--type", "headless")
    log = folder / name / "Logs/VBox.log"
    _until(lambda: _runs(log))
    taken = time.perf_counter() - begin
    _manage("controlvm", uuid, "poweroff")
    _until(lambda: uuid not in _manage("list", "runningvms"))
    _until(lambda: _manage("unregistervm", uuid, check=False) == "" and uuid not in _manage("list", "vms"))
    return taken


def _death(site: Site, uuid: str) -> float:
    """Return the seconds from the end of a machine's process until the driver has said so and knows the state."""
    driver, heard = site.worker.hypervisor("vbox"), threading.Event()
    known = threading.Event()
    source = driver.events(
        lambda changed: (heard if known.is_set() else known).set() if changed == uuid else None, print
    )
    source.ensure()
    known.wait(60)
    pid = next(pid for pid in processes() if uuid.encode() in Path(f"/proc/{pid}/cmdline").read_bytes())
    begin = time.perf_counter()
    os.kill(pid, signal.SIGKILL)
    while True:
        heard.wait(60)
        heard.clear()
        if not driver.state(uuid).on:
            return time.perf_counter() - begin


def _manage(*words: str | Path, check: bool = True) -> str:
    return subprocess.run([PROGRAMS / "VBoxManage", *words], check=check, capture_output=True, text=True).stdout


def _runs(log: Path) -> bool:
    return log.exists() and b"Machine state changed to 'Running'" in log.read_bytes()


def _until(holds: Callable[[], bool]) -> None:
    while not holds():
        time.sleep(0.02)


if __name__ == "__main__":
    sys.exit(main())
