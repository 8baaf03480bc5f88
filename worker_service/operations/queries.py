"""The verbs that only read: `plan`, `capabilities`, `agent_log`."""

from __future__ import annotations

from typing import Any

import msgspec

from worker_service.contract import NAME, Spec
from worker_service.core.errors import NotFound, Refused
from worker_service.guest_agent import report
from worker_service.operations import admission, validation
from worker_service.operations.status_report import plain
from worker_service.state.context import HYPERVISORS, WorkerContext
from worker_service.state.record import Record
from worker_service.transfer.access import PLACEHOLDER
from worker_service.transfer.registry import known_sources, known_targets, source, target
from worker_service.transfer.uri import blank_size, parse, place

Reply = dict[str, Any]


class ImagePlan(msgspec.Struct, frozen=True, kw_only=True):
    """The plan for one image. `size` is in bytes, or None if the source does not say."""

    disk: str
    uri: str
    cached: bool
    size: int | None


def plan(worker: WorkerContext, **parameters: Any) -> Reply:
    """Return the effects of a `start` without starting: bytes to fetch, and whether the VM fits."""
    spec = validation.parse_spec(parameters)
    exists = _existing(worker, spec.name)
    owner = exists.owner if exists else ""
    policy = worker.policy_of(owner)
    spec = validation.checked_spec(spec, policy)
    worker.hypervisor(spec.hypervisor)
    for save_to in filter(None, (spec.hda_save_to, spec.hdb_save_to)):
        target(parse(save_to), policy).observe(place(parse(save_to)))
    images = [_image_plan(worker, disk_name, uri, owner) for disk_name, uri in admission.images(spec)]
    to_fetch = sum({image.uri: image.size or 0 for image in images if not image.cached}.values())
    if exists is None:
        validation.check_new_name(spec.name)
    obstacle = _obstacle(worker, spec, owner, exists, to_fetch)
    message = (
        f"It would fetch {to_fetch >> 20} MiB and start." if obstacle is None else f"It would be refused: {obstacle}"
    )
    return {
        "success": True,
        "message": message,
        "fits": obstacle is None,
        "bytes_to_fetch": to_fetch,
        "images": [plain(image) for image in images],
        "exists": exists.uuid if exists else None,
    }


def capabilities(worker: WorkerContext) -> Reply:
    """Return the hypervisors, URI schemes, networks and key of this worker."""
    accelerator, reason = worker.acceleration()
    isolated, isolation = worker.guest_isolation()
    return {
        "success": True,
        "message": f"{', '.join(HYPERVISORS)} with {accelerator}: {reason}",
        "hypervisors": {"kvm": {"acceleration": accelerator, "reason": reason, "arches": ["x86_64", "i386"]}},
        "fetch": [*known_sources(), "blank"],
        "save": list(known_targets()),
        "networks": admission.allowed_networks(worker.settings, PLACEHOLDER),
        "fingerprint": worker.identity.fingerprint,
        "guest_isolation": {"works": isolated, "reason": isolation},
    }


def agent_log(worker: WorkerContext, *, uuid: object = None, name: object = None) -> Reply:
    """Return the report of the agent in a VM's guest, as lines for people."""
    record = worker.store.find(*validation.identity(uuid, name))
    log, _written = report.read(worker.store.folder(record.uuid) / report.LOG)
    lines = report.describe(report.parse(log))
    message = "The last lines of its agent's report." if lines else "No agent in it has reported yet."
    return {"success": True, "message": message, "uuid": record.uuid, "name": record.name, "lines": lines}


def _image_plan(worker: WorkerContext, disk_name: str, text: str, owner: str) -> ImagePlan:
    if (size := blank_size(text)) is not None:
        return ImagePlan(disk=disk_name, uri=text, cached=True, size=size)
    uri = parse(text)
    head = source(uri, worker.policy_of(owner)).head(uri)
    return ImagePlan(disk=disk_name, uri=str(uri), cached=worker.cache_of(owner).has(uri, head), size=head.size)


def _obstacle(worker: WorkerContext, spec: Spec, owner: str, exists: Record | None, to_fetch: int) -> str | None:
    try:
        admission.require_network(worker.settings, spec.network, owner)
        admission.require_capacity(worker, spec, owner, own_uuid=exists.uuid if exists else None, to_fetch=to_fetch)
    except Refused as err:
        return str(err)
    return None


def _existing(worker: WorkerContext, name: str) -> Record | None:
    try:
        return worker.store.find(name=name) if NAME.fullmatch(name) else None
    except NotFound:
        return None
