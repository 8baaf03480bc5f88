"""The verbs beside the VMs: what a start would do, what this worker can do."""

from __future__ import annotations

from typing import Any

import msgspec

from worker_service.contract import Spec
from worker_service.core.errors import NotFound, Refused
from worker_service.guest_agent import report
from worker_service.operations import admission, validation
from worker_service.operations.status_report import plain
from worker_service.state.context import HYPERVISORS, WorkerContext
from worker_service.transfer.registry import known_sources, known_targets, source
from worker_service.transfer.uri import blank_size, parse

Reply = dict[str, Any]


class ImagePlan(msgspec.Struct, frozen=True, kw_only=True):
    """What a start would do about one image. `size` in bytes, None where the source does not say."""

    disk: str
    uri: str
    cached: bool
    size: int | None


def plan(worker: WorkerContext, **parameters: Any) -> Reply:
    """What `start` with these parameters would do: bytes to fetch, whether it fits. Nothing is changed."""
    wanted = validation.spec(parameters, worker.settings.images)
    worker.hypervisor(wanted.hypervisor)
    images = [_image_plan(worker, disk_name, uri) for disk_name, uri in admission.images(wanted)]
    to_fetch = sum({image.uri: image.size or 0 for image in images if not image.cached}.values())
    exists = _exists(worker, wanted.name)
    why = _obstacle(worker, wanted, exists, to_fetch)
    message = f"It would fetch {to_fetch >> 20} MiB and start." if why is None else f"It would be refused: {why}"
    return {
        "success": True,
        "message": message,
        "fits": why is None,
        "bytes_to_fetch": to_fetch,
        "images": [plain(image) for image in images],
        "exists": exists,
    }


def capabilities(worker: WorkerContext) -> Reply:
    """What this worker can do, and with what."""
    accelerator, why = worker.acceleration()
    return {
        "success": True,
        "message": f"{', '.join(HYPERVISORS)} with {accelerator}: {why}",
        "hypervisors": {"kvm": {"acceleration": accelerator, "reason": why, "arches": ["x86_64", "i386"]}},
        "fetch": [*known_sources(), "blank"],
        "save": list(known_targets()),
        "networks": ["user", "none", "network=NAME", "bridge=NAME"],
    }


def agent_log(worker: WorkerContext, *, uuid: object = None, name: object = None) -> Reply:
    """What the agent in a VM's guest has reported, as lines for people."""
    record = worker.store.find(*validation.identity(uuid, name))
    log, _written = report.read(worker.store.folder(record.uuid) / report.LOG)
    lines = report.describe(report.parse(log))
    message = "The latest that its agent reported." if lines else "Nothing was heard of an agent in it."
    return {"success": True, "message": message, "uuid": record.uuid, "name": record.name, "lines": lines}


def _image_plan(worker: WorkerContext, disk_name: str, text: str) -> ImagePlan:
    if (size := blank_size(text)) is not None:
        return ImagePlan(disk=disk_name, uri=text, cached=True, size=size)
    uri = parse(text)
    head = source(uri, worker.settings.images).head(uri)
    return ImagePlan(disk=disk_name, uri=str(uri), cached=worker.cache.has(uri, head), size=head.size)


def _obstacle(worker: WorkerContext, wanted: Spec, exists: str | None, to_fetch: int) -> str | None:
    try:
        admission.require_capacity(worker, wanted, beside=exists, to_fetch=to_fetch)
    except Refused as err:
        return str(err)
    return None


def _exists(worker: WorkerContext, name: str) -> str | None:
    try:
        return worker.store.find(name=name).uuid
    except NotFound:
        return None
