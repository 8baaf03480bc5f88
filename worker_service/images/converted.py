"""Bases in the format of a hypervisor that cannot read theirs. One is made once, beside its base, and goes with it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final
from uuid import UUID, uuid5

from worker_service.core.host import User
from worker_service.fs import atomic_files, locks, private
from worker_service.images import qemu_img, vdi

_SUFFIX: Final = ".vdi"
_NAMES: Final = UUID("6f1b9a0e-5d0c-4a51-8d6a-6a1d7c1a4b52")
"""The namespace of the uuids of converted bases."""


def path_of(base: Path) -> Path:
    """Return where the VDI of a base is, or would be."""
    return base.with_name(base.name + _SUFFIX)


def as_vdi(base: Path, base_format: str, size: int, user: User | None = None) -> Path:
    """Return a base as VDI, which is made at the first call; qemu-img runs as `user`. Raises TransferFailed, BadImage.

    Its uuid comes from the path of the base: disks on it fit one that is made again, and that of another data root has
    another uuid, as VirtualBox demands of all disks of one user.
    """
    made = path_of(base)
    if made.exists():
        return made
    with locks.locked(base.with_name(f"{base.name}.convert")):
        if not made.exists():
            part = made.with_name(f"{made.name}.part")
            qemu_img.convert_to_vdi(base, base_format, part, size, user)
            with part.open("r+b") as file:
                vdi.set_uuid(file.fileno(), uuid5(_NAMES, str(base.resolve())))
                os.fsync(file.fileno())
            private.set_access(part, private.BASE, base.parent.stat().st_gid)
            part.replace(made)
            atomic_files.sync_folder(made.parent)
    return made


def blocks_of(base: Path) -> int:
    """Return the blocks of 512 bytes that the converted form of a base takes on the disk."""
    made = path_of(base)
    return made.stat().st_blocks if made.exists() else 0


def remove(base: Path) -> None:
    """Remove the converted form of a base."""
    for name in (f"{base.name}{_SUFFIX}", f"{base.name}{_SUFFIX}.part", f"{base.name}.convert"):
        base.with_name(name).unlink(missing_ok=True)
