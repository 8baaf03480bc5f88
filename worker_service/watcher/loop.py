"""The watcher's loop: observe all VMs on each tick, and a single VM as soon as a hint names it.

Hints come from libvirt (a domain changed) and from helpers and interfaces (a record changed). Any of them may be lost.
The watcher fires an event for each change of status, and starts a helper for each due step that has none.
"""

from __future__ import annotations

import logging
import socket
import time
from collections.abc import Sequence
from contextlib import suppress
from datetime import timedelta
from typing import Final

import msgspec

from worker_service.contract import VMStatus, alive_tag, audit_tag, destroyed_tag, event_tag
from worker_service.core.errors import HypervisorError, NotFound, SalternError
from worker_service.helper import launcher
from worker_service.helper.prefetch import Orders
from worker_service.hypervisor.base import ABSENT, DomainState
from worker_service.images.cache import free_bytes
from worker_service.operations.status_report import plain, vm_status
from worker_service.state.bases import base_holders, bases_needed
from worker_service.state.context import WorkerContext
from worker_service.state.lifecycle import can_resume_after_enospc, is_forgettable, is_forgotten
from worker_service.state.observation import agent_log_stamp
from worker_service.state.outside_changes import moved_disks
from worker_service.state.record import Phase, Record
from worker_service.watcher.gc import sweep
from worker_service.watcher.signed_events import Fire

log = logging.getLogger("saltern.watcher")

_HEARTBEAT_S: Final = 15.0
_SWEEP_S: Final = 600.0
_HINT_BYTES: Final = 64
_GATHER_S: Final = 0.02
_LOG_S: Final = 0.5


