"""What the master knows, as values: what a user wants, what a worker reported, what the pusher did.

Three kinds of facts about a VM, each with one writer (DESIGN rule 4): `Assumed` by users, `Real` by reports of
workers, `Push` by the pusher. How each changes is said here, by functions of values; `store` keeps them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Final, Literal

from worker_service.contract import Capacity, Code, Foreign, HaltCause, ListReply, Spec, Status, VMStatus

Verb = Literal["start", "modify", "suspend", "resume", "shutdown", "destroy"]
"""The commands that the pusher sends; the words are the contract's."""

RetryReason = Literal["restart", "reboot", "correction"]
"""Why a command is given anew although an earlier one had been taken.

restart: the VM went off by nobody's wish, or is missing. reboot: its guest shut it down and is to boot again.
correction: its worker took the command, and the VM is not so.
"""

PERMANENT: Final = frozenset(
    {Code.BAD_REQUEST, Code.POLICY, Code.UNSUPPORTED, Code.NAME_TAKEN, Code.BAD_IMAGE, Code.DESTROYED}
)
"""Refusals that the same command would meet again: not repeated until a user changes something."""


class DesiredStatus(StrEnum):
    """What a user wants a VM to be."""

    RUNNING = "running"
    PAUSED = "paused"
    HALTED = "halted"
    DESTROYED = "destroyed"


@dataclass(frozen=True, kw_only=True, slots=True)
class VMProblem:
    """Something a person should know. `code` is the contract's where it has one."""

    code: str
    message: str


@dataclass(frozen=True, kw_only=True, slots=True)
class DesiredState:
    """What a user wants of one VM.

    `generation` counts commands: one generation names one command. A user's change raises it (and notes it in
    `asked`); the pusher raises it when it has to send another command than the one that carried it, for example to
    start a VM again that crashed. So a late copy of an old start is refused by the worker, and never repeats.
    `version` counts changes by users alone, for `If-Match`.
    """

    uuid: str
    name: str
    owner: str
    spec: Spec
    status: DesiredStatus
    generation: int
    user_generation: int
    version: int
    created_at: datetime
    changed_at: datetime
    pin: str | None = None
    worker: str | None = None
    destroyed_at: datetime | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    """Words of its user, to find it by: the master's own, no worker is told."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ObservedState:
    """What the VM's worker reported last. Times are the master's clock: workers' clocks may be wrong.

    `status` stays when a worker falls silent or misses the VM: it is what was seen last, and `real_at` is its age.
    `since` is when the status became what it is, `moved_at` when a report last told anything new: another status or
    phase, another try, more bytes done. `misses` counts polls in a row that the worker answered without the
    VM. `tombstone` is the generation at which the worker says that it destroyed the VM.
    """

    status: VMStatus | None = None
    real_at: datetime | None = None
    since: datetime | None = None
    last_progress_at: datetime | None = None
    missed_polls: int = 0
    tombstone: int | None = None

    @property
    def generation(self) -> int:
        """The newest command that the worker is known to have taken; 0 when none."""
        reported = self.status.generation if self.status else 0
        return max(reported, self.tombstone or 0)

    def reported(self, status: VMStatus, now: datetime) -> ObservedState:
        """After a report of the VM."""
        same = self.status is not None and _status_key(self.status) == _status_key(status)
        still = self.status is not None and _progress_key(self.status) == _progress_key(status)
        return ObservedState(
            status=status,
            real_at=now,
            since=self.since if same else now,
            last_progress_at=self.last_progress_at or now if still else now,
        )

    def clamp_to(self, now: datetime) -> ObservedState:
        """See `VM.not_after`."""
        return replace(
            self,
            real_at=_clamp(self.real_at, now),
            since=_clamp(self.since, now),
            last_progress_at=_clamp(self.last_progress_at, now),
        )

    def missed(self) -> ObservedState:
        """After a poll that its worker answered without the VM."""
        return replace(self, missed_polls=self.missed_polls + 1)

    def mark_destroyed(self, generation: int, now: datetime) -> ObservedState:
        """After its worker said that it destroyed the VM at `generation`."""
        newest = max(generation, self.tombstone or 0)
        return replace(self, tombstone=newest, real_at=now, since=self.since if self.tombstone is not None else now)

    def is_newer_than(self, status: VMStatus) -> bool:
        """Whether `status`, told by an event, is older than what is known: events may repeat and overtake each other.

        `since` is compared only with `since`: both are the same worker's clock. A poll corrects what this rejects.
        """
        if self.status is None:
            return False
        return (self.status.generation, self.status.since) > (status.generation, status.since)


def _status_key(status: VMStatus) -> tuple[str, HaltCause | None, int, str]:
    # A save that is tried again raises no generation: its worker's word for when it failed tells one from the next.
    failed_at = status.since if status.status is Status.FAILED_TO_SAVE else ""
    return status.status, status.halt_cause, status.generation, failed_at


def _clamp(at: datetime | None, now: datetime) -> datetime | None:
    return at if at is None else min(at, now)


def _progress_key(status: VMStatus) -> tuple[object, ...]:
    """What is different while its worker is getting on with it. Of the worker's times only whether they are others."""
    progress = status.progress
    how_far = (progress.phase, progress.done) if progress else None
    return _status_key(status), status.since, status.message, status.save_try, how_far, status.software


