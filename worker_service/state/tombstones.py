"""Tombstones: the generations of VMs that were destroyed here. Commands that are not newer are refused."""

from __future__ import annotations

import time
from contextlib import suppress
from pathlib import Path
from typing import Final

from worker_service.contract import Code
from worker_service.core.errors import Refused
from worker_service.fs.space_reserve import Reserve

_LISTED_S: Final = 7 * 86_400


class Tombstones:
    """One small file for each destroyed VM, named by its uuid."""

    def __init__(self, folder: Path, reserve: Reserve) -> None:
        self.folder = folder
        self._reserve = reserve

    def write(self, uuid: str, generation: int) -> None:
        """Write the tombstone of a VM durably, before any part of the VM is removed."""
        self._reserve.write(self.folder / uuid, str(generation).encode())

    def generation(self, uuid: str) -> int | None:
        """Return the generation at which a VM was destroyed here, or None."""
        try:
            return int((self.folder / uuid).read_bytes())
        except (FileNotFoundError, ValueError):
            return None

    def refuse_late(self, uuid: str, generation: int | None) -> None:
        """Raise Refused for a command that is not newer than the VM's tombstone."""
        destroyed_at = self.generation(uuid)
        if destroyed_at is not None and (generation is None or generation <= destroyed_at):
            raise Refused(
                f"VM {uuid} was destroyed here at generation {destroyed_at}, and this command is not newer. "
                "Start it under a new uuid, or with a higher generation.",
                code=Code.DESTROYED,
            )

    def recent(self) -> dict[str, int]:
        """Return the generations of the VMs that were destroyed in the last days, by uuid."""
        since = time.time() - _LISTED_S
        with suppress(FileNotFoundError):
            return {
                entry.name: generation
                for entry in self.folder.iterdir()
                if not entry.name.startswith(".")
                and entry.stat().st_mtime > since
                and (generation := self.generation(entry.name)) is not None
            }
        return {}
