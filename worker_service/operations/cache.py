"""The verbs about the cache: what it holds, what is to come, what stays, what goes."""

from __future__ import annotations

from typing import Any

from worker_service.contract import Code
from worker_service.core.errors import BadRequest, NotFound, Refused
from worker_service.helper.prefetch import Orders
from worker_service.operations import validation
from worker_service.operations.status_report import plain
from worker_service.state.bases import bases_needed
from worker_service.state.context import WorkerContext
from worker_service.transfer.uri import blank_size, parse

Reply = dict[str, Any]


def cache(worker: WorkerContext) -> Reply:
    """The images in the cache, with who uses them, and those that are to come."""
    users: dict[str, list[str]] = {}
    for record in worker.holders():
        for digest in worker.cache.in_use(*bases_needed([record])):
            users.setdefault(digest, []).append(record.name)
    entries = worker.cache.entries()
    images = [{**plain(entry), "used_by": users.get(entry.sha256, [])} for entry in entries]
    total = sum(entry.size for entry in entries)
    orders = Orders(worker)
    orders.start_pending()
    coming = orders.report()
    message = f"{len(images)} images, {total >> 20} MiB" + (f"; {len(coming)} to come." if coming else ".")
    return {"success": True, "message": message, "images": images, "size": total, "prefetching": coming}


def cache_clean(worker: WorkerContext, *, preview: object = False) -> Reply:
    """Remove the images that no VM uses and nobody pinned; with `preview` only tell which.

    What is too much goes by itself anyway. What could not be prefetched is forgotten with it.
    """
    only_tell = validation.flag(preview)
    if not only_tell:
        Orders(worker).forget_given_up()
    removed = worker.cache.clean(worker.cache.in_use(*bases_needed(worker.holders())), preview=only_tell, keep_bytes=0)
    size = sum(entry.size for entry in removed)
    did = "would be removed" if only_tell else "were removed"
    return {
        "success": True,
        "message": f"{len(removed)} images, {size >> 20} MiB, {did}.",
        "images": [plain(entry) for entry in removed],
        "size": size,
    }


def cache_prefetch(worker: WorkerContext, *, uri: object = None, pin: object = False, cancel: object = False) -> Reply:
    """Fetch an image into the cache before a VM wants it: durable when answered, in the background; `cancel` ends that.

    `cache` shows how far it is. With `pin` it stays there until it is unpinned.
    """
    text = str(uri or "")
    orders = Orders(worker)
    if validation.flag(cancel):
        if not orders.cancel(text):
            raise NotFound(f"{parse(text)} is not being prefetched. `vmachines.cache` shows what is.")
        return {"success": True, "message": "It is cancelled.", "uri": str(parse(text))}
    if blank_size(text) is not None:
        raise BadRequest(f"{text} is made here when it is needed. Give the URI of an image.")
    parse(text)  # also where it is empty
    validation.check_image(text, worker.settings.images)
    orders.place(text, pin=validation.flag(pin))
    return {"success": True, "message": "It is being fetched; `cache` shows how far it is.", "uri": str(parse(text))}


def cache_pin(worker: WorkerContext, *, uri: object = None, sha256: object = None) -> Reply:
    """Let an image stay in the cache, whoever cleans."""
    digest = _digest(worker, uri, sha256)
    worker.cache.pin(digest)
    return {"success": True, "message": "It stays until it is unpinned.", "sha256": digest}


def cache_unpin(worker: WorkerContext, *, uri: object = None, sha256: object = None) -> Reply:
    """Let an image be cleaned again when no VM uses it."""
    digest = _digest(worker, uri, sha256)
    worker.cache.unpin(digest)
    return {"success": True, "message": "It goes like all others when no VM uses it.", "sha256": digest}


def _digest(worker: WorkerContext, uri: object, sha256: object) -> str:
    """The base that is meant, by its digest or by a URI that it was fetched from."""
    if not uri and not sha256:
        raise BadRequest("Which image? Give uri or sha256.")
    text = parse(str(uri)).text if uri else None
    found = [e.sha256 for e in worker.cache.entries() if str(sha256 or "") == e.sha256 or (text and text in e.uris)]
    if not found:
        raise NotFound(f"{sha256 or text} is not in the cache. `vmachines.cache` shows what is; prefetch fetches it.")
    if len(found) > 1:
        raise Refused(f"{text} means several images here. Give the sha256 of one.", code=Code.CONFLICT)
    return found[0]
