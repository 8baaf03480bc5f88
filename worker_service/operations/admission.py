"""Admission: whether a VM may be on this worker: its memory, its processors, its images, its network."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from fnmatch import fnmatchcase

import msgspec

from worker_service.contract import Code, Spec, describe_taken
from worker_service.core.errors import Refused, SalternError
from worker_service.core.host import has_interface
from worker_service.core.settings import Settings
from worker_service.hypervisor.base import parse_network
from worker_service.images.download import require_room
from worker_service.operations.status_report import capacity
from worker_service.state.context import WorkerContext
from worker_service.transfer.access import reachable
from worker_service.transfer.registry import source
from worker_service.transfer.uri import blank_size, parse


def require_capacity(
    worker: WorkerContext, spec: Spec, owner: str = "", *, own_uuid: str | None = None, to_fetch: int | None = None
) -> None:
    """Raise Refused with the numbers if a VM does not fit.

    Disks are thin and count as empty. A guest that fills the data root is paused until there is free space.

    Args:
        worker: the worker that is to run the VM.
        spec: the VM's parameters, with the images that it starts from.
        owner: the VM's owner.
        own_uuid: the VM's uuid if it is here already, so that its own reservation does not count against it.
        to_fetch: bytes of images to fetch; None for the bytes that are known without a request to a server.
    """
    free = capacity(worker, tuple(record for record in worker.store.all() if record.uuid != own_uuid))
    cpus = worker.hypervisor(spec.hypervisor).cpus()
    if spec.mem_size > free.mem_free:
        raise Refused(
            f"{spec.name!r} needs {spec.mem_size} MiB of memory; {free.mem_free} of {free.mem_total} MiB are free "
            f"here. Taken: {describe_taken(free.taken)}. Use less, or another worker.",
            code=Code.NO_ROOM,
        )
    if spec.cpu_count > min(free.cpu_free, cpus):
        raise Refused(
            f"{spec.name!r} needs {spec.cpu_count} processors; this host has {cpus}, and {free.cpu_free} of "
            f"{free.cpu_total} with overcommit are free. Taken: {describe_taken(free.taken)}. "
            "Use fewer, or another worker.",
            code=Code.NO_ROOM,
        )
    size = _known_to_fetch(worker, spec, owner) if to_fetch is None else to_fetch
    needs = f"{spec.name!r} needs {-(-size >> 20)} MiB for its images"
    require_room(worker.store.root, worker.settings.images, needs, size)


def allowed_networks(settings: Settings, owner: str) -> list[str]:
    """Return the networks that the VMs of an owner may join, as values of `network`; names may be globs."""
    kinds = {"network": settings.networks, "bridge": settings.bridges}
    named = [f"{kind}={name}" for kind, names in kinds.items() for name in reachable(names, owner)]
    return ["user", "none", *named]


def require_network(settings: Settings, network: str, owner: str) -> None:
    """Raise Refused for a network or a bridge that the settings do not allow, and BadRequest for a malformed value."""
    kind, _name = parse_network(network)
    allowed = allowed_networks(settings, owner)
    if not any(fnmatchcase(network, each) for each in allowed):
        raise Refused(
            f"The network {network!r} is not one that VMs may join here ({', '.join(allowed)}). "
            f"Choose one of these, or add its name to {kind}s in the worker's settings.",
            code=Code.POLICY,
        )


def require_network_here(worker: WorkerContext, spec: Spec) -> None:
    """Raise Refused for a network or a bridge that this host does not have."""
    kind, name = parse_network(spec.network)
    if kind == "bridge" and not has_interface(name):
        advice = f"Make it on the worker (`ip link add {name} type bridge`), or choose another network."
    elif kind == "network" and not worker.hypervisor(spec.hypervisor).has_network(name):
        advice = "Define it there (`virsh net-define`, `VBoxManage natnetwork add`), or choose another network."
    else:
        return
    raise Refused(f"There is no {kind} {name!r} on this worker. {advice}", code=Code.UNSUPPORTED)


def from_saves(spec: Spec, origin: Mapping[str, str]) -> Spec:
    """Return the parameters of a VM whose disks start from these saves."""
    return msgspec.structs.replace(spec, **{f"{disk}_image": uri for disk, uri in origin.items()})


def images(spec: Spec) -> list[tuple[str, str]]:
    """Return the drives of a VM that are not empty, with the URIs of their images."""
    drives = (("hda", spec.hda_image), ("hdb", spec.hdb_image), ("cd", spec.cd_image))
    return [(drive, uri) for drive, uri in drives if uri]


def _known_to_fetch(worker: WorkerContext, spec: Spec, owner: str) -> int:
    """Return the bytes of images to fetch that are known without a request to a server: those of `file:` images."""
    cache, policy = worker.cache_of(owner), worker.policy_of(owner)
    sizes: dict[str, int] = {}
    for _drive, text in images(spec):
        uri = None if blank_size(text) else parse(text)
        if uri and uri.scheme == "file":
            with suppress(SalternError):  # the fetch reports what is wrong
                head = source(uri, policy).head(uri)
                sizes[uri.text] = 0 if cache.has(uri, head) else head.size or 0
    return sum(sizes.values())
