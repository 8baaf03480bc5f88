"""How often each worker is told: one that answers nothing ever less often, and what waits for it goes as one job.

A worker has failed when Salt took no job for it, or when a command is to be sent once more and nothing was heard of the
worker since its last job. After the n-th failure in a row its jobs are `backoff(n, worker)` apart. Whatever is heard of
it ends that at once: an event, the return of a job, its answer to a poll.

A command that was not sent before is somebody's fresh wish. It does not wait out a long back-off, since silence need
not be deafness: perhaps only the answers are lost. But it waits for the first step, so that any number of wishes make
one job each few seconds; and it takes along whatever is held. Nor need it go earlier: a worker that is back is heard.

Repeated commands wait for each other, too: the jitter of their own back-off spreads those of one job over half of
`retry_base_s`. In memory alone: when it is lost, each worker gets one job at once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from dataclasses import dataclass, field

from master_service.core.settings import Settings
from master_service.planning.planner import backoff


@dataclass(kw_only=True, slots=True)
class _State:
    """One worker. Times are the loop's."""

    failures: int = 0
    last: float = -math.inf
    """When its last job was handed to Salt, or refused."""
    unheard: bool = False
    """Nothing was heard of it since then, and that has not been counted as a failure yet."""
    sending: bool = False
    held: set[str] = field(default_factory=set)
    since: float | None = None
    """Since when repeated commands wait for others."""
    due: float = math.inf
    """When what is held goes; in the past: now."""


class WorkerBackoff:
    """What is held back from which worker. `clock` is the loop's."""

    def __init__(self, settings: Settings, clock: Callable[[], float]) -> None:
        self._settings = settings
        self._clock = clock
        self._states: dict[str, _State] = {}

    def is_failing(self, worker: str) -> bool:
        """Whether its last job failed."""
        return worker in self._states and self._states[worker].failures > 0

    def defer(self, worker: str, uuids: Collection[str], *, repeated: bool) -> tuple[set[str], float]:
        """Ask whether commands for these VMs may go as a job now; which VMs are to be looked at again, and when.

        No VMs: they may. Otherwise these and whatever else is held, so that it goes together; at infinity: `sent` will
        say. `repeated`: each of these commands was sent before.
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
        """Just before a job is handed to Salt. There is one at a time for each worker."""
        state = self._states[worker]
        state.held, state.since, state.due, state.sending = set(), None, math.inf, True

    def sent(self, worker: str, *, failed: bool) -> set[str]:
        """After a job was handed to Salt, or was not; the VMs to look at now, since they were held meanwhile."""
        state = self._states[worker]
        state.sending, state.last, state.unheard = False, self._clock(), not failed
        state.failures += failed
        held, state.held = state.held, set()
        return held

    def reset(self, worker: str) -> set[str]:
        """After anything was heard of a worker; the VMs to look at now, since nothing is held back from it any more."""
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
        """When commands that come due now may go."""
        if repeated and state.unheard:
            state.failures, state.unheard = state.failures + 1, False
        steps = state.failures if repeated else min(state.failures, 1)
        apart = state.last + backoff(steps, worker, self._settings).total_seconds()
        if not repeated:
            return apart
        state.since = now if state.since is None else state.since
        return max(apart, state.since + self._settings.retry_base_s / 2)
