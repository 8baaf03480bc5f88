"""Look at an image before it is fetched, as far as that costs nothing: a base in the cache, or a file on this worker.

The look reads the tables of a local file and no data. A packed file is examined only when it is unpacked.
"""

from __future__ import annotations

import os
from typing import Final

from worker_service.core.errors import BadImage
from worker_service.images.cache import Cache
from worker_service.images.compression import MAGIC_BYTES, kind, refuse_archive
from worker_service.images.inspection import Image, Use, check_use, inspect_open
from worker_service.transfer.registry import Head, Source
from worker_service.transfer.uri import Uri

USES: Final[dict[str, Use]] = {"hda": "disk", "hdb": "data", "cd": "cd"}


def look(uri: Uri, use: Use, source: Source, head: Head, cache: Cache, max_virtual_gib: int) -> bool:  # noqa: PLR0913, PLR0917 - an image, and where it may be
    """Return whether the base of an image is in the cache. Raises BadImage for one that is known not to fit its use."""
    digest = cache.here(uri, head)
    try:
        image = _examined(uri, source, max_virtual_gib) if digest is None else cache.image(digest)
        if image is not None:
            check_use(image, use)
    except BadImage as err:
        raise BadImage(f"{uri} cannot be used. {err}") from err
    return digest is not None


def _examined(uri: Uri, source: Source, max_virtual_gib: int) -> Image | None:
    """Return what a file on this worker is, or None for an image elsewhere and for a packed one."""
    opened = getattr(source, "opened", None)
    if opened is None:
        return None
    with opened(uri) as file:
        first = os.pread(file.fileno(), MAGIC_BYTES, 0)
        if kind(first):
            return None
        refuse_archive(first)
        return inspect_open(file.fileno(), max_virtual_size=max_virtual_gib << 30, may_lack_end=uri.sha256 is not None)
