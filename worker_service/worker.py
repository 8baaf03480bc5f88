"""One worker: its settings, records, images and hypervisors in one hand, for all doors alike."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any, Final

from worker_service.contract import Code
from worker_service.errors import Refused
from worker_service.hypervisor.base import DomainState, Hypervisor
from worker_service.images.cache import Cache
from worker_service.lifecycle import next_step, wait_s
from worker_service.record import Phase, Record, move
from worker_service.settings import Settings, load
from worker_service.store import Store

HYPERVISORS: Final = ("kvm",)


class Superseded(Exception):
    """The record went on under the hands of a step: what it was doing is no longer wanted."""


class Worker:
    """Everything that operations, helpers and the watcher share.

    Args:
        settings_path: the settings file; None looks where `settings.load` says.
    """

    def __init__(self, settings_path: str | Path | None = None) -> None:
        self._settings_path = settings_path
        self.settings: Settings = load(settings_path)
        self.store = Store(self.settings.data_root)
        self.cache = Cache(self.settings.data_root, self.settings.images)
        self.store.prepare()
        self.cache.prepare()

    @staticmethod
    def now() -> datetime:
        """The wall clock, aware, in UTC."""
        return datetime.now(UTC)

    # Hypervisors

    def hypervisor(self, name: str) -> Hypervisor:
        """The driver of that name; raises Refused for one that this version does not drive."""
        if name not in HYPERVISORS:
            raise Refused(
                f"The hypervisor {name!r} is not supported by this worker. Use one of: {', '.join(HYPERVISORS)}.",
                code=Code.UNSUPPORTED,
            )
        return self._kvm

    @cached_property
    def _kvm(self) -> Hypervisor:
        # Imported when first needed: a request that is refused, and a long download, do without libvirt.
        from worker_service.hypervisor.kvm import Kvm  # noqa: PLC0415

        return Kvm(self.settings.libvirt_uri, lambda: self.acceleration()[0] == "kvm")

    def acceleration(self) -> tuple[str, str]:
        """`kvm` or `tcg`, whichever guests get here, and a sentence that says why. Proved once a boot of the host."""
        from worker_service.hypervisor import acceleration  # noqa: PLC0415 - as above

        proof = self.settings.data_root / "acceleration.json"
        chosen, why = acceleration.choose(self.settings.acceleration, lambda: acceleration.cached_proof(proof))
        return chosen.value, why

    def domain(self, record: Record) -> DomainState:
        """What the hypervisor says of a VM now; raises HypervisorError."""
        return self.hypervisor(record.spec.hypervisor).state(record.uuid)

    def domains(self) -> Mapping[str, DomainState]:
        """What the hypervisors say of all domains, foreign ones too; raises HypervisorError."""
        return {uuid: state for name in HYPERVISORS for uuid, state in self.hypervisor(name).states().items()}

    # Records

    def advance(self, record: Record, phase: Phase, **changes: Any) -> Record:
        """Durably move a VM on from the phase that the caller knows; raises Superseded when it is elsewhere."""

        def change(current: Record) -> Record:
            _demand_same(record, current)
            return move(current, phase, self.now(), **changes)

        return self._changed(self.store.update(record.uuid, change))

    def note(self, record: Record, change: Any) -> Record:
        """Durably change a record within its phase; raises Superseded when it has left it."""

        def guarded(current: Record) -> Record:
            _demand_same(record, current)
            changed: Record = change(current)
            return changed

        return self._changed(self.store.update(record.uuid, guarded))

    def check_wanted(self, record: Record) -> None:
        """Raise Superseded when the step under way is no longer wanted."""
        _demand_same(record, self.store.read(record.uuid))

    def _changed(self, record: Record) -> Record:
        self.wake(record.uuid)
        return record

    # Helpers and the watcher

    def due(self, record: Record, domain: DomainState) -> bool:
        """Whether a step is due; a helper may be at it already."""
        return next_step(record, domain) is not None and wait_s(record, self.now()) == 0

    def fork_helper(self, uuid: str) -> None:
        """Let a helper of its own session do what is pending, unless one is at it. It survives whoever asked for it.

        The helper is born with the VM's work lock: there is no moment in which a second one could be forked.
        """
        lock = self.store.lock_for_helper(uuid)
        if lock is None:
            return
        argv = ["setsid", "--fork", sys.executable, "-m", "worker_service.helper", uuid, "--lock", str(lock)]
        if self._settings_path is not None:
            argv += ["--settings", str(self._settings_path)]
        try:
            with (self.store.folder(uuid) / "helper.log").open("ab") as log:
                subprocess.run(
                    argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd="/", pass_fds=(lock,), check=True
                )
        finally:
            os.close(lock)

    @property
    def wake_socket(self) -> Path:
        """Where the watcher listens for hints."""
        return self.settings.data_root / "watcher.sock"

    def wake(self, uuid: str) -> None:
        """Hint to the watcher that a VM changed. Nobody may be listening: its next tick sees it all the same."""
        with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as hint:
            hint.setblocking(False)
            hint.sendto(uuid.encode(), str(self.wake_socket))


def _demand_same(known: Record, current: Record) -> None:
    if (current.phase, current.shutdown_asked, current.generation) != (
        known.phase,
        known.shutdown_asked,
        known.generation,
    ):
        raise Superseded
