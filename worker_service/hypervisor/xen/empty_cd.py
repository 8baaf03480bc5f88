"""The disc without files that is in the drive of a VM without a CD: a drive that starts empty stays so under Xen."""

from __future__ import annotations

import io
from pathlib import Path

from worker_service.fs import atomic_files


def provided(folder: Path) -> Path:
    """Return the path of the disc in a folder; make it if it is missing."""
    path = folder / "empty.iso"
    if not path.exists():
        import pycdlib  # noqa: PLC0415 - once for a worker

        disc, content = pycdlib.PyCdlib(), io.BytesIO()
        disc.new(vol_ident="EMPTY")
        disc.write_fp(content)
        disc.close()
        atomic_files.write(path, content.getvalue())
    return path