@dataclass(frozen=True, kw_only=True, slots=True)
class Command:
    """One command for one VM. `retry_reason`: why it is given anew, when it is.

    `elsewhere`: not to the worker that the VM is assigned to, which has refused it, but to another one that fits.
    """

    verb: Verb
    generation: int
    retry_reason: RetryReason | None = None
    elsewhere: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class DispatchState:
    """What the pusher did about one VM since its user last changed something (`asked`, see `Assumed`).

    `verb` at `generation` was sent `attempts` times, last at `sent_at` as Salt job `jid`; it is not sent again before
    `next_at`. `accepted` is the newest generation that the worker acknowledged. `redone` and `reboots` are
    the times of its restarts and reboots (see `Redo`), `corrected` is the generation of the last correction. `tried`
    are the workers that refused this start for lack of room.
    """

    user_generation: int = 0
    generation: int = 0
    verb: Verb | None = None
    jid: str | None = None
    sent_at: datetime | None = None
    attempts: int = 0
    next_at: datetime | None = None
    accepted: int = 0
    problem: VMProblem | None = None
    restarts: tuple[datetime, ...] = ()
    reboots: tuple[datetime, ...] = ()
    corrected_generation: int = 0
    rejected_by: tuple[str, ...] = ()

    @property
    def refused_for_good(self) -> bool:
        """Whether sending the same again is pointless."""
        return self.problem is not None and self.problem.code in PERMANENT

    def recent(
        self, retry_reason: Literal["restart", "reboot"], now: datetime, window: timedelta
    ) -> tuple[datetime, ...]:
        """Its restarts, or its reboots, within a time."""
        times = self.restarts if retry_reason == "restart" else self.reboots
        return tuple(at for at in times if at > now - window)

    def clamp_to(self, now: datetime, longest: timedelta) -> DispatchState:
        """See `VM.not_after`."""
        return replace(
            self,
            sent_at=_clamp(self.sent_at, now),
            next_at=now if self.next_at is not None and self.next_at > now + longest else self.next_at,
            restarts=tuple(min(at, now) for at in self.restarts),
            reboots=tuple(min(at, now) for at in self.reboots),
        )

    def sending(
        self, command: Command, *, user_generation: int, now: datetime, again_in: timedelta, window: timedelta
    ) -> DispatchState:
        """Just before a command is sent. `again_in`: how long to wait before the same is sent once more.

        `window`: restarts and reboots that are longer ago count no more, and are forgotten.
        """
        verb, generation = command.verb, command.generation
        redone, reboots = self.recent("restart", now, window), self.recent("reboot", now, window)
        return DispatchState(
            user_generation=user_generation,
            generation=generation,
            verb=verb,
            sent_at=now,
            attempts=self.attempts_of(verb, generation) + 1,
            next_at=now + again_in,
            accepted=self.accepted,
            # A refusal stays visible until the next answer: the same command is under way, not a success. But that
            # no worker was found ends here.
            problem=self.problem if self.is_about(verb, generation) and self.sent_at else None,
            restarts=(*redone, now) if command.retry_reason == "restart" else redone,
            reboots=(*reboots, now) if command.retry_reason == "reboot" else reboots,
            corrected_generation=generation if command.retry_reason == "correction" else self.corrected_generation,
            rejected_by=self.rejected_by,
        )

    def refused(self, problem: VMProblem, *, now: datetime, again_in: timedelta, by: str = "") -> DispatchState:
        """After the command sent last was refused `by` a worker, or could not be handed to Salt."""
        full = bool(by) and self.verb == "start" and problem.code == Code.NO_ROOM
        tried = (*self.rejected_by, by) if full and by not in self.rejected_by else self.rejected_by
        return replace(self, problem=problem, next_at=now + again_in, rejected_by=tried)

    def unplaced(
        self, problem: VMProblem, *, user_generation: int, generation: int, now: datetime, again_in: timedelta
    ) -> DispatchState:
        """After no worker was found for a start: counts as a try that was not sent."""
        tries = self.attempts_of("start", generation) + 1
        return DispatchState(
            user_generation=user_generation,
            generation=generation,
            verb="start",
            attempts=tries,
            next_at=now + again_in,
            problem=problem,
            rejected_by=self.rejected_by,
        )

    def taken(self, generation: int) -> DispatchState:
        """After a worker acknowledged the command of `generation`."""
        return replace(self, accepted=max(self.accepted, generation), problem=None)

    def is_about(self, verb: Verb, generation: int) -> bool:
        """Whether this very command was the last one sent."""
        return self.verb == verb and self.generation == generation

    def attempts_of(self, verb: Verb, generation: int) -> int:
        """How often this very command was sent."""
        return self.attempts if self.is_about(verb, generation) else 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Worker:
    """A hypervisor host, by its minion id. `capacity` is as of `seen_at`, when it was last asked and answered."""

    id: str
    capacity: Capacity | None = None
    version: str = ""
    seen_at: datetime | None = None
    unreachable_since: datetime | None = None
    draining: bool = False
    fenced_at: datetime | None = None
    """When an administrator said that it is off for certain; until they take it back, it gets nothing."""
    foreign: tuple[Foreign, ...] = ()
    unassigned_vms: tuple[Foreign, ...] = ()
    """VMs of our kind that it runs and that we did not assign to it: reported, never touched."""
    problem: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class VM:
    """All that is known of one VM. `worker` is the one it is assigned to; None: no worker yet."""

    desired: DesiredState
    observed: ObservedState
    dispatch: DispatchState
    worker: Worker | None = None

    @property
    def uuid(self) -> str:
        """The VM's uuid."""
        return self.desired.uuid

    @property
    def delivered(self) -> bool:
        """Whether the worker is known to have taken the newest command."""
        return max(self.observed.generation, self.dispatch.accepted) >= self.desired.generation

    def clamp_to(self, now: datetime, longest: timedelta) -> VM:
        """The VM with each time that is still to come counted as now: the clock went back since it was noted.

        Otherwise nothing newer would be believed, and nothing tried again, until the clock is there once more.
        `longest`: no next try is further away. What is only shown, such as `unreachable_since`, stays as it was noted.
        """
        worker = self.worker
        if worker is not None:
            worker = replace(worker, seen_at=_clamp(worker.seen_at, now))
        return replace(
            self, observed=self.observed.clamp_to(now), dispatch=self.dispatch.clamp_to(now, longest), worker=worker
        )

    @property
    def current_dispatch(self) -> DispatchState:
        """The pusher's bookkeeping, or a blank one when a user has changed something since."""
        if self.dispatch.user_generation == self.desired.user_generation:
            return self.dispatch
        return DispatchState(user_generation=self.desired.user_generation, accepted=self.dispatch.accepted)


def apply_event(vm: VM, minion: str, status: VMStatus, now: datetime) -> ObservedState | None:
    """What is known of a VM after an event told of it; None: it is no news, or not this minion's to tell."""
    if vm.desired.worker != minion or vm.observed.is_newer_than(status):
        return None
    if vm.observed.tombstone is not None and status.generation <= vm.observed.tombstone:
        return None
    return vm.observed.reported(status, now)


def apply_poll(vm: VM, reply: ListReply, asked_at: datetime) -> ObservedState:
    """What is known of a VM after its worker's list. The list counts as being of the time at which it was asked for.

    It may be older than an event, or a command, that came meanwhile: then the event stands, and nothing is missed.
    """
    real, push = vm.observed, vm.dispatch
    if real.real_at is not None and real.real_at > asked_at:
        return real
    for status in reply.vmachines:
        if status.uuid == vm.uuid:
            return real.reported(status, asked_at)
    if vm.uuid in reply.tombstones:
        return real.missed().mark_destroyed(reply.tombstones[vm.uuid], asked_at)
    return real if push.sent_at is not None and push.sent_at > asked_at else real.missed()
