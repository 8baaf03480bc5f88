"""One worker: its settings, records, images and hypervisors in one hand, for all doors alike."""

from __future__ import annotations

import socket
from collections.abc import Iterator, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import msgspec

from worker_service.contract import AuditEvent, Code, HaltCause
from worker_service.core import host
from worker_service.core.errors import Refused
from worker_service.core.settings import Settings, load
from worker_service.guest_agent import progress, report
from worker_service.guest_agent.readiness import AWAITED, Readiness, State, judge
from worker_service.hypervisor.base import DomainState, Hypervisor, Power
from worker_service.images.cache import Cache
from worker_service.state.audit_spool import AuditSpool
from worker_service.state.lifecycle import Evidence
from worker_service.state.record import Phase, Record, move
from worker_service.state.record_store import RecordStore

HYPERVISORS: Final = ("kvm",)


class Superseded(Exception):
    """The record went on under the hands of a step: what it was doing is no longer wanted."""


class WorkerContext:
    """Everything that operations, helpers and the watcher share.

    Args:
        settings_path: the settings file; None looks where `settings.load` says.
    """

    def __init__(self, settings_path: str | Path | None = None) -> None:
        self._settings_path = settings_path
        self.settings: Settings = load(settings_path)
        self.store = RecordStore(self.settings.data_root)
        self.cache = Cache(self.settings.data_root, self.settings.images)
        self.audit_spool = AuditSpool(self.settings.data_root)
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

        settings = self.settings

        def accelerated() -> bool:
            return self.acceleration()[0] == "kvm"

        return Kvm(settings.libvirt_uri, accelerated, settings.libvirt_log_folder, settings.libvirt_timeout_s)

    def acceleration(self) -> tuple[str, str]:
        """`kvm` or `tcg`, whichever guests get here, and a sentence that says why. Proved once a boot of the host."""
        from worker_service.hypervisor import acceleration  # noqa: PLC0415 - as above

        proof = self.settings.data_root / "acceleration.json"
        chosen, why = acceleration.choose(self.settings.acceleration, lambda: acceleration.cached_proof(proof))
        return chosen.value, why

    def domain(self, record: Record) -> DomainState:
        """What the hypervisor says of a VM now; raises HypervisorError."""
        return self.hypervisor(record.spec.hypervisor).state(record.uuid)

    def evidence(self, record: Record, domain: DomainState) -> Evidence:
        """What is known of a VM's halt beside the domain's state; the log is read only where libvirt has forgotten."""
        forgotten = domain.power is Power.OFF and domain.cause is None
        driver = self.hypervisor(record.spec.hypervisor)
        return Evidence(
            host_boot=host.boot_id(),
            host_stopping=domain.cause is HaltCause.GUEST and host.stopping(),
            logged=driver.logged_end(record.uuid, record.name) if forgotten else None,
        )

    def domains(self) -> Mapping[str, DomainState]:
        """What the hypervisors say of all domains, foreign ones too; raises HypervisorError."""
        return {uuid: state for name in HYPERVISORS for uuid, state in self.hypervisor(name).states().items()}

    def readiness(self, record: Record, domain: DomainState) -> Readiness:
        """How far the guest of a VM that is on is with what was asked of it. Raises HypervisorError."""
        if record.phase is not Phase.UP or not record.installing:
            return AWAITED
        folder = self.store.folder(record.uuid)
        log, written = report.read(folder / report.LOG)
        said = report.fold(record.spec.soft_list, report.parse(log))
        moved = progress.changed_at(folder, record.instance_id, said, written)
        times = [record.phase_since, record.resumed_at or record.phase_since, datetime.fromtimestamp(moved, UTC)]

        def judged(*, guest_agent: bool) -> Readiness:
            return judge(
                said,
                guest_agent=guest_agent,
                since=max(times),
                limit_s=self.settings.install_limit_s,
                now=self.now(),
            )

        verdict = judged(guest_agent=False)
        if verdict.state is State.READY or said.up or domain.power is not Power.RUNNING:
            return verdict
        return judged(guest_agent=self.hypervisor(record.spec.hypervisor).guest_agent_answers(record.uuid))

    def resume(self, record: Record) -> None:
        """Let a paused VM run on. Written down first: the time in which it was paused is no lack of progress."""
        if record.installing:
            self.store.update(record.uuid, lambda current: msgspec.structs.replace(current, resumed_at=self.now()))
        self.hypervisor(record.spec.hypervisor).resume(record.uuid)

    def agent_log_stamp(self, uuid: str) -> tuple[int, float]:
        """Changes whenever the guest of a VM reports something."""
        with suppress(OSError):
            seen = (self.store.vms / uuid / report.LOG).stat()
            return seen.st_size, seen.st_mtime
        return 0, 0.0

    # Records

    def holders(self) -> Iterator[Record]:
        """The records of all whose disks may stand on bases, those too that were destroyed and left unsaved disks."""
        yield from self.store.all()
        for _, record in self.store.destroyed_unsaved():
            yield msgspec.structs.replace(record, unsaved=True)  # older versions did not say so

    def advance(self, record: Record, phase: Phase, **changes: Any) -> Record:
        """Durably move a VM on from the phase that the caller knows; raises Superseded when it is elsewhere."""

        def change(current: Record) -> Record:
            _require_same(record, current)
            return move(current, phase, self.now(), **changes)

        return self._changed(self.store.update(record.uuid, change))

    def note(self, record: Record, change: Any) -> Record:
        """Durably change a record within its phase; raises Superseded when it has left it."""

        def guarded(current: Record) -> Record:
            _require_same(record, current)
            changed: Record = change(current)
            return changed

        return self._changed(self.store.update(record.uuid, guarded))

    def check_wanted(self, record: Record) -> None:
        """Raise Superseded when the step under way is no longer wanted."""
        _require_same(record, self.store.read(record.uuid))

    def _changed(self, record: Record) -> Record:
        self.wake(record.uuid)
        return record

    # Helpers and the watcher

    @property
    def settings_argument(self) -> list[str]:
        """What makes a process of ours read the same settings."""
        return [] if self._settings_path is None else ["--settings", str(self._settings_path)]

    @property
    def wake_socket(self) -> Path:
        """Where the watcher listens for hints."""
        return self.settings.data_root / "watcher.sock"

    def wake(self, uuid: str) -> None:
        """Hint to the watcher that a VM changed, or, with "", that something else did.

        Nobody may be listening: its next tick sees it all the same.
        """
        with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as hint:
            hint.setblocking(False)
            hint.sendto(uuid.encode(), str(self.wake_socket))

    def record_audit_event(self, deed: AuditEvent | None) -> None:
        """Let the watcher tell masters of what was done through a door that none of them sees; None: nothing was."""
        if deed is not None:
            self.audit_spool.note(deed)
            self.wake("")


def _require_same(known: Record, current: Record) -> None:
    for each in ("phase", "shutdown_asked", "generation", "spec"):
        if getattr(known, each) != getattr(current, each):
            raise Superseded
