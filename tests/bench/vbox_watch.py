"""The processor time of the watcher's looks at VirtualBox: `python -m tests.bench.vbox_watch`.

Twenty machines are on and nothing changes. VBoxManage is a shell script that prints them, so the figure has the
worker's own part with starting a process, and not the work of VirtualBox.
"""

from __future__ import annotations

import resource
import sys
import tempfile
import time
from pathlib import Path
from uuid import uuid4

from tests.bench.measure import Row, show
from worker_service.core.settings import Settings
from worker_service.hypervisor.vbox import arguments, events, serial_logs
from worker_service.hypervisor.vbox import driver as vbox_driver

_MACHINES = 20
_LOOKS_S = 30.0
_CORE = 0.03


def main() -> int:
    """Measure, and return 1 unless the bound was kept."""
    with tempfile.TemporaryDirectory(prefix="saltern-bench-") as name:
        share = _watched(Path(name))
    row = Row(
        f"watching {_MACHINES} idle machines of VirtualBox, processor time",
        f"{share * 100:.2f} % of a core",
        f"{_CORE:.0%} of a core",
        share / _CORE,
        1.0,
    )
    show("VirtualBox", [row])
    return 0 if row.kept else 1


def _watched(folder: Path) -> float:
    """Return the share of a core that the looks take, with the processes that they start."""
    uuids = [str(uuid4()) for _ in range(_MACHINES)]
    running, info = folder / "running", folder / "info"
    running.write_text("".join(f'"vm{number}" {{{uuid}}}\n' for number, uuid in enumerate(uuids)))
    info.mkdir()
    for uuid in uuids:
        home = folder / uuid / arguments.FOLDER
        (home / "vm").mkdir(parents=True)
        for log in serial_logs.NAMES:
            (home / log).touch()
        (info / uuid).write_text(f'VMState="running"\nCfgFile="{home}/vm/vm.vbox"\n')
    program = folder / "VBoxManage"
    program.write_text(f'#!/bin/sh\n[ "$1" = list ] && exec cat {running}\nexec cat {info}/"$2"\n')
    program.chmod(0o755)
    driver = vbox_driver.Vbox(Settings(data_root=folder, vboxmanage=str(program)))
    changed: list[str] = []
    events.any_process = lambda: True  # the machines of this run have no process
    watching = driver.events(changed.append, lambda _uuid: None)
    watching.ensure()
    while len(changed) < _MACHINES:
        time.sleep(0.1)
    before, begin = _used(), time.monotonic()
    time.sleep(_LOOKS_S)
    return (_used() - before) / (time.monotonic() - begin)


def _used() -> float:
    """Return the processor seconds of this process and of its children that have ended."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


if __name__ == "__main__":
    sys.exit(main())
