"""The cost of the master: `make bench-master`. It prints its whole table and asserts nothing.

It needs root and the packages of the development stack. It works in folders of its own and removes them. The load of
the machine is part of the measurement: the CPU seconds of a pass show how much.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile

from devstack.console import progress, say
from devstack.layout import PYTHON, REPO
from tests.bench.measure import Row, show
from tests.bench.memory import watching
from tests.bench.minions import polling, swarm
from tests.bench.path import creating, hearing, whole_stack
from tests.lib.postgresql import Cluster

_MANY_WORKERS = (
    ("pass over 10,000 VMs on 200 workers", "pass_s", 2.0, "s"),
    ("the same, worst of 5", "worst_pass_s", 2.0, "s"),
    ("the same, CPU", "pass_cpu_s", 2.0, "s"),
    ("most memory meanwhile", "rss_mib", 300.0, "MiB"),
    ("event -> fresh row, the master alone, p95", "event_p95_s", 1.0, "s"),
)


def main() -> int:
    """Measure everything, and return 1 unless all bounds were kept."""
    load, rows = os.getloadavg()[0], list[Row]()
    try:
        progress("10,000 VMs on 200 simulated workers")
        rows += fleets()
        progress("the whole path through a real Salt")
        with whole_stack() as stack:
            rows += [*creating(stack), *hearing(stack), *watching(stack)]
        progress("20 real minions")
        with swarm() as stacks:
            rows += polling(stacks)
    finally:
        show("Master", rows)
    say(f"\n{os.cpu_count()} processors, load {load:.1f} when it began, {os.getloadavg()[0]:.1f} when it ended.")
    return 0 if all(row.kept for row in rows) else 1


def fleets() -> list[Row]:
    """The master alone, with a simulated Salt, on both databases."""
    cluster = Cluster()
    try:
        with tempfile.TemporaryDirectory() as folder:
            urls = {"SQLite": f"sqlite:///{folder}/fleet.db", "PostgreSQL": cluster.url(cluster.make())}
            return [row for name, url in urls.items() for row in many_workers(name, url)]
    finally:
        cluster.close()


def many_workers(database: str, url: str) -> list[Row]:
    """One database."""
    argv = [str(PYTHON), "-m", "tests.bench.many_workers", url]
    found = json.loads(subprocess.run(argv, cwd=REPO, check=True, stdout=subprocess.PIPE).stdout)
    return [
        Row(f"{what} ({database})", f"{found[key]:.3g} {unit}", f"{limit:g} {unit}", found[key] / limit, 1.0)
        for what, key, limit, unit in _MANY_WORKERS
    ]


if __name__ == "__main__":
    sys.exit(main())
