"""The secret that opens one console, or the download of one disk, once; and the path at which it does.

A master has two for each view. Its user's opens only the master; its own opens the worker, and no user learns it.
"""

from __future__ import annotations

import hashlib
import secrets
from typing import Final

LIFE_S: Final = 30.0
DOWNLOAD_FEATURE: Final = "download"
"""The worker sends saved disks to the holder of a ticket (`Capacity.features`). Versions up to 0.2 do not."""


def make() -> tuple[str, str]:
    """Return a new secret of 256 bits, and its digest."""
    secret = secrets.token_urlsafe(32)
    return secret, digest(secret)


def digest(secret: str) -> str:
    """Return the SHA-256 of a ticket, in hex."""
    return hashlib.sha256(secret.encode()).hexdigest()


def console_path(uuid: str) -> str:
    """Return the path of a VM's console at a worker's API. It is a websocket, and a ticket opens it."""
    return f"/vmachines/{uuid}/screen"


def disk_path(uuid: str, disk: str) -> str:
    """Return the path of a VM's saved disk at a worker's API. A ticket opens it."""
    return f"/vmachines/{uuid}/disks/{disk}"
