"""What the caches of workers have: read the answers to `vmachines.cache`, and pick what a user may know. Pure.

A worker's answer is untrusted input. A field of the wrong type makes the whole answer unknown.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final, Literal

import msgspec

from master_service.saltapi.untrusted import sanitize_text
from worker_service.contract import Progress
from worker_service.contract.uri_secrets import masked, masked_uri

State = Literal["cached", "fetching", "waiting", "failed", "absent", "unknown"]
"""`waiting`: ordered, and no helper fetches it now. `unknown`: the worker has not answered."""

_LATEST_S: Final = datetime(9999, 1, 1, tzinfo=UTC).timestamp()
_MAX_TEXT: Final = 500


class ImageSource(msgspec.Struct, frozen=True):
    """One URI of a cached image, as a worker reports it."""

    uri: str
    owners: tuple[str, ...] = ()
    """The owners that have fetched it; "" is the site."""
    public: bool = False
    """Whether every owner may know of it."""


class CachedImage(msgspec.Struct, frozen=True):
    """A cached image, as a worker reports it. Workers up to 0.2 report no `sources`."""

    size: int
    uris: tuple[str, ...]
    pinned: bool = False
    last_used: float | None = None
    used_by: tuple[str, ...] = ()
    sources: tuple[ImageSource, ...] = ()


class Prefetch(msgspec.Struct, frozen=True):
    """An order to fetch an image, as a worker reports it. A finished order is gone."""

    uri: str
    pin: bool = False
    tries: int = 0
    problem: str | None = None
    given_up: bool = False
    progress: Progress | None = None


class CacheReply(msgspec.Struct, frozen=True):
    """The answer to `vmachines.cache`."""

    success: bool
    images: tuple[CachedImage, ...] = ()
    prefetching: tuple[Prefetch, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Copy:
    """An image on one worker. Sizes in bytes. `done` and `total` are those of its fetch."""

    worker: str
    uri: str
    state: State
    size: int | None = None
    done: int = 0
    total: int | None = None
    tries: int = 0
    problem: str = ""
    pinned: bool = False
    last_used: datetime | None = None
    used_by: tuple[str, ...] = ()
    owners: tuple[str, ...] = ()
    public: bool = False


def read_cache(answer: object) -> CacheReply | None:
    """Return a worker's answer to `vmachines.cache`, or None for one that is not understood."""
    try:
        reply = msgspec.convert(answer, CacheReply)
    except (msgspec.ValidationError, RecursionError):
        return None
    return reply if reply.success else None


def copies_of(worker: str, answer: object) -> list[Copy]:
    """Return the images on a worker, and those that it is fetching or could not fetch. An order hides an older copy."""
    reply = read_cache(answer)
    if reply is None:
        return []
    found = {copy.uri: copy for image in reply.images for copy in _cached(worker, image)}
    for order in reply.prefetching:
        copy = _ordered(worker, order)
        found[copy.uri] = copy
    return list(found.values())


def copy_on(worker: str, answer: object, uri: str) -> Copy:
    """Return one image on a worker, which may be absent there. `answer` is None if it has not answered."""
    if read_cache(answer) is None:
        return Copy(worker=worker, uri=uri, state="unknown")
    found = (copy for copy in copies_of(worker, answer) if copy.uri == uri)
    return next(found, Copy(worker=worker, uri=uri, state="absent"))


def uris_for(copies: Iterable[Copy], owner: str) -> dict[str, int | None]:
    """Return the cached images that an owner may know, with their sizes: what is public, and what they fetched."""
    return {copy.uri: copy.size for copy in copies if copy.public or owner in copy.owners}


def cleaned(answer: object) -> tuple[dict[str, Any], ...]:
    """Return the images that a worker removed, or would remove: `uris` and `size` of each."""
    reply = read_cache(answer)
    return tuple(
        {"uris": [masked_uri(uri) for uri in image.uris], "size": image.size}
        for image in (reply.images if reply else ())
    )


def _cached(worker: str, image: CachedImage) -> Iterable[Copy]:
    sources = {source.uri: source for source in image.sources}
    for uri in image.uris:
        source = sources.get(uri, ImageSource(uri))
        yield Copy(
            worker=worker,
            uri=masked_uri(uri),  # a worker of version 0.1 has secrets there
            state="cached",
            size=image.size,
            pinned=image.pinned,
            last_used=_moment(image.last_used),
            used_by=tuple(map(sanitize_text, image.used_by)),
            owners=source.owners,
            public=source.public,
        )


def _ordered(worker: str, order: Prefetch) -> Copy:
    progress = order.progress or Progress(phase="")
    return Copy(
        worker=worker,
        uri=masked_uri(order.uri),
        state="failed" if order.given_up else "fetching" if order.progress else "waiting",
        done=progress.done,
        total=progress.total,
        tries=order.tries,
        problem=masked(sanitize_text(order.problem or ""))[:_MAX_TEXT],
        pinned=order.pin,
    )


def _moment(at: float | None) -> datetime | None:
    return datetime.fromtimestamp(at, UTC) if at is not None and 0 <= at < _LATEST_S else None
