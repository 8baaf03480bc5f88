"""The manifest beside a saved disk, and which VM may replace that disk.

A saved disk is replaced by the same VM, or by a VM of the same owner that started from it. A file without a manifest is
nobody's saved disk: only a VM that started from it replaces it. All other VMs save beside it, under a conflict name.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import msgspec

from worker_service.core.settings import OwnerPolicy
from worker_service.state.record import DISKS, Record
from worker_service.transfer.access import Folder, origin, segments
from worker_service.transfer.registry import Target, target
from worker_service.transfer.uri import Uri, beside, blank_size, parse


class SavedBy(msgspec.Struct, frozen=True):
    """The VM that a saved disk is from."""

    uuid: str
    owner: str | None = None
    """None in manifests of 0.2, which had no owners."""


class Manifest(msgspec.Struct, frozen=True):
    """The part of a manifest that decides who may replace the disk."""

    sha256: str
    saved_to: str
    vm: SavedBy


class Claim(msgspec.Struct, frozen=True, kw_only=True):
    """The claim of a VM to a file at a target.

    `started_from` are the places of its images. `bases` are the digests of their bytes; None if the images have been
    fetched just now, so that the file there is the one that the VM starts from.
    """

    uuid: str
    owner: str
    started_from: Collection[Folder] = ()
    bases: Collection[str] | None = None


def claim_of(record: Record, owner: str, *, just_fetched: bool) -> Claim:
    """Return the claim of a VM to files at its targets."""
    images = [parse(uri) for disk in DISKS if (uri := record.image(disk)) and blank_size(uri) is None]
    return Claim(
        uuid=record.uuid,
        owner=owner,
        started_from=[_place(uri) for uri in images if not uri.query],
        bases=None if just_fetched else [disk.base for disk in record.disks.values() if disk.base],
    )


def may_replace(claim: Claim, uri: Uri, there: Manifest | None) -> bool:
    """Return whether a VM may replace the file at a target that has this manifest beside it."""
    if there is not None and there.vm.uuid == claim.uuid:
        return True
    same_bytes = claim.bases is None or (there is not None and there.sha256 in claim.bases)
    same_owner = there is None or there.vm.owner in (None, claim.owner)
    return _place(uri) in claim.started_from and same_bytes and same_owner


def version_to_replace(uri: Uri, policy: OwnerPolicy, claim: Claim) -> str | None:
    """Return a validator of the file at a target if the VM may replace it, otherwise None: `commit` leaves the file."""
    writer = target(uri, policy)
    version = writer.observe(uri)
    if version is None or not may_replace(claim, uri, parse_manifest(_read(writer, uri))):
        return None
    return version


def write(writer: Target, saved_to: str, data: bytes, key: str, sha256: str) -> None:
    """Write the manifest beside a saved disk. If something else has its name, it gets a conflict name."""
    uri = parse(saved_to)
    there = _read(writer, uri)
    taken = there is not None and parse_manifest(there) is None
    writer.note(beside(uri, key, sha256).text if taken else saved_to, data)


def encode(record: Record, disk_name: str, saved_to: str) -> bytes:
    """Return the manifest of a saved disk. `size` in bytes."""
    disk = record.disks[disk_name]
    fields: dict[str, Any] = {
        "format": disk.flat_form.format,
        "compress": disk.flat_form.compress,
        "sha256": disk.flat_sha256,
        "size": disk.flat_size,
        "saved_to": saved_to,
        "source": record.image(disk_name),
        "base_sha256": disk.base,
        "soft_list": record.spec.soft_list,
        "software": record.software,
        "vm": {"uuid": record.uuid, "name": record.name, "generation": record.generation, "owner": record.owner},
        "halt_cause": record.halt_cause,
        "halted_at": record.phase_since,
    }
    return msgspec.json.format(msgspec.json.encode(fields))


def parse_manifest(data: bytes | None) -> Manifest | None:
    """Return the manifest in a file; None if there is no file, or another one."""
    try:
        return None if data is None else msgspec.json.decode(data, type=Manifest)
    except (msgspec.MsgspecError, RecursionError):
        return None


def _read(writer: Target, uri: Uri) -> bytes | None:
    """Return the file with the manifest's name. Schemes of packages for older versions cannot read it."""
    read = getattr(writer, "manifest", None)
    data: bytes | None = read(uri) if read else None
    return data


def _place(uri: Uri) -> Folder:
    return (origin(uri.scheme, "" if uri.scheme == "file" else uri.netloc), *segments(uri.path))
