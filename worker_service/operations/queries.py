"""The verbs that only read: `plan`, `capabilities`, `agent_log`."""

from __future__ import annotations

from typing import Any

from worker_service.contract import NAME, Capabilities, Code, ImagePlan, Spec, describe_ends
from worker_service.core.errors import NotFound, Refused, SalternError
from worker_service.guest_agent import report
from worker_service.images.early_look import USES, look
from worker_service.operations import admission, validation
from worker_service.operations.common import from_what
from worker_service.operations.status_report import plain
from worker_service.state.context import WorkerContext
from worker_service.state.record import Phase, Record
from worker_service.transfer.access import PLACEHOLDER
from worker_service.transfer.registry import known_sources, known_targets, source, target
from worker_service.transfer.uri import blank_size, parse, place

Reply = dict[str, Any]


def plan(
    worker: WorkerContext, *, uuid: object = None, owner: object = None, origin: object = None, **parameters: Any
) -> Reply:
    """Return the effects of a `start` without starting: bytes to fetch, and whether the VM fits.

    A master names the VM by its `uuid`, and its `owner`, whose places may be others than those of the site.
    """
    spec = validation.parse_spec(parameters)
    identity = validation.canonical_uuid(uuid) if uuid not in (None, "") else None
    exists = _existing(worker, identity, spec.name)
    belongs_to = validation.owner(validation.optional_word("owner", owner)) or (exists.owner if exists else "")
    policy = worker.policy_of(belongs_to)
    spec = validation.checked_spec(spec, policy)
    saves = validation.origin(origin, spec, policy)
    worker.hypervisor(spec.hypervisor)
    for save_to in filter(None, (spec.hda_save_to, spec.hdb_save_to)):
        target(parse(save_to), policy).observe(place(parse(save_to)))
    # The images of a kept VM are in its disks.
    kept = exists is not None and exists.phase is Phase.KEPT
    to_plan = [] if kept else admission.images(admission.from_saves(spec, saves))
    images = [_image_plan(worker, disk_name, uri, belongs_to) for disk_name, uri in to_plan]
    to_fetch = sum({image.uri: image.size or 0 for image in images if not image.cached}.values())
    if exists is None and identity is None:
        validation.check_new_name(spec.name)
    obstacle = _obstacle(worker, spec, belongs_to, exists, to_fetch)
    message = f"It would be refused: {obstacle}"
    if obstacle is None:
        message = f"It would fetch {to_fetch >> 20} MiB and start{from_what(exists, saves)}. {describe_ends(spec)}"
    return {
        "success": True,
        "message": message,
        "code": None if obstacle is None else obstacle.code,
        "fits": obstacle is None,
        "bytes_to_fetch": to_fetch,
        "images": [plain(image) for image in images],
        "exists": exists.uuid if exists else None,
    }


def capabilities(worker: WorkerContext) -> Reply:
    """Return the hypervisors, URI schemes, networks and key of this worker."""
    isolated, isolation = worker.guest_isolation()
    found = {name: driver.capabilities() for name, driver in worker.hypervisors.items()}
    return {
        "success": True,
        "message": " ".join(f"{name}: {_summary(each)}" for name, each in found.items()),
        "hypervisors": {name: plain(each) for name, each in found.items()},
        "fetch": [*known_sources(), "blank"],
        "save": list(known_targets()),
        "networks": admission.allowed_networks(worker.settings, PLACEHOLDER),
        "fingerprint": worker.identity.fingerprint,
        "guest_isolation": {"works": isolated, "reason": isolation},
    }


def _summary(has: Capabilities) -> str:
    return has.problem or f"{has.version}, with {has.acceleration}: {has.reason}"


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
    uri, policy = parse(text), worker.policy_of(owner)
    reader = source(uri, policy)
    head = reader.head(uri)
    cached = look(uri, USES[disk_name], reader, head, worker.cache_of(owner), policy.max_virtual_gib)
    return ImagePlan(disk=disk_name, uri=str(uri), cached=cached, size=head.size)


def _obstacle(
    worker: WorkerContext, spec: Spec, owner: str, exists: Record | None, to_fetch: int
) -> SalternError | None:
    try:
        worker.require_supported(spec)
        _require_name(worker, spec.name, exists)
        admission.require_network(worker.settings, spec.network, owner)
        admission.require_network_here(worker, spec)
        admission.require_capacity(worker, spec, owner, own_uuid=exists.uuid if exists else None, to_fetch=to_fetch)
    except Refused as err:
        return err
    return None


def _require_name(worker: WorkerContext, name: str, exists: Record | None) -> None:
    """Raise Refused if another VM than this one has the name."""
    other = _existing(worker, None, name)
    if other is not None and (exists is None or other.uuid != exists.uuid):
        raise Refused(
            f"The name {name!r} is taken here by VM {other.uuid}. Choose another name, or destroy that VM.",
            code=Code.NAME_TAKEN,
        )


def _existing(worker: WorkerContext, identity: str | None, name: str) -> Record | None:
    """Return the VM with this uuid; without a uuid the one of this name."""
    try:
        if identity is not None:
            return worker.store.read(identity)
        return worker.store.find(name=name) if NAME.fullmatch(name) else None
    except NotFound:
        return None
