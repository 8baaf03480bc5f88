"""The facts about VMs and workers, as values, and the functions that change them.

A VM has three kinds of facts, each with one writer (DESIGN rule 4): users write `DesiredState`, reports of workers
write `ObservedState`, and the pusher writes `DispatchState`. The folder `store` keeps them in the database.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Final, Literal

import msgspec

from master_service.core.audience import two_forms, without_marks
from master_service.planning.saves import SavedDisk, saves_after
from worker_service.contract import (
    Capacity,
    Code,
    Foreign,
    HaltCause,
    Spec,
    Status,
    VMStatus,
    names_room,
)

Verb = Literal["start", "modify", "suspend", "resume", "shutdown", "destroy"]
"""The commands that the pusher sends, in the contract's words."""

RetryReason = Literal["restart", "reboot", "correction"]
"""Why a command is sent again although the worker had accepted an earlier one.

restart: the VM stopped unexpectedly, or is missing. reboot: its guest shut it down and has to boot again. correction:
the command had no effect.
"""

PERMANENT: Final = frozenset(
    {Code.BAD_REQUEST, Code.TOO_LARGE, Code.POLICY, Code.UNSUPPORTED, Code.NAME_TAKEN, Code.BAD_IMAGE, Code.DESTROYED}
)
"""Refusals that the same command would get again. It is not repeated until a user changes something."""


class DesiredStatus(StrEnum):
    """The status of a VM that its user asked for."""

    RUNNING = "running"
    PAUSED = "paused"
    HALTED = "halted"
    DESTROYED = "destroyed"


@dataclass(frozen=True, kw_only=True, slots=True)
class VMProblem:
    """A problem that a user should know. `code` is the contract's where it has one."""

    code: str
    message: str


