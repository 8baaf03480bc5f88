"""The whole path through a real Salt: a VM from the master's API to QEMU, and its report back to the database."""

from __future__ import annotations

import shutil
import sqlite3
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import libvirt

from devstack.guests import build_bootchain
from devstack.http import Reply
from devstack.layout import Layout, Ports
from devstack.stack import LIBVIRT_URI, Stack
from tests.bench.domains import state, until_running
from tests.bench.measure import Row, median, percentile, rounds
from tests.lib.support import end_stack

_VMS = "/api/v1/vmachines"
_CREATES = 7
_CHANGES = 40
_PATIENCE_S = 60


@contextmanager
def whole_stack() -> Iterator[Stack]:
    """Every part, as `make run` has them, in a folder and at ports of its own."""
    folder = Path(tempfile.mkdtemp(prefix="saltern-bench-", dir="/var/tmp"))
    folder.chmod(0o755)  # QEMU, another user, has to pass through
    stack = Stack(Layout(var=folder, ports=Ports.free(), minion=f"worker-{folder.name.removeprefix('saltern-')}"))
    try:
        stack.start()
        build_bootchain(stack.layout.images / "spin.raw", variant="spin")
        yield stack
    finally:
        end_stack(stack)
        shutil.rmtree(folder)


def creating(stack: Stack) -> list[Row]:
    """POST at the master -> domain active with a cached image, beside POST at the worker API."""
    connection = libvirt.open(LIBVIRT_URI)

    def master(number: int) -> float:
        name = f"by-master-{number}"
        taken = until_running(connection, name, lambda: _fine(stack.api("POST", _VMS, _body(stack, name))))
        _until(lambda: stack.api("GET", f"{_VMS}/{name}").body["status"] == "running", name)
        _fine(stack.api("DELETE", f"{_VMS}/{name}"))
        return taken

    def direct(number: int) -> float:
        name = f"direct-{number}"
        taken = until_running(
            connection, name, lambda: _fine(stack.worker_api("POST", "/vmachines/start", _body(stack, name)))
        )
        _until(lambda: stack.worker_api("GET", f"/vmachines/status?name={name}").body["status"] == "running", name)
        _fine(stack.worker_api("POST", "/vmachines/destroy", {"name": name}))
        return taken

    ways = {"master": master, "worker API": direct}
    for way in ways.values():
        way(_CREATES)  # brings the image into the cache, and everything into memory
    middle = {name: median(values) for name, values in rounds(_CREATES, ways).items()}
    connection.close()
    beyond = middle["master"] - middle["worker API"]
    compared = f"1.0 s (POST -> active: master {middle['master']:.3f} s, worker API {middle['worker API']:.3f} s)"
    return [Row("create -> active beyond the worker API's own", f"{beyond:.3f} s", compared, beyond / 1.0, 1.0)]


def hearing(stack: Stack) -> list[Row]:
    """Time from libvirt's report that a domain pauses or resumes to the same in the master's row."""
    connection, name = libvirt.open(LIBVIRT_URI), "heard"
    uuid = _fine(stack.api("POST", _VMS, _body(stack, name)))["uuid"]
    ways = (
        ("suspend", libvirt.VIR_DOMAIN_PAUSED, "suspended"),
        ("resume", libvirt.VIR_DOMAIN_RUNNING, "running"),
    )
    taken: list[float] = []
    with (
        closing(sqlite3.connect(f"file:{stack.layout.var}/master.db?mode=ro", uri=True)) as database,
        ThreadPoolExecutor(1) as pool,
    ):

        def row_says(status: str) -> bool:
            query = "SELECT json_extract(status, '$.status') FROM observed WHERE uuid = ?"
            return database.execute(query, (uuid,)).fetchone() == (status,)

        _until(lambda: row_says("running"), name)
        for number in range(_CHANGES):
            verb, domain, status = ways[number % 2]
            doing = pool.submit(stack.api, "POST", f"{_VMS}/{name}/{verb}")
            _until(lambda expected=domain: state(connection, name) == expected, name)
            begin = time.perf_counter()
            _until(lambda expected=status: row_says(expected), name)
            taken.append(time.perf_counter() - begin)
            _fine(doing.result())
    connection.close()
    _fine(stack.api("DELETE", f"{_VMS}/{name}"))
    p95 = percentile(taken, 0.95)
    return [
        Row(
            "domain changes -> fresh row, real stack, p95", f"{p95:.3f} s", f"1 s (p50 {median(taken):.3f} s)", p95, 1.0
        )
    ]


def _body(stack: Stack, name: str) -> dict[str, Any]:
    return {"name": name, "hda_image": f"file://{stack.layout.images}/spin.raw", "mem_size": 32}


def _fine(reply: Reply) -> Any:
    if not reply.ok:
        raise SystemExit(f"{reply.status}: {reply.body}")
    return reply.body


def _until(holds: Callable[[], bool], what: str) -> None:
    deadline = time.perf_counter() + _PATIENCE_S
    while not holds():
        if time.perf_counter() > deadline:
            raise SystemExit(f"{what}: not reached within {_PATIENCE_S} s")
        time.sleep(0.002)
