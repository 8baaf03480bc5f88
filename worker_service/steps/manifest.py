"""The manifest beside a saved disk, and which VM may replace that disk.

A save is replaced by a later save of the same life of its VM, or by a life that started from it: one of the same VM, or
of another one of the same owner. All others save beside it, under a conflict name: also a later life of the VM that
started from its image again. A file without a manifest is no saved disk: only a life that has just fetched it as its
image replaces it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import msgspec

from worker_service.core.settings import OwnerPolicy
from worker_service.state.record import Disk, Record
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
    version: str | None = None
    """What `lasting` made of the disk's validator: with another one, the file is not that disk any more. None in
    manifests of 0.2."""


class Claim(msgspec.Struct, frozen=True, kw_only=True):
    """The claim of one disk of a VM to a file at its target.

    `started_from` has the places of the VM's images with the digests of the bytes that were fetched there, or None for
    bytes that are not known. `own_saves` are the digests of the saves that this life has made of the disk.
    """

    uuid: str
    owner: str
    started_from: Mapping[Folder, str | None] = {}
    own_saves: Collection[str] = ()


def claim_of(record: Record, disk_name: str, owner: str) -> Claim:
    """Return the claim of a disk to files at its target."""
    digests = {name: disk.base_source or disk.base for name, disk in record.disks.items()}
    images = {name: uri for name in record.disk_names if (uri := image_place(record, name))}
    saves = record.disks.get(disk_name, Disk()).own_saves
    return Claim(
        uuid=record.uuid,
        owner=owner,
        started_from={_place(uri): digests.get(name) for name, uri in images.items()},
        own_saves=[digest for save in saves if (digest := parse(save).sha256)],
    )


def image_place(record: Record, disk_name: str) -> Uri | None:
    """Return the URI of a disk's image if it is a place that a disk can be saved to."""
    text = record.image(disk_name)
    uri = parse(text) if text and blank_size(text) is None else None
    return uri if uri and not uri.query else None


def may_replace(claim: Claim, uri: Uri, there: Manifest | None, *, just_fetched: bool = False) -> bool:
    """Return whether a disk may replace the file at a target that has this manifest beside it.

    `just_fetched`: the life starts from the very file that is there, whatever the manifest says of its bytes.
    """
    own = there is not None and there.vm.uuid == claim.uuid
    if own and there is not None and there.sha256 in claim.own_saves:
        return True
    if _place(uri) not in claim.started_from:
        return False
    same_bytes = just_fetched or (there is not None and there.sha256 == claim.started_from[_place(uri)])
    # Manifests of 0.2 name no owner.
    return same_bytes and (there is None or own or there.vm.owner == claim.owner)


def lasting(uri: Uri, version: str | None) -> str | None:
    """Return the part of a validator that is the same on all hosts that reach the file: size and time, or an ETag."""
    return version.split("-", 2)[-1] if version and uri.scheme == "file" else version


def version_to_replace(uri: Uri, policy: OwnerPolicy, claim: Claim, fetched: str | None = None) -> str | None:
    """Return a validator of the file at a target if a disk may replace it, otherwise None: `commit` leaves the file.

    `fetched`: the validator that the file had before the life fetched it from there as its image.
    """
    writer = target(uri, policy)
    version = writer.observe(uri)
    if version is None:
        return None
    there, just_fetched = parse_manifest(_read(writer, uri)), version == fetched
    if there is not None and there.version not in (None, lasting(uri, version)) and not just_fetched:
        return None  # somebody has edited or replaced the disk since, and left its manifest
    return version if may_replace(claim, uri, there, just_fetched=just_fetched) else None


def versions_before_fetch(record: Record, policy: OwnerPolicy) -> dict[str, str | None]:
    """Return what lies at the targets that are images of the VM as well, by disk.

    A digest in an image's URI may be satisfied without a look at the place, so that says nothing about the file there.
    """
    images = [uri for name in record.disk_names if (uri := image_place(record, name)) and not uri.sha256]
    places = {_place(uri) for uri in images}
    uris = {name: each.uri for name, each in record.targets.items() if _place(each.uri) in places}
    return {name: target(uri, policy).observe(uri) for name, uri in uris.items()}


def write(writer: Target, saved_to: str, data: bytes, key: str, sha256: str) -> None:
    """Write the manifest beside a saved disk. If something else has its name, it gets a conflict name."""
    uri = parse(saved_to)
    there = _read(writer, uri)
    taken = there is not None and parse_manifest(there) is None
    writer.note(beside(uri, key, sha256).text if taken else saved_to, data)


def encode(record: Record, disk_name: str, saved_to: str, version: str | None = None) -> bytes:
    """Return the manifest of a saved disk. `size` in bytes; `version` as in `Manifest`."""
    disk = record.disks[disk_name]
    fields: dict[str, Any] = {
        "format": disk.flat_form.format,
        "compress": disk.flat_form.compress,
        "sha256": disk.flat_sha256,
        "size": disk.flat_size,
        "saved_to": saved_to,
        "version": version,
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