@dataclass(frozen=True, kw_only=True, slots=True)
class DesiredState:
    """The state of one VM that its user asked for.

    `generation` names one command. A user's change raises it and stores it as `user_generation`. The pusher raises it
    to send another command, for example to start a crashed VM again. The worker therefore refuses a late copy of an
    old start. `version` counts the changes by users alone, for `If-Match`. `owner_id` is the id of the owner's account:
    another account may get the name `owner` later. `status_generation` names the command that asked for `status` last:
    a change of other settings leaves it as it is. With `from_image` the VM does not go on from its last save.
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
    owner_id: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    """Words of its user, to find it by. Workers do not get them."""
    protected: bool = False
    """Whether the master refuses to destroy it."""
    status_generation: int = 0
    from_image: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class ObservedState:
    """The last report about a VM. Times are by the master's clock, because clocks of workers may be wrong.

    `status` stays when a worker becomes unreachable or misses the VM; `real_at` is the time of the report. `since` is
    the time at which the status changed, and `last_progress_at` the time at which a report last had anything new:
    another status or phase, another try, more bytes. `missed_polls` counts polls in a row that the worker answered
    without the VM. `tombstone` is the generation at which the worker destroyed the VM. `elsewhere` is a worker that
    reported a domain with the VM's uuid that is on and that it does not manage; "": there is none; None: not all
    workers were asked since the status changed. `saves` are the last saves of its disks.
    """

    status: VMStatus | None = None
    real_at: datetime | None = None
    since: datetime | None = None
    last_progress_at: datetime | None = None
    missed_polls: int = 0
    tombstone: int | None = None
    elsewhere: str | None = None
    saves: Mapping[str, SavedDisk] = field(default_factory=dict)

    @property
    def generation(self) -> int:
        """Return the newest generation that the worker is known to have accepted, or 0."""
        reported = self.status.generation if self.status else 0
        return max(reported, self.tombstone or 0)

    def reported(self, status: VMStatus, now: datetime) -> ObservedState:
        """Return the state after a report of the VM."""
        status = _with_two_forms(status)
        same = self.status is not None and _status_key(self.status) == _status_key(status)
        still = self.status is not None and _progress_key(self.status) == _progress_key(status)
        return ObservedState(
            status=status,
            real_at=now,
            since=self.since if same else now,
            last_progress_at=self.last_progress_at or now if still else now,
            elsewhere=self.elsewhere if same else self.elsewhere or None,
            saves=saves_after(self.saves, status),
        )

    def clamp_to(self, now: datetime) -> ObservedState:
        """See `VM.clamp_to`."""
        return replace(
            self,
            real_at=_clamp(self.real_at, now),
            since=_clamp(self.since, now),
            last_progress_at=_clamp(self.last_progress_at, now),
        )

    def after_search(self, elsewhere: str, requested_at: datetime, *, complete: bool) -> ObservedState:
        """Return the state after a poll of all workers. `elsewhere`: as the field; "" if no worker reported it.

        A poll that is not `complete`, or was requested before the last report, proves no absence.
        """
        proven = complete and (self.real_at is None or self.real_at <= requested_at)
        return replace(self, elsewhere=elsewhere) if elsewhere or proven else self

    def missed(self) -> ObservedState:
        """Return the state after a poll that the worker answered without the VM."""
        return replace(self, missed_polls=self.missed_polls + 1)

    def mark_destroyed(self, generation: int, now: datetime) -> ObservedState:
        """Return the state after the worker destroyed the VM at `generation`."""
        newest = max(generation, self.tombstone or 0)
        return replace(self, tombstone=newest, real_at=now, since=self.since if self.tombstone is not None else now)

    def is_newer_than(self, status: VMStatus) -> bool:
        """Return whether `status` of an event is older than this: events may repeat and overtake each other.

        Both times named `since` are by the same worker's clock. If an event is rejected wrongly, a poll corrects that.
        """
        if self.status is None:
            return False
        return (self.status.generation, self.status.since) > (status.generation, status.since)


def _status_key(status: VMStatus) -> tuple[str, HaltCause | None, int, str]:
    # A retried save has the same generation. The time of its failure, by the worker's clock, distinguishes the tries.
    failed_at = status.since if status.status is Status.FAILED_TO_SAVE else ""
    return status.status, status.halt_cause, status.generation, failed_at


def _with_two_forms(status: VMStatus) -> VMStatus:
    """Return the report with numbers of its worker only for those who may see the workers."""
    texts = {"message": status.message, "problem": status.problem}
    changes = {
        name: two_forms(text) if names_room(text) else without_marks(text) for name, text in texts.items() if text
    }
    return msgspec.structs.replace(status, **changes) if changes.items() - texts.items() else status


def _clamp(at: datetime | None, now: datetime) -> datetime | None:
    return at if at is None else min(at, now)


def _progress_key(status: VMStatus) -> tuple[object, ...]:
    """Return a key that changes while the worker makes progress. Its times count only as equal or different."""
    progress = status.progress
    how_far = (progress.phase, progress.done) if progress else None
    return _status_key(status), status.since, status.message, status.save_try, how_far, status.software


@dataclass(frozen=True, kw_only=True, slots=True)
class Command:
    """One command for one VM. `retry_reason` says why it is sent again.

    `elsewhere` means: send it to another worker that fits, because the assigned worker has refused it.
    """

    verb: Verb
    generation: int
    retry_reason: RetryReason | None = None
    elsewhere: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class DispatchState:
    """The state of sending commands for one VM since its user's last change (`user_generation`).

    `verb` at `generation` was sent `attempts` times, last at `sent_at` as Salt job `jid`. It is not sent again before
    `next_at`. `accepted` is the newest generation that the worker acknowledged. `restarts` and `reboots` are times
    (see `RetryReason`), and `corrected_generation` is the generation of the last correction. `rejected_by` are the
    workers that refused this start for lack of room.
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
        """Return whether the same command would be refused again. A change that comes too late stays too late."""
        codes = PERMANENT | {Code.CONFLICT, Code.NOT_FOUND} if self.verb == "modify" else PERMANENT
        return self.problem is not None and self.problem.code in codes

    def recent(
        self, retry_reason: Literal["restart", "reboot"], now: datetime, window: timedelta
    ) -> tuple[datetime, ...]:
        """Return the times of restarts, or of reboots, within the window."""
        times = self.restarts if retry_reason == "restart" else self.reboots
        return tuple(at for at in times if at > now - window)

    def clamp_to(self, now: datetime, longest: timedelta) -> DispatchState:
        """See `VM.clamp_to`."""
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
        """Return the state just before a command is sent. The same command is sent again after `again_in`.

        Restarts and reboots before `window` no longer count and are removed.
        """
        verb, generation = command.verb, command.generation
        restarts, reboots = self.recent("restart", now, window), self.recent("reboot", now, window)
        return DispatchState(
            user_generation=user_generation,
            generation=generation,
            verb=verb,
            sent_at=now,
            attempts=self.attempts_of(verb, generation) + 1,
            next_at=now + again_in,
            accepted=self.accepted,
            # A refusal stays visible until the next answer, because the same command is being sent again. The problem
            # "no worker fits" ends here.
            problem=self.problem if self.is_about(verb, generation) and self.sent_at else None,
            restarts=(*restarts, now) if command.retry_reason == "restart" else restarts,
            reboots=(*reboots, now) if command.retry_reason == "reboot" else reboots,
            corrected_generation=generation if command.retry_reason == "correction" else self.corrected_generation,
            rejected_by=self.rejected_by,
        )

    def refused(self, problem: VMProblem, *, now: datetime, again_in: timedelta, by: str = "") -> DispatchState:
        """Return the state after the last command was refused `by` a worker, or could not be given to Salt."""
        full = bool(by) and self.verb == "start" and problem.code == Code.NO_ROOM
        rejected_by = (*self.rejected_by, by) if full and by not in self.rejected_by else self.rejected_by
        return replace(self, problem=problem, next_at=now + again_in, rejected_by=rejected_by)

    def unplaced(
        self, problem: VMProblem, *, user_generation: int, generation: int, now: datetime, again_in: timedelta
    ) -> DispatchState:
        """Return the state after no worker was found for a start, which counts as a try."""
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

    def with_accepted(self, generation: int) -> DispatchState:
        """Return the state after a worker acknowledged the command of `generation`."""
        return replace(self, accepted=max(self.accepted, generation), problem=None)

    def is_about(self, verb: Verb, generation: int) -> bool:
        """Return whether this command was the last one sent."""
        return self.verb == verb and self.generation == generation

    def attempts_of(self, verb: Verb, generation: int) -> int:
        """Return how often this command was sent."""
        return self.attempts if self.is_about(verb, generation) else 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Worker:
    """A hypervisor host, by its minion id. `capacity` is as of `seen_at`, the time of its last answer to a poll."""

    id: str
    capacity: Capacity | None = None
    version: str = ""
    seen_at: datetime | None = None
    unreachable_since: datetime | None = None
    draining: bool = False
    fenced_at: datetime | None = None
    """When an administrator declared it switched off. It gets no VMs until it is undrained."""
    foreign: tuple[Foreign, ...] = ()
    unassigned_vms: tuple[VMStatus, ...] = ()
    """Our VMs that are there without being assigned to it: reported, and never touched unless they are adopted."""
    problem: str | None = None
    key: str = ""
    """The key with which it signs what it says. Without one it is no worker yet: it is only shown as waiting."""
    claimed_key: str = ""
    """A key that a minion with its name presented. It means nothing until an administrator has compared it."""
    api_url: str = ""
    """Enrolled address of its API, to which the master connects for consoles; "": none."""


