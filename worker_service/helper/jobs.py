"""The kinds of jobs that a helper does, each with the lock that it holds and the log that it writes."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import msgspec

from worker_service.fs import locks
from worker_service.state.context import WorkerContext

PREFETCH_SLOT: Final = "prefetch"


class VmJob(msgspec.Struct, frozen=True, tag="vm"):
    """Do the pending steps of one VM."""

    uuid: str

    def lock(self, worker: WorkerContext) -> int | None:
        """Return the descriptor of the VM's work lock, or None if a helper runs or the VM is gone."""
        return worker.store.lock_for_helper(self.uuid)

    def log(self, worker: WorkerContext) -> Path:
        """Return the path of the VM's helper log. Raises NotFound."""
        return worker.store.folder(self.uuid) / "helper.log"

    def argv(self) -> list[str]:
        """Return the arguments that name the job on the helper's command line."""
        return [self.uuid]


class PrefetchJob(msgspec.Struct, frozen=True, tag="prefetch"):
    """Carry out one order to prefetch an image."""

    key: str

    def lock(self, worker: WorkerContext) -> int | None:
        """Return the descriptor of the order's lock, or None if a helper carries it out."""
        return locks.lock(prefetch_folder(worker) / f"{self.key}.lock", wait=False)

    def log(self, worker: WorkerContext) -> Path:
        """Return the path of the log of all orders."""
        return prefetch_folder(worker) / "log"

    def argv(self) -> list[str]:
        """Return the arguments that name the job on the helper's command line."""
        return ["--prefetch", self.key]


Job = VmJob | PrefetchJob


def prefetch_folder(worker: WorkerContext) -> Path:
    """Return the folder of the orders to prefetch images."""
    return worker.settings.data_root / "images/prefetch"
