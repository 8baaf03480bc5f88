"""The verbs of the image cache: list, clean, prefetch, pin, unpin."""

from __future__ import annotations

from typing import Any, Final

from worker_service.contract import Code
from worker_service.core.errors import BadRequest, NotFound, Refused, SalternError
from worker_service.core.settings import OwnerPolicy
from worker_service.helper.prefetch import Orders
from worker_service.images.fetch_notes import FetchNote
from worker_service.operations import validation
from worker_service.operations.status_report import plain
from worker_service.state.bases import base_holders, bases_needed
from worker_service.state.context import WorkerContext
from worker_service.transfer.access import file_root
from worker_service.transfer.registry import check_source
from worker_service.transfer.uri import blank_size, parse

Reply = dict[str, Any]
_ANY_OWNER: Final = "?"
"""An owner that no account can be: what is open to it is open to all."""


def cache(worker: WorkerContext) -> Reply:
    """Return the cached images, with the VMs that use them, and the images that are being prefetched."""
    used_by: dict[str, list[str]] = {}
    for record in base_holders(worker.store):
        for digest in worker.cache.in_use(*bases_needed([record])):
            used_by.setdefault(digest, []).append(record.name)
    entries, sources, any_owner = worker.cache.entries(), worker.cache.sources(), worker.policy_of(_ANY_OWNER)
    images = [
        {
            **plain(entry),
            **_note(worker, entry.sha256),
            "used_by": used_by.get(entry.sha256, []),
            "sources": [_source(note, any_owner) for note in sources.get(entry.sha256, [])],
        }
        for entry in entries
    ]
    total = sum(entry.size for entry in entries)
    orders = Orders(worker)
    orders.start_pending()
    pending = orders.report()
    message = f"{len(images)} images, {total >> 20} MiB" + (f"; {len(pending)} to come." if pending else ".")
    return {"success": True, "message": message, "images": images, "size": total, "prefetching": pending}


def cache_clean(worker: WorkerContext, *, preview: object = False) -> Reply:
    """Remove the images that no VM uses and that are not pinned. With `preview` only list them.

    The watcher keeps the cache within its limit without this verb. Failed prefetches are forgotten as well.
    """
    only_list = validation.flag(preview)
    if not only_list:
        Orders(worker).forget_given_up()
    removed = worker.cache.clean(
        worker.cache.in_use(*bases_needed(base_holders(worker.store))), preview=only_list, keep_bytes=0
    )
    size = sum(entry.size for entry in removed)
    outcome = "would be removed" if only_list else "were removed"
    return {
        "success": True,
        "message": f"{len(removed)} images, {size >> 20} MiB, {outcome}.",
        "images": [plain(entry) for entry in removed],
        "size": size,
    }


def cache_prefetch(worker: WorkerContext, *, uri: object = None, pin: object = False, cancel: object = False) -> Reply:
    """Fetch an image into the cache in the background, before a VM needs it. `cancel` stops that.

    The order is durable when the verb answers, and `cache` shows the progress. With `pin` the image stays until it is
    unpinned.
    """
    text = validation.optional_word("uri", uri)
    orders = Orders(worker)
    if validation.flag(cancel):
        if not orders.cancel(text):
            raise NotFound(f"{parse(text)} is not being prefetched. `vmachines.cache` shows the prefetches.")
        return {"success": True, "message": "The prefetch is cancelled.", "uri": str(parse(text))}
    if blank_size(text) is not None:
        raise BadRequest(f"{text} is created on the worker, not fetched. Give the URI of an image.")
    parse(text)  # refuses an empty URI as well
    validation.check_image(text, worker.policy_of(""))
    orders.place(text, pin=validation.flag(pin))
    return {
        "success": True,
        "message": "The image is being fetched; `cache` shows the progress.",
        "uri": str(parse(text)),
    }


def cache_pin(worker: WorkerContext, *, uri: object = None, sha256: object = None) -> Reply:
    """Pin an image: it stays in the cache until it is unpinned."""
    digest = _digest(worker, uri, sha256)
    worker.cache.pin(digest)
    return {"success": True, "message": "The image stays in the cache until it is unpinned.", "sha256": digest}


def cache_unpin(worker: WorkerContext, *, uri: object = None, sha256: object = None) -> Reply:
    """Unpin an image: it may be removed when no VM uses it."""
    digest = _digest(worker, uri, sha256)
    worker.cache.unpin(digest)
    return {"success": True, "message": "The image may be removed when no VM uses it.", "sha256": digest}


def _source(note: FetchNote, any_owner: OwnerPolicy) -> Reply:
    """Return one URI of a base, the owners that have fetched it, and whether every owner may know of it."""
    return {"uri": note.uri, "owners": list(note.owners), "public": _is_public(note, any_owner)}


def _is_public(note: FetchNote, any_owner: OwnerPolicy) -> bool:
    """Return whether a URI is public: the site fetched it, or it lies in a folder of images that nobody saves to.

    Any owner must be allowed to fetch it. An address on a web server that one owner gave may be a secret of theirs.
    """
    try:
        uri = parse(note.uri)
        check_source(uri, any_owner)
    except SalternError:
        return False
    in_folder = uri.scheme == "salt" or (uri.scheme == "file" and file_root(any_owner, uri.path, write=True) is None)
    return "" in note.owners or in_folder


def _note(worker: WorkerContext, digest: str) -> dict[str, str]:
    """Return what was left out of an image, if anything was."""
    image = worker.cache.image(digest)
    return {"note": image.note} if image and image.note else {}


def _digest(worker: WorkerContext, uri: object, sha256: object) -> str:
    """Return the digest of the one base with this digest or source URI."""
    source, digest = validation.optional_word("uri", uri), validation.optional_word("sha256", sha256)
    if not source and not digest:
        raise BadRequest("The request names no image. Give uri or sha256.")
    text = parse(source).text if source else None
    found = [
        entry.sha256 for entry in worker.cache.entries() if digest == entry.sha256 or (text and text in entry.uris)
    ]
    if not found:
        raise NotFound(
            f"{digest or text} is not in the cache. `vmachines.cache` lists the images; prefetch fetches one."
        )
    if len(found) > 1:
        raise Refused(f"{text} stands for several cached images. Give the sha256 of one.", code=Code.CONFLICT)
    return found[0]
