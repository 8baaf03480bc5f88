"""Back-off for each worker: jobs for a silent worker become rarer, and each carries all deferred commands.

A worker has failed when Salt took no job for it, or when a command is to be sent once more and the
worker has been silent since its last job. After the n-th failure in a row its jobs are `backoff(n, worker)` apart. Any
sign of life resets that at once: an event, the return of a job, its answer to a poll.

A new command skips the long back-off, because the worker may receive commands even if its replies are lost. It waits
only for the first step, so that any number of commands make one job each few seconds. It is sent together with
everything already deferred for that worker.

Repeated commands also wait for each other: the jitter of their own back-off spreads those of one job over half of
`retry_base_s`. This state is only in memory: after a restart each worker gets one job at once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from dataclasses import dataclass, field

from master_service.core.settings import Settings
from master_service.planning.decision import backoff


@dataclass(kw_only=True, slots=True)
class _State:
    """One worker. Times are the loop's."""

    failures: int = 0
    last: float = -math.inf
    """When its last job was handed to Salt, or refused."""
    unheard: bool = False
    """It has been silent since then, and that has not been counted as a failure yet."""
    sending: bool = False
    held: set[str] = field(default_factory=set)
    since: float | None = None
    """The time from which repeated commands wait for others."""
    due: float = math.inf
    """When deferred commands may be sent. A time in the past means now."""


class WorkerBackoff:
    """Deferred commands by worker. `clock` is the loop's."""

    def __init__(self, settings: Settings, clock: Callable[[], float]) -> None:
        self._settings = settings
        self._clock = clock
        self._states: dict[str, _State] = {}

    def is_failing(self, worker: str) -> bool:
        """Whether its last job failed."""
        return worker in self._states and self._states[worker].failures > 0

    def defer(self, worker: str, uuids: Collection[str], *, repeated: bool) -> tuple[set[str], float]:
        """Defer commands for these VMs, unless they may go as a job now; return the VMs to decide on again, and when.

        Without VMs, the commands may go. Otherwise all deferred VMs are returned, so that they go together. At infinity
        `sent` will return them. `repeated`: each of these commands was sent before.
        """
        state, now = self._states.setdefault(worker, _State()), self._clock()
        together = state.held | set(uuids)
        if state.sending:
            state.held = together
            return together, math.inf
        state.due = min(state.due, self._due(worker, state, now, repeated=repeated))
        if now < state.due:
            state.held = together
            return together, state.due
        if state.held <= set(uuids):
            return set(), now
        state.held = set()
        return together, now

    def sending(self, worker: str) -> None:
        """Record that a job is about to be handed to Salt. Each worker has one at a time."""
        state = self._states[worker]
        state.held, state.since, state.due, state.sending = set(), None, math.inf, True

    def sent(self, worker: str, *, failed: bool) -> set[str]:
        """Record that a job was handed to Salt, or refused; return the VMs that were deferred meanwhile."""
        state = self._states[worker]
        state.sending, state.last, state.unheard = False, self._clock(), not failed
        state.failures += failed
        held, state.held = state.held, set()
        return held

    def reset(self, worker: str) -> set[str]:
        """Record a sign of life of a worker; return the VMs that are not deferred any more."""
        state = self._states.get(worker)
        if state is None:
            return set()
        failed, state.failures, state.unheard = state.failures, 0, False
        if not failed or state.sending:
            return set()
        state.due = self._clock()
        held, state.held = state.held, set()
        return held

    def _due(self, worker: str, state: _State, now: float, *, repeated: bool) -> float:
        """Return when commands that are due now may go."""
        if repeated and state.unheard:
            state.failures, state.unheard = state.failures + 1, False
        steps = state.failures if repeated else min(state.failures, 1)
        apart = state.last + backoff(steps, worker, self._settings).total_seconds()
        if not repeated:
            return apart
        state.since = now if state.since is None else state.since
        return max(apart, state.since + self._settings.retry_base_s / 2)
