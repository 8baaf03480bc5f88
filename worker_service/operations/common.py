"""Helpers of the commands to a VM: read the versions of save targets, start the helper, build the reply."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from worker_service.contract import KEEP
from worker_service.core.errors import HypervisorError
from worker_service.helper import launcher
from worker_service.hypervisor.base import ABSENT, DomainState
from worker_service.state.context import Superseded, WorkerContext
from worker_service.state.outside_changes import was_started
from worker_service.state.record import Phase, Record
from worker_service.steps.manifest import claim_of, version_to_replace
from worker_service.steps.running import note_start
from worker_service.transfer.uri import parse

Reply = dict[str, Any]


def known_domain(worker: WorkerContext, record: Record) -> DomainState:
    """Return the domain of a VM. A command that needs no libvirt goes on without it: then there is none."""
    try:
        return worker.domain(record)
    except HypervisorError:
        return ABSENT


def noted(worker: WorkerContext, record: Record, domain: DomainState) -> Record:
    """Return the record of a VM. One that somebody has started is up from now on."""
    if not was_started(record, domain):
        return record
    with suppress(Superseded):  # its helper has noted that just now
        note_start(worker, record)
    return worker.store.read(record.uuid)


def start_helper_and_notify(worker: WorkerContext, record: Record) -> None:
    """Start the VM's helper unless one runs, and let the watcher look at the VM."""
    launcher.start_helper(worker, record.uuid)
    worker.wake(record.uuid)


def read_target_versions(
    worker: WorkerContext, record: Record, save_to: Mapping[str, str | None], owner: str
) -> dict[str, str | None]:
    """Return what lies now where disks of a VM are to be saved, by disk, as far as the VM may replace it."""
    uris = {disk_name: parse(uri) for disk_name, uri in save_to.items() if uri and uri != KEEP}
    policy = worker.policy_of(owner)
    return {
        disk_name: version_to_replace(uri, policy, claim_of(record, disk_name, owner))
        for disk_name, uri in uris.items()
    }


def from_what(existing: Record | None, origin: Mapping[str, str]) -> str:
    """Return from what a VM starts, as the rest of a sentence; "" for its images."""
    if existing is not None and existing.phase is Phase.KEPT:
        return " from its kept disks"
    return f" from {', '.join(origin.values())}" if origin else ""


def reply(record: Record, message: str) -> Reply:
    """Return the contract's reply of success."""
    return {"success": True, "message": message, "uuid": record.uuid, "name": record.name}
