"""The images and bases that VMs need, computed from their records."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final, NamedTuple

import msgspec

from worker_service.state.record import Phase, Record
from worker_service.state.record_store import RecordStore
from worker_service.transfer.uri import Uri, blank_size, parse

_NEEDS_NO_BASE: Final = frozenset({Phase.DONE, Phase.START_FAILED, Phase.DESTROYING})


class Needed(NamedTuple):
    """The bases that the cache must keep, and the URIs of images whose digests may be unknown yet."""

    digests: frozenset[str]
    uris: tuple[Uri, ...]


def base_holders(store: RecordStore) -> Iterator[Record]:
    """Yield the records of all VMs whose disks may need a base, with the destroyed ones that left unsaved disks."""
    yield from store.all()
    for _, record in store.destroyed_unsaved():
        yield msgspec.structs.replace(record, unsaved=True)  # older versions did not note that


def image_uris(record: Record) -> list[Uri]:
    """Return the URIs of a VM's images, without blank disks."""
    images = (record.image("hda"), record.image("hdb"), record.spec.cd_image)
    return [parse(uri) for uri in images if uri and blank_size(uri) is None]


def bases_needed(records: Iterable[Record]) -> Needed:
    """Return the images that VMs are or will be built on. While a VM fetches, only its URIs are known."""
    digests: set[str] = set()
    uris: list[Uri] = []
    for record in records:
        if record.phase in _NEEDS_NO_BASE:
            if record.unsaved:  # a disk that was not flattened needs its base, even after its VM was destroyed
                digests |= {disk.base for disk in record.disks.values() if disk.base and not disk.flat_sha256}
            continue
        digests |= {disk.base for disk in record.disks.values() if disk.base} | ({record.cd} if record.cd else set())
        uris += image_uris(record)
    return Needed(frozenset(digests), tuple(uris))
