"""Faults at the failpoints of the worker: give them to helpers, and see whether they were met."""

import os
import re
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from devstack.layout import REPO
from tests.lib.support import Site, helpers, helpers_alive
from worker_service.core.errors import NotFound
from worker_service.core.failpoints import ENVIRONMENT
from worker_service.fs import locks
from worker_service.helper import launcher
from worker_service.state.context import WorkerContext
from worker_service.state.record import STARTING, Phase, Record

FAULTS = ("kill", "enospc", "eio")

_CALL = """
import json, sys
from worker_service.operations import verbs
from worker_service.state.context import WorkerContext
print(json.dumps(verbs.answer(verbs.VERBS[sys.argv[2]], WorkerContext(sys.argv[1]), **json.loads(sys.argv[3]))))
"""


def call_argv(settings: Path, verb: str, parameters: str) -> list[str]:
    """Return a command line that calls a verb in a process of its own. `parameters` and its output are JSON."""
    return [sys.executable, "-c", _CALL, str(settings), verb, parameters]


def call_with_fault(settings: Path, fault: str, verb: str, parameters: str) -> subprocess.CompletedProcess[str]:
    """Call a verb in a process that has the fault."""
    environment = {**os.environ, ENVIRONMENT: fault}
    argv = call_argv(settings, verb, parameters)
    return subprocess.run(argv, cwd=REPO, env=environment, check=False, capture_output=True, text=True, timeout=60)


def point_of(fault: str) -> str:
    """Return the failpoint of a fault: `save.staged` for `save.staged:2=kill`."""
    return re.split("[:=]", fault)[0]


def message_of(fault: str) -> str:
    """Return the line that a process writes to stderr when it meets a fault."""
    return f"failpoint {point_of(fault)}: {fault.partition('=')[2]}\n"


def was_met(site: Site, uuid: str, fault: str) -> bool:
    """Return whether a helper of a VM has met a fault."""
    log = site.worker.store.folder(uuid) / "helper.log"
    return log.exists() and message_of(fault) in log.read_text()


def faults_until_met(
    monkeypatch: pytest.MonkeyPatch,
    site: Site,
    fault_of: Callable[[Record], str],
) -> None:
    """Give each helper of a VM that VM's fault, until one has met it. An empty fault is none.

    A helper that releases a slot forks the next one without a fault. So this waits until no VM needs a helper, and a
    new VM's lock is held until a helper gets it here.
    """
    until_at_rest(site)
    start, store, held = launcher.start_helper, site.worker.store, dict[str, int]()
    create, lock_for_helper = store.create, store.lock_for_helper

    def create_held(record: Record, admit: Callable[[], None]) -> Record | None:
        def admit_held() -> None:
            admit()
            (own,) = (file.parent for file in store.vms.glob(".new-*/record.json") if record.uuid in file.read_text())
            held[record.uuid] = locks.lock(own / "lock")

        return create(record, admit_held)

    def lock_and_arm(uuid: str, environment: pytest.MonkeyPatch) -> int | None:
        lock = held.pop(uuid) if uuid in held else lock_for_helper(uuid)
        if lock is not None:  # from now on no other helper moves the VM on to a phase with another fault
            with suppress(NotFound):
                fault = fault_of(store.read(uuid))
                if fault and not was_met(site, uuid, fault):
                    environment.setenv(ENVIRONMENT, fault)
        return lock

    def start_with_fault(worker: WorkerContext, uuid: str, kind: str | None = None) -> bool:
        if worker is not site.worker:
            return start(worker, uuid, kind)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(store, "lock_for_helper", lambda uuid: lock_and_arm(uuid, patch))
            return start(worker, uuid, kind)

    monkeypatch.setattr(store, "create", create_held)
    monkeypatch.setattr(launcher, "start_helper", start_with_fault)


_AT_WORK = {*STARTING, Phase.FLATTENING, Phase.SAVING, Phase.CLEANING, Phase.DESTROYING}


def until_at_rest(site: Site) -> None:
    """Look as the watcher does, until no VM is on its way and no helper is left."""

    def busy() -> list[str]:
        found = []
        for record in site.worker.store.all():
            lock = None if record.phase in _AT_WORK else site.worker.store.lock_for_helper(record.uuid)
            if lock is None:  # a helper has it, or is just being forked
                found.append(record.name)
            else:
                locks.unlock(lock)
        return found

    site.until(lambda: {"busy": [*busy(), *helpers_alive(site.settings)]}, lambda reply: not reply["busy"])


def standing(settings: Path, uuid: str) -> list[int]:
    """Return the helpers of a VM that are stopped at a failpoint."""
    return [pid for pid in helpers(settings, uuid) if state(pid) == "T"]


def state(pid: int) -> str:
    """Return the state of a process, `T` if it is stopped, or an empty string without such a process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return ""
