"""Whether a VM fits on this worker: memory, processors, and room for the images that are not here yet."""

from __future__ import annotations

from contextlib import suppress

from worker_service.contract import Code, Spec
from worker_service.core.errors import Refused, SalternError
from worker_service.images.download import require_room
from worker_service.operations.status_report import capacity
from worker_service.state.context import WorkerContext
from worker_service.transfer.registry import source
from worker_service.transfer.uri import blank_size, parse


def require_capacity(
    worker: WorkerContext, wanted: Spec, *, beside: str | None = None, to_fetch: int | None = None
) -> None:
    """Raise Refused with the numbers where a VM does not fit.

    Disks are thin, and what a guest will write is not known; one that fills the data root is paused until it is freed.

    Args:
        worker: the worker that is to have it.
        wanted: what the VM is to be.
        beside: its uuid where it is here already: what it has been promised is its own.
        to_fetch: bytes of images that are to come; None: those that are known without asking anybody.
    """
    free = capacity(worker, tuple(record for record in worker.store.all() if record.uuid != beside))
    cpus = worker.hypervisor(wanted.hypervisor).cpus()
    if wanted.mem_size > free.mem_free:
        raise Refused(
            f"{wanted.name!r} wants {wanted.mem_size} MiB of memory; {free.mem_free} of {free.mem_total} MiB are free "
            "here. Ask for less, or use another worker.",
            code=Code.NO_ROOM,
        )
    if wanted.cpu_count > min(free.cpu_free, cpus):
        raise Refused(
            f"{wanted.name!r} wants {wanted.cpu_count} processors; this host has {cpus}, and {free.cpu_free} of "
            f"{free.cpu_total} promises are free. Ask for fewer, or use another worker.",
            code=Code.NO_ROOM,
        )
    size = _known_to_fetch(worker, wanted) if to_fetch is None else to_fetch
    needs = f"{wanted.name!r} needs {-(-size >> 20)} MiB for its images"
    require_room(worker.store.root, worker.settings.images, needs, size)


def images(wanted: Spec) -> list[tuple[str, str]]:
    """The drives of a VM that something is in, with the URIs of that."""
    named = (("hda", wanted.hda_image), ("hdb", wanted.hdb_image), ("cd", wanted.cd_image))
    return [(disk_name, uri) for disk_name, uri in named if uri]


def _known_to_fetch(worker: WorkerContext, wanted: Spec) -> int:
    """Bytes of the images that are not here yet, as far as that is known without asking anybody: those in files."""
    sizes: dict[str, int] = {}
    for _slot, text in images(wanted):
        uri = None if blank_size(text) else parse(text)
        if uri and uri.scheme == "file":
            with suppress(SalternError):  # who fetches it will say what is wrong with it
                head = source(uri, worker.settings.images).head(uri)
                sizes[uri.text] = 0 if worker.cache.has(uri, head) else head.size or 0
    return sum(sizes.values())