@dataclass(frozen=True, kw_only=True, slots=True)
class VM:
    """All facts about one VM. `worker` is None until it is placed."""

    desired: DesiredState
    observed: ObservedState
    dispatch: DispatchState
    worker: Worker | None = None

    @property
    def uuid(self) -> str:
        """Return the VM's uuid."""
        return self.desired.uuid

    @property
    def accepted_generation(self) -> int:
        """Return the newest generation that the worker has accepted, by its answers and its reports."""
        return max(self.observed.generation, self.dispatch.accepted)

    @property
    def delivered(self) -> bool:
        """Return whether the worker is known to have accepted the newest command."""
        return self.accepted_generation >= self.desired.generation

    @property
    def status_delivered(self) -> bool:
        """Return whether the worker has accepted the command that asked for the desired status, or a newer one."""
        return self.accepted_generation >= self.desired.status_generation

    def clamp_to(self, now: datetime, longest: timedelta) -> VM:
        """Return the VM with each future time replaced by now, because the clock went back after it was stored.

        Without this, the master would ignore newer reports and retry nothing until the clock reaches that time again.
        No next try is further away than `longest`. Times that are only shown, such as `unreachable_since`, stay.
        """
        worker = self.worker
        if worker is not None:
            worker = replace(worker, seen_at=_clamp(worker.seen_at, now))
        return replace(
            self, observed=self.observed.clamp_to(now), dispatch=self.dispatch.clamp_to(now, longest), worker=worker
        )

    @property
    def current_dispatch(self) -> DispatchState:
        """Return the state of dispatch, or a new one if a user has changed the VM since."""
        if self.dispatch.user_generation == self.desired.user_generation:
            return self.dispatch
        return DispatchState(user_generation=self.desired.user_generation, accepted=self.dispatch.accepted)
