"""Admission: whether a VM fits on this worker with its memory, its processors, and its images."""

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
    worker: WorkerContext, spec: Spec, *, own_uuid: str | None = None, to_fetch: int | None = None
) -> None:
    """Raise Refused with the numbers if a VM does not fit.

    Disks are thin and count as empty. A guest that fills the data root is paused until there is free space.

    Args:
        worker: the worker that is to run the VM.
        spec: the VM's parameters.
        own_uuid: the VM's uuid if it is here already, so that its own reservation does not count against it.
        to_fetch: bytes of images to fetch; None for the bytes that are known without a request to a server.
    """
    free = capacity(worker, tuple(record for record in worker.store.all() if record.uuid != own_uuid))
    cpus = worker.hypervisor(spec.hypervisor).cpus()
    if spec.mem_size > free.mem_free:
        raise Refused(
            f"{spec.name!r} needs {spec.mem_size} MiB of memory; {free.mem_free} of {free.mem_total} MiB are free "
            "here. Use less, or another worker.",
            code=Code.NO_ROOM,
        )
    if spec.cpu_count > min(free.cpu_free, cpus):
        raise Refused(
            f"{spec.name!r} needs {spec.cpu_count} processors; this host has {cpus}, and {free.cpu_free} of "
            f"{free.cpu_total} with overcommit are free. Use fewer, or another worker.",
            code=Code.NO_ROOM,
        )
    size = _known_to_fetch(worker, spec) if to_fetch is None else to_fetch
    needs = f"{spec.name!r} needs {-(-size >> 20)} MiB for its images"
    require_room(worker.store.root, worker.settings.images, needs, size)


def images(spec: Spec) -> list[tuple[str, str]]:
    """Return the drives of a VM that are not empty, with the URIs of their images."""
    drives = (("hda", spec.hda_image), ("hdb", spec.hdb_image), ("cd", spec.cd_image))
    return [(drive, uri) for drive, uri in drives if uri]


def _known_to_fetch(worker: WorkerContext, spec: Spec) -> int:
    """Return the bytes of images to fetch that are known without a request to a server: those of `file:` images."""
    sizes: dict[str, int] = {}
    for _drive, text in images(spec):
        uri = None if blank_size(text) else parse(text)
        if uri and uri.scheme == "file":
            with suppress(SalternError):  # the fetch reports what is wrong
                head = source(uri, worker.settings.images).head(uri)
                sizes[uri.text] = 0 if worker.cache.has(uri, head) else head.size or 0
    return sum(sizes.values())
