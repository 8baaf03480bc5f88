"""The dependencies of every daemon and service. Tests pass a simulated Salt and their own clock."""

from __future__ import annotations

from dataclasses import dataclass, field

from master_service.core.clock import Clock, utc_now
from master_service.core.settings import Settings
from master_service.runtime.change_feed import ChangeFeed
from master_service.runtime.worker_trust import WorkerTrust
from master_service.saltapi.client import SaltApi
from master_service.store import Store


@dataclass(frozen=True, kw_only=True, slots=True)
class Context:
    """The outside world and the shared state."""

    settings: Settings
    store: Store
    salt: SaltApi
    clock: Clock = utc_now
    changes: ChangeFeed = field(default_factory=ChangeFeed)
    trust: WorkerTrust = field(default_factory=WorkerTrust)
