"""What the commands to a VM share: the generation that holds, the look at targets, the helper that is to go on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from worker_service.contract import Code
from worker_service.core.errors import Refused
from worker_service.helper import launcher
from worker_service.state.context import WorkerContext
from worker_service.state.record import Record, with_disk
from worker_service.transfer.registry import target
from worker_service.transfer.uri import parse

Reply = dict[str, Any]


def check_generation(current: Record, generation: int | None) -> int:
    """The generation that holds from now on; raises Refused for a command that comes too late."""
    if generation is not None and generation < current.generation:
        raise Refused(
            f"This command is older (generation {generation}) than what {current.name!r} was last told "
            f"({current.generation}). Nothing was done.",
            code=Code.STALE,
        )
    return current.generation if generation is None else generation


def start_helper_and_notify(worker: WorkerContext, record: Record) -> None:
    """See to it that somebody works on a VM, and that the watcher looks at it."""
    launcher.start_helper(worker, record.uuid)
    worker.wake(record.uuid)


def read_target_versions(worker: WorkerContext, save_to: Mapping[str, str | None]) -> dict[str, str | None]:
    """What lies now where disks are to be saved from now on, by slot."""
    uris = {disk_name: parse(uri) for disk_name, uri in save_to.items() if uri}
    return {disk_name: target(uri, worker.settings.images).observe(uri) for disk_name, uri in uris.items()}


def with_target_versions(record: Record, seen: Mapping[str, str | None]) -> Record:
    """A record that knows this of the targets of its disks."""
    for disk_name in seen.keys() & record.disks.keys():
        record = with_disk(record, disk_name, target_version=seen[disk_name])
    return record


def reply(record: Record, message: str) -> Reply:
    """The contract's reply of success."""
    return {"success": True, "message": message, "uuid": record.uuid, "name": record.name}
