"""A decision about one VM, and the values from which the planner's rules make it."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum

from master_service.core.settings import Settings
from master_service.planning.observed import ObservedStatus
from master_service.planning.vm import VM, Command, RetryReason, Verb


class DecisionKind(StrEnum):
    """The kind of a decision."""

    NOTHING = "nothing"
    WAIT = "wait"
    SEND = "send"
    FOLLOW = "follow"
    GIVE_UP = "give up"
    CONFIRM = "confirm"
    REPORT = "report"
    STUCK = "stuck"


@dataclass(frozen=True, kw_only=True, slots=True)
class Decision:
    """The next action for one VM. `reason` is a sentence for users; empty in the desired state.

    SEND: give `command` to the VM's worker; a VM without a worker is placed first. WAIT: decide again at `due`, or
    after the next report when `due` is None. FOLLOW: the desired state becomes halted. GIVE_UP: so it does, because a
    user's start was refused for good. CONFIRM: the VM is destroyed.
    NOTHING and REPORT: leave the VM alone. STUCK: as WAIT, and notify users.
    """

    kind: DecisionKind
    reason: str = ""
    command: Command | None = None
    due: datetime | None = None


def backoff(tries: int, uuid: str, settings: Settings) -> timedelta:
    """Return the wait after the n-th try: min(cap, base*n^2 + jitter), and zero before the first.

    The jitter is a function of VM and try. Planning stays repeatable, and many VMs do not retry at the same time.
    """
    if tries == 0:
        return timedelta()
    jitter = settings.retry_base_s / 2 * (zlib.crc32(f"{uuid}:{tries}".encode()) / 2**32)
    return timedelta(seconds=min(settings.retry_cap_s, settings.retry_base_s * tries**2 + jitter))


@dataclass(frozen=True, kw_only=True, slots=True)
class PlanContext:
    """One VM at one time: the input of the rule handlers."""

    vm: VM
    observed: ObservedStatus
    now: datetime
    settings: Settings

    @property
    def worker(self) -> str:
        """The id of its worker, for messages."""
        return self.vm.desired.worker or "a worker"

    @property
    def next_generation(self) -> int:
        """Return a generation that names no command yet."""
        return max(self.vm.desired.generation, self.vm.observed.generation) + 1

    def send(
        self, verb: Verb, reason: str, *, new_generation: bool = False, retry_reason: RetryReason | None = None
    ) -> Decision:
        """Send a command, with the generation of the desired state or with a new one."""
        generation = self.next_generation if new_generation else self.vm.desired.generation
        return Decision(
            kind=DecisionKind.SEND,
            reason=reason,
            command=Command(verb=verb, generation=generation, retry_reason=retry_reason),
        )

    def wait(self, reason: str, due: datetime | None = None) -> Decision:
        """Decide again when it is due, or after the next report."""
        return Decision(kind=DecisionKind.WAIT, reason=reason, due=due)

    def report(self, reason: str) -> Decision:
        """Leave it to a user."""
        return Decision(kind=DecisionKind.REPORT, reason=reason)

    def step(self, reason: str) -> Decision:
        """Wait for the worker, which continues by itself. Without progress for `stuck_s` the VM counts as stuck."""
        times = (self.vm.observed.last_progress_at, self.vm.dispatch.sent_at)
        since = max((at for at in times if at is not None), default=self.now)
        if self.now < since + timedelta(seconds=self.settings.stuck_s):
            return self.wait(reason)
        message = f"{reason}, without progress since {since:%Y-%m-%d %H:%M:%S} UTC"
        return Decision(kind=DecisionKind.STUCK, reason=f"{message}. Its helper.log on {self.worker} shows the cause")
