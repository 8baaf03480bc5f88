"""The verbs beside the VMs: what a start would do, what this worker can do, what its cache holds."""

from __future__ import annotations

from typing import Any

import msgspec

from worker_service import requests
from worker_service.contract import Spec
from worker_service.errors import NotFound, Refused
from worker_service.images.schemes import known_sources, known_targets, source
from worker_service.images.uri import blank_size, parse
from worker_service.reports import demand_capacity, plain
from worker_service.worker import HYPERVISORS, Worker

Reply = dict[str, Any]


class ImagePlan(msgspec.Struct, frozen=True, kw_only=True):
    """What a start would do about one image. `size` in bytes, None where the source does not say."""

    disk: str
    uri: str
    cached: bool
    size: int | None


def plan(worker: Worker, **parameters: Any) -> Reply:
    """What `start` with these parameters would do: bytes to fetch, whether it fits. Nothing is changed."""
    wanted = requests.spec(parameters, worker.settings.images)
    worker.hypervisor(wanted.hypervisor)
    images = [_image_plan(worker, slot, uri) for slot, uri in _images(wanted)]
    to_fetch = sum(image.size or 0 for image in images if not image.cached)
    why = _obstacle(worker, wanted)
    message = f"It would fetch {to_fetch >> 20} MiB and start." if why is None else f"It would be refused: {why}"
    return {
        "success": True,
        "message": message,
        "fits": why is None,
        "bytes_to_fetch": to_fetch,
        "images": [plain(image) for image in images],
        "exists": _exists(worker, wanted.name),
    }


def capabilities(worker: Worker) -> Reply:
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


def cache(worker: Worker) -> Reply:
    """The images in the cache, with who uses them."""
    users: dict[str, list[str]] = {}
    for record in worker.store.all():
        for digest in worker.cache.in_use([record]):
            users.setdefault(digest, []).append(record.name)
    entries = worker.cache.entries()
    images = [{**plain(entry), "used_by": users.get(entry.sha256, [])} for entry in entries]
    total = sum(entry.size for entry in entries)
    return {"success": True, "message": f"{len(images)} images, {total >> 20} MiB.", "images": images, "size": total}


def cache_clean(worker: Worker, *, preview: object = False) -> Reply:
    """Remove the images that no VM uses; with `preview` only tell which. What is too much goes by itself anyway."""
    only_tell = requests.flag(preview)
    removed = worker.cache.clean(worker.cache.in_use(worker.store.all()), preview=only_tell, keep_bytes=0)
    size = sum(entry.size for entry in removed)
    did = "would be removed" if only_tell else "were removed"
    return {
        "success": True,
        "message": f"{len(removed)} images, {size >> 20} MiB, {did}.",
        "images": [plain(entry) for entry in removed],
        "size": size,
    }


def _images(wanted: Spec) -> list[tuple[str, str]]:
    named = (("hda", wanted.hda_image), ("hdb", wanted.hdb_image), ("cd", wanted.cd_image))
    return [(slot, uri) for slot, uri in named if uri]


def _image_plan(worker: Worker, slot: str, text: str) -> ImagePlan:
    if (size := blank_size(text)) is not None:
        return ImagePlan(disk=slot, uri=text, cached=True, size=size)
    uri = parse(text)
    head = source(uri, worker.settings.images).head(uri)
    return ImagePlan(disk=slot, uri=str(uri), cached=worker.cache.has(uri, head), size=head.size)


def _obstacle(worker: Worker, wanted: Spec) -> str | None:
    try:
        requests.refuse_agent(wanted)
        demand_capacity(worker, wanted)
    except Refused as err:
        return str(err)
    return None


def _exists(worker: Worker, name: str) -> str | None:
    try:
        return worker.store.find(name=name).uuid
    except NotFound:
        return None
