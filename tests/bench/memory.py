"""Private memory of processes: the memory that would be free if they ended. They share the rest with their parent."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from devstack import process
from devstack.stack import Stack
from tests.bench.measure import Row
from tests.lib.support import Site, helpers

_HELPER_MIB: Final = 45
_WATCHER_MIB: Final = 40
_LOOK_S: Final = 0.5


def private_mib(pid: int) -> float:
    """MiB of a process; raises OSError where it has ended. Source: proc_pid_smaps_rollup."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private_")) / 1024


@contextmanager
def of_helpers(site: Site, observed: list[float]) -> Iterator[None]:
    """Look at all helpers of a worker meanwhile."""
    over = threading.Event()

    def look() -> None:
        while not over.wait(_LOOK_S):
            for pid in helpers(site.settings):
                with suppress(OSError):
                    observed.append(private_mib(pid))

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def helper_row(what: str, observed: list[float]) -> Row:
    """The most that a helper had, beside what it may have."""
    return Row(what, f"{max(observed):.1f} MiB", f"{_HELPER_MIB} MiB", max(observed) / _HELPER_MIB, 1.0)


def watching(stack: Stack) -> list[Row]:
    """The watcher, which is a process of the minion's, on a running stack."""
    leader = stack.running("minion")
    if leader is None:
        raise SystemExit(f"the minion does not run: {stack.layout.log('minion')}")
    family = process.family(leader, stack.layout.log("minion"))
    titles = {one.pid: Path(f"/proc/{one.pid}/cmdline").read_bytes().decode(errors="replace") for one in family}
    (watcher,) = (pid for pid, title in titles.items() if "vmachines_watcher" in title)
    mib = private_mib(watcher)
    return [Row("private memory of the watcher", f"{mib:.1f} MiB", f"{_WATCHER_MIB} MiB", mib / _WATCHER_MIB, 1.0)]
