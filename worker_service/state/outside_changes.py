"""What somebody did to a domain without Saltern: with virsh, a backup program, or libvirt as the host went down.

Every pass compares the record with the domain. These are functions of values: `lifecycle` decides by them, `steps` act.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from pathlib import PurePosixPath
from typing import Final

import msgspec

from worker_service.contract import Code
from worker_service.core.errors import Refused
from worker_service.hypervisor.base import DomainState
from worker_service.images.overlay import Layer
from worker_service.state.record import NOT_FLAT, NOT_SAVED, Disk, Phase, Record, move, own_layer

OFF_WITH_DISKS: Final = frozenset({Phase.KEPT, Phase.FLATTENING, Phase.SAVING, Phase.CLEANING, Phase.SAVE_FAILED})
"""Phases of a VM that is off and whose disks are on this worker, so that its domain can be started."""


def was_started(record: Record, domain: DomainState) -> bool:
    """Return whether somebody has started a VM that is off by its record."""
    return record.phase in OFF_WITH_DISKS and domain.on


def moved_disks(record: Record, domain: DomainState) -> Mapping[str, Disk]:
    """Return the disks that are on other files than the record says: after an external snapshot, a copy, a commit.

    Only a domain that is on shows for sure where its guest's data is.
    """
    up = record.phase is Phase.UP and domain.on
    return _differing(record, domain) if up or was_started(record, domain) else {}


def disks_at_halt(record: Record, domain: DomainState) -> tuple[Mapping[str, Disk], tuple[str, ...]]:
    """Return the disks that got layers on top since the record was written, and those whose place is in doubt.

    The definition of a domain that is off may be for its next boot: an edit changes it while the guest goes on with the
    former files. A snapshot leaves these below its new layer.
    """
    found = _differing(record, domain) if record.phase is Phase.UP else {}
    on_top = {name: disk for name, disk in found.items() if _is_on_top(name, disk, record.disks[name])}
    return on_top, tuple(sorted(found.keys() - on_top.keys()))


def _is_on_top(name: str, present: Disk, former: Disk) -> bool:
    """Return whether a disk is where it was, with new layers on top, or without its base: a pull copies that."""
    known = former.layers(name)
    return present.layers(name)[-len(known) :] == known and (former.on_base or not present.on_base)


def _differing(record: Record, domain: DomainState) -> Mapping[str, Disk]:
    present = {name: _at(record, name, domain.disks[name]) for name in record.disks.keys() & domain.disks.keys()}
    return {name: disk for name, disk in present.items() if disk != record.disks[name]}


def _at(record: Record, name: str, layers: tuple[Layer, ...]) -> Disk:
    """Return a disk of a VM as it is on these layers."""
    disk, made = record.disks[name], (own_layer(name),)
    if not layers:
        return disk
    on_base = disk.base is None or PurePosixPath(layers[-1].path).name == disk.base
    own = tuple(_in_folder(layer, record.uuid) for layer in (layers[:-1] if on_base and disk.base else layers))
    return msgspec.structs.replace(disk, chain=() if own == made else own, on_base=on_base)


def _in_folder(layer: Layer, uuid: str) -> Layer:
    """Return a layer with a relative path if it lies in the VM's folder, which has another name in failed_to_save."""
    path = PurePosixPath(layer.path)
    return Layer(path.name, layer.format) if uuid in path.parent.name else layer


def started_outside(
    record: Record, domain: DomainState, now: datetime, host_boot: str, target_versions: Mapping[str, str | None]
) -> Record:
    """Return the record of a VM that somebody has started: it is up. What was flattened or saved is no longer all.

    `target_versions`: what lies where a disk of this life was saved already.
    """
    moved = moved_disks(record, domain)
    disks = {}
    for name, disk in record.disks.items():
        version = {"target_version": target_versions[name]} if name in target_versions else {}
        disks[name] = msgspec.structs.replace(moved.get(name, disk), **NOT_FLAT, **NOT_SAVED, **version)
    changes = {"disks": disks, "host_boot": host_boot, "ended_by_host": False, "halt_cause": None}
    return move(record, Phase.UP, now, **changes, shutdown_asked=False)


def require_no_job(record: Record, domain: DomainState) -> None:
    """Raise Refused for a command to a domain with which the hypervisor is busy for somebody else."""
    if domain.job:
        raise Refused(
            f"Somebody else keeps {record.name!r} busy ({domain.job}), and Saltern leaves it alone meanwhile. Call "
            f"again when that has ended, or end it with `virsh domjobabort {record.name}`.",
            code=Code.CONFLICT,
        )