class Watcher:
    """Observes the VMs of a worker and acts on their changes.

    Args:
        worker: the worker to watch.
        minion: the minion's id, part of each tag.
        fire: sends an event.
    """

    def __init__(self, worker: WorkerContext, minion: str, fire: Fire) -> None:
        self._worker = worker
        self._minion = minion
        self._fire = fire
        self._shown: dict[str, VMStatus] = {}
        self._logs: dict[str, tuple[int, float]] = {}
        self._last_heartbeat = float("-inf")
        self._last_sweep = float("-inf")

    def run(self) -> None:
        """Watch for ever. Raises only errors that need a restart."""
        hints = self._listen()
        sources = [
            driver.events(self._worker.wake, self.note_ended_by_host) for driver in self._worker.hypervisors.values()
        ]
        while True:
            for source in sources:
                source.ensure()
            self.look()
            self._heartbeat()
            deadline = time.monotonic() + self._worker.settings.tick_s
            while (left := deadline - time.monotonic()) > 0:
                # A guest's report gives no hint, so the logs of installing guests are checked more often.
                hinted = _gather(hints, min(left, _LOG_S) if self._logs else left)
                self.publish_audit()
                if uuids := (hinted - {""}) | self._reported():
                    self.look(uuids)

    def look(self, uuids: set[str] | None = None) -> None:
        """Run one pass over the given VMs, or over all. It may run at any time, twice, or late."""
        try:
            for record, domain in self._observe(uuids):
                try:
                    self._look_at(record, domain)
                except (SalternError, OSError):  # one broken VM does not hide the others
                    log.exception("VM %s could not be observed", record.uuid)
            self._notice_gone(uuids)
            if uuids is None:
                self._worker.store.sweep()
                self._sweep_old()
                Orders(self._worker).start_pending()
        except HypervisorError as err:
            log.warning("%s", err)

    def _observe(self, uuids: set[str] | None) -> list[tuple[Record, DomainState]]:
        if uuids is None:
            records = list(self._worker.store.all())
            return [pair for name in self._worker.hypervisors for pair in self._observe_all_of(name, records)]
        observed = []
        for uuid in uuids:
            with suppress(NotFound):
                record = self._worker.store.read(uuid)
                observed.append((record, self._worker.domain(record)))
        return observed

    def _observe_all_of(self, hypervisor: str, records: Sequence[Record]) -> list[tuple[Record, DomainState]]:
        """Return the VMs of one hypervisor. One that does not answer hides no VM of another."""
        own = [record for record in records if record.spec.hypervisor == hypervisor]
        try:
            domains = self._worker.hypervisor(hypervisor).states({record.uuid for record in own})
        except HypervisorError as err:
            log.warning("%s", err)
            return []
        return [(record, domains.get(record.uuid, ABSENT)) for record in own]

    def _reported(self) -> set[str]:
        """Return the VMs whose guest has reported since the last pass."""
        return {uuid for uuid, stamp in self._logs.items() if agent_log_stamp(self._worker.store, uuid) != stamp}

    def _look_at(self, record: Record, domain: DomainState) -> None:
        self._logs.pop(record.uuid, None)
        if record.installing and record.phase is Phase.UP:
            self._logs[record.uuid] = agent_log_stamp(self._worker.store, record.uuid)
        status = vm_status(self._worker, record, domain)
        if self._shown.get(record.uuid) != status:
            self._shown[record.uuid] = status
            self._fire(event_tag(self._minion, record.uuid, status.status), plain(status))
        if moved_disks(record, domain):
            self._note_moved_disks(record.uuid, domain)
        launcher.start_helper_if_due(self._worker, record, domain)
        if can_resume_after_enospc(domain, free_bytes(self._worker.store.root)):
            log.info("%s is resumed: its disk has space again", record.name)
            self._worker.resume(record)
        elif is_forgotten(record, domain):
            log.info("%s is resumed: the change of its CD has ended", record.name)
            self._worker.resume(record)
        if is_forgettable(record) and self._is_old(record):
            self._worker.store.remove(record)

    def _is_old(self, record: Record) -> bool:
        return self._worker.now() - record.phase_since > timedelta(seconds=self._worker.settings.keep_halted_s)

    def _notice_gone(self, uuids: set[str] | None) -> None:
        """Publish the destroyed VMs: shown before or hinted at, with only a tombstone left."""
        for uuid in (uuids or set()) | set(self._shown):
            generation = self._worker.store.tombstones.generation(uuid)
            if generation is None:
                continue
            with suppress(NotFound):
                self._worker.store.read(uuid)
                continue
            self._shown.pop(uuid, None)
            self._logs.pop(uuid, None)
            self._fire(destroyed_tag(self._minion, uuid), {"uuid": uuid, "generation": generation})

    def publish_audit(self) -> None:
        """Publish what was done through interfaces that no Salt master sees."""
        for event in self._worker.audit_spool.take():
            self._fire(audit_tag(self._minion), plain(event))

    def note_ended_by_host(self, uuid: str) -> None:
        """Record that the host ended a VM. If this is lost, the halt cause is less exact: the guest's own shutdown."""

        def change(record: Record) -> Record:
            return msgspec.structs.replace(record, ended_by_host=True) if record.phase is Phase.UP else record

        try:
            self._worker.store.update(uuid, change)
        except NotFound:
            log.debug("the host ended domain %s, which is foreign", uuid)
        except OSError:
            log.exception("the record of VM %s, which the host ended, could not be changed", uuid)

    def _note_moved_disks(self, uuid: str, domain: DomainState) -> None:
        """Record where the disks of a running VM are now. Once it is off, that can be in doubt."""

        def change(record: Record) -> Record:
            disks = {**record.disks, **moved_disks(record, domain)}
            return msgspec.structs.replace(record, disks=disks) if record.phase is Phase.UP else record

        changed = self._worker.store.update(uuid, change)
        log.info(
            "the disks of %s are now %s", changed.name, {name: d.layers(name) for name, d in changed.disks.items()}
        )

    def _heartbeat(self) -> None:
        if time.monotonic() - self._last_heartbeat >= _HEARTBEAT_S:
            self._last_heartbeat = time.monotonic()
            self._keep_cache_small()
            # The key lets an administrator enroll this worker. Only the comparison of its fingerprint makes it trusted.
            self._fire(
                alive_tag(self._minion), {"vmachines": len(self._shown), "key": self._worker.identity.fingerprint}
            )

    def _sweep_old(self) -> None:
        if time.monotonic() - self._last_sweep >= _SWEEP_S:
            self._last_sweep = time.monotonic()
            try:
                sweep(self._worker.store.root, time.time())
            except OSError:
                log.exception("old files could not be removed")

    def _keep_cache_small(self) -> None:
        try:
            in_use = self._worker.cache.in_use(*bases_needed(base_holders(self._worker.store)))
            for entry in self._worker.cache.clean(in_use):
                log.info("image %s was removed from the cache, which was over its limit", entry.sha256)
        except OSError:
            log.exception("the cache could not be kept within its limit")

    def _listen(self) -> socket.socket:
        path = self._worker.wake_socket
        path.unlink(missing_ok=True)
        hints = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        hints.bind(str(path))
        path.chmod(0o600)
        return hints


def _gather(hints: socket.socket, wait_s: float) -> set[str]:
    """Wait for the first hint, then collect those close behind it: changes come in bursts. Return the uuids."""
    uuids: set[str] = set()
    hints.settimeout(wait_s)
    with suppress(TimeoutError, BlockingIOError):
        while True:
            uuids.add(hints.recv(_HINT_BYTES).decode(errors="replace"))
            hints.settimeout(_GATHER_S)
    return uuids
