"""The context of a worker: settings, records, images and hypervisors, for all interfaces and processes."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import msgspec

from worker_service.contract import AuditEvent, Capabilities, Code, Spec, unsupported, unsupported_while_on
from worker_service.contract.plans import WhileOn
from worker_service.core import host
from worker_service.core.errors import HypervisorError, Refused
from worker_service.core.host import User
from worker_service.core.settings import OwnerPolicy, Settings, load
from worker_service.hypervisor.base import DomainState, Hypervisor
from worker_service.hypervisor.registry import driver_class
from worker_service.images.cache import Cache
from worker_service.state.audit_spool import AuditSpool
from worker_service.state.identity import Identity
from worker_service.state.record import Phase, Record, move
from worker_service.state.record_store import RecordStore


class Superseded(Exception):
    """The record changed during a step, which is therefore no longer needed."""


class WorkerContext:
    """The objects that operations, helpers and the watcher share.

    Args:
        settings_path: the settings file, or None for the default places of `settings.load`.
    """

    def __init__(self, settings_path: str | Path | None = None) -> None:
        self._settings_path = settings_path
        self.settings: Settings = load(settings_path)
        self.store = RecordStore(self.settings.data_root)
        self.cache = self.cache_of("")
        self.audit_spool = AuditSpool(self.settings.data_root)
        self.identity = Identity(self.settings.data_root)
        gid = self.qemu_user.gid if self.qemu_user else -1
        self.store.prepare(gid)
        self.cache.prepare(gid)

    # Owners

    def policy_of(self, owner: str) -> OwnerPolicy:
        """Return the policy about images and targets as the VMs of an owner have it; `""` is the site itself."""
        return self.settings.images.for_owner(owner)

    def cache_of(self, owner: str) -> Cache:
        """Return the cache as the VMs of an owner may use it."""
        return Cache(self.settings.data_root, self.policy_of(owner), self.qemu_user)

    @staticmethod
    def now() -> datetime:
        """Return the time of the wall clock, in UTC."""
        return datetime.now(UTC)

    @cached_property
    def qemu_user(self) -> User | None:
        """The user that QEMU runs as. None if there is none, or if this process has no right to act for it."""
        return host.user(self.settings.qemu_user) if os.geteuid() == 0 else None

    # Hypervisors

    @cached_property
    def hypervisors(self) -> Mapping[str, Hypervisor]:
        """The drivers of this worker by name."""
        return {name: driver_class(name)(self.settings, self.qemu_user) for name in self.settings.hypervisors}

    def hypervisor(self, name: str) -> Hypervisor:
        """Return the driver of a hypervisor; raises Refused for one that this worker does not have."""
        if name not in self.settings.hypervisors:
            raise Refused(
                f"This worker has no {name} driver. Use hypervisor {' or '.join(self.settings.hypervisors)}, or add it "
                "to `hypervisors` in the worker's settings.",
                code=Code.UNSUPPORTED,
            )
        return self.hypervisors[name]

    def capabilities(self, record: Record) -> Capabilities:
        """Return what the hypervisor of a VM can do."""
        return self.hypervisor(record.spec.hypervisor).capabilities()

    def require_can(self, record: Record, what: WhileOn) -> None:
        """Raise Refused if the hypervisor of a VM that is on cannot do that, with what to do instead."""
        hypervisor = record.spec.hypervisor
        if lack := unsupported_while_on(what, hypervisor, self.capabilities(record)):
            raise Refused(f"{lack}.", code=Code.UNSUPPORTED)

    def require_supported(self, spec: Spec) -> None:
        """Raise Refused for a VM that its hypervisor cannot run here, with what to use instead."""
        self.hypervisor(spec.hypervisor)
        if lack := unsupported(spec, {name: driver.capabilities() for name, driver in self.hypervisors.items()}):
            raise Refused(f"This worker {lack}.", code=Code.UNSUPPORTED)

    def guest_isolation(self) -> tuple[bool, str]:
        """Return whether guests on the network `user` are kept from this host, and the reason; tried at each call."""
        found = [driver.isolation() for driver in self.hypervisors.values()]
        return all(works for works, _reason in found), " ".join(dict.fromkeys(reason for _works, reason in found))

    def domain(self, record: Record) -> DomainState:
        """Return the hypervisor's state of a VM; raises HypervisorError."""
        return self.hypervisor(record.spec.hypervisor).state(record.uuid)

    def domains(self, records: Collection[Record]) -> Mapping[str, DomainState]:
        """Return the states of all domains by uuid, with foreign ones. `records`: all VMs.

        Raises HypervisorError if a hypervisor that has VMs does not answer: without their states they would look gone.
        """
        found: dict[str, DomainState] = {}
        own = {name: {record.uuid for record in records if record.spec.hypervisor == name} for name in self.hypervisors}
        if strange := {record.spec.hypervisor for record in records} - own.keys():
            raise HypervisorError(
                f"There are VMs of {' and '.join(sorted(strange))} here, which `hypervisors` in the worker's settings "
                "does not name. Add it there."
            )
        for name, driver in self.hypervisors.items():
            try:
                found |= driver.states(own[name])
            except HypervisorError:
                if own[name]:
                    raise
        return found

    def resume(self, record: Record) -> None:
        """Resume a paused VM. It is recorded first, so that the pause does not count as lack of progress."""
        if record.installing:
            self.store.update(record.uuid, lambda current: msgspec.structs.replace(current, resumed_at=self.now()))
        self.hypervisor(record.spec.hypervisor).resume(record.uuid)

    # Records

    def advance(self, record: Record, phase: Phase, **changes: Any) -> Record:
        """Move a VM durably from the phase of the given record; raises Superseded if the VM has left it."""
        return self.note(record, lambda current: move(current, phase, self.now(), **changes))

    def note(self, record: Record, change: Callable[[Record], Record]) -> Record:
        """Change a record durably within its phase; raises Superseded if the VM has left the phase."""

        def guarded(current: Record) -> Record:
            _require_same(record, current)
            return change(current)

        changed = self.store.update(record.uuid, guarded)
        self.wake(record.uuid)
        return changed

    def require_current(self, record: Record) -> None:
        """Raise Superseded if the step that works on this record is no longer needed."""
        _require_same(record, self.store.read(record.uuid))

    # Helpers and the watcher

    @property
    def settings_argument(self) -> list[str]:
        """The command-line arguments with which another process reads the same settings."""
        return [] if self._settings_path is None else ["--settings", str(self._settings_path)]

    @property
    def wake_socket(self) -> Path:
        """The socket on which the watcher receives hints."""
        return self.settings.data_root / "watcher.sock"

    def wake(self, uuid: str) -> None:
        """Send the watcher a hint that a VM changed, or with "" another change. Without it, the next tick is enough."""
        with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as hint:
            hint.setblocking(False)
            hint.sendto(uuid.encode(), str(self.wake_socket))

    def record_audit_event(self, event: AuditEvent | None) -> None:
        """Spool an audit event, which the watcher fires for the masters. Ignore None."""
        if event is not None:
            self.audit_spool.append(event)
            self.wake("")


def _require_same(known: Record, current: Record) -> None:
    for each in ("phase", "shutdown_asked", "generation", "spec", "owner"):
        if getattr(known, each) != getattr(current, each):
            raise Superseded
