"""What is to be done about a VM, as a function of values: wanted, seen, the pusher's bookkeeping, and the time.

One table says what each pair of (wanted, seen) asks for; each kind of move then has its own conditions: was it sent,
did the worker take it, is a retry due. Nothing here does I/O, and planning twice at one time is planning once.
The same decision explains itself (`why`): `status` shows that sentence as the reason of a difference.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any, Final, Literal

import msgspec

from master_service.core.errors import NEVER_ARRIVED
from master_service.core.settings import Settings
from master_service.planning.decision_table import DECISION_TABLE, Rule
from master_service.planning.observed import ObservedStatus, keeps_disks, last_reported_status, observed_status
from master_service.planning.vm import VM, Command, DesiredStatus, RetryReason, Verb, Worker
from worker_service.contract import Action, HaltCause

MOST_TRIED: Final = 3
"""A start that so many workers have refused for lack of room stays with the last one, and is tried there again."""


class DecisionKind(StrEnum):
    """What a decision comes to."""

    NOTHING = "nothing"
    WAIT = "wait"
    SEND = "send"
    FOLLOW = "follow"
    CONFIRM = "confirm"
    REPORT = "report"
    STUCK = "stuck"


@dataclass(frozen=True, kw_only=True, slots=True)
class Decision:
    """What to do about one VM now. `why` is a sentence for people; empty when all is as wanted.

    SEND: give `command` to the VM's worker (none yet: place it first). WAIT: look again at `due` (None: when
    something is reported). FOLLOW: what is wanted becomes halted. CONFIRM: the VM is destroyed. NOTHING and REPORT:
    leave it. STUCK: as WAIT, and people are told.
    """

    kind: DecisionKind
    why: str = ""
    command: Command | None = None
    due: datetime | None = None


def backoff(tries: int, uuid: str, settings: Settings) -> timedelta:
    """How long to wait after the n-th try: min(cap, base*n^2 + jitter); none before the first.

    The jitter is a function of VM and try, so that planning stays repeatable while many VMs do not retry at once.
    """
    if tries == 0:
        return timedelta()
    jitter = settings.retry_base_s / 2 * (zlib.crc32(f"{uuid}:{tries}".encode()) / 2**32)
    return timedelta(seconds=min(settings.retry_cap_s, settings.retry_base_s * tries**2 + jitter))


def decide(vm: VM, now: datetime, settings: Settings) -> Decision:
    """What to do about one VM now."""
    if vm.desired.destroyed_at is not None:
        return Decision(kind=DecisionKind.NOTHING)
    seen = observed_status(vm)
    move = DECISION_TABLE[vm.desired.status, seen]
    return RULE_HANDLERS[move](_PlanContext(vm=vm, seen=seen, now=now, settings=settings))


def plan(vms: Iterable[VM], now: datetime, settings: Settings) -> dict[str, Decision]:
    """The decision for each VM that needs a hand now or at a stated time, by uuid; what is as wanted is left out."""
    decisions = {vm.uuid: decide(vm, now, settings) for vm in vms}
    return {
        uuid: d
        for uuid, d in decisions.items()
        if d.due or d.kind in (DecisionKind.SEND, DecisionKind.FOLLOW, DecisionKind.CONFIRM, DecisionKind.STUCK)
    }


def action_of(vm: VM, command: Command) -> Action:
    """The command as the worker reads it: `start` carries the whole spec, so that it can be told twice."""
    params: dict[str, Any] = {}
    if command.verb == "start":
        params = msgspec.to_builtins(vm.desired.spec)
    elif command.verb == "modify":
        # Only what differs: a worker that is told where to save looks at the target anew, and would take what somebody
        # else has put there meanwhile for known. Without any difference the generation alone is told.
        params = dict(changed_settings(vm))
    return Action(verb=command.verb, uuid=vm.uuid, generation=command.generation, params=params)


def changed_settings(vm: VM) -> dict[str, str]:
    """Settings in which the VM on its worker differs from what is wanted; `""` discards, or ejects the CD.

    A CD is changed only once installing is done (contract). Empty when the worker did not say what the VM has.
    """
    has = vm.observed.status.spec if vm.observed.status else None
    if has is None:
        return {}
    names = ["hda_save_to", "hdb_save_to"]
    if last_reported_status(vm) in (ObservedStatus.RUNNING, ObservedStatus.SUSPENDED):
        names.append("cd_image")
    pairs = {name: (getattr(vm.desired.spec, name) or "", getattr(has, name) or "") for name in names}
    return {name: want for name, (want, have) in pairs.items() if want != have}


@dataclass(frozen=True, kw_only=True, slots=True)
class _PlanContext:
    """One VM at one time: what the movers below look at."""

    vm: VM
    seen: ObservedStatus
    now: datetime
    settings: Settings

    @property
    def worker(self) -> str:
        return self.vm.desired.worker or "a worker"

    @property
    def fresh(self) -> int:
        """A generation that names no command yet."""
        return max(self.vm.desired.generation, self.vm.observed.generation) + 1

    def send(self, verb: Verb, why: str, *, anew: bool = False, retry_reason: RetryReason | None = None) -> Decision:
        generation = self.fresh if anew else self.vm.desired.generation
        return Decision(
            kind=DecisionKind.SEND,
            why=why,
            command=Command(verb=verb, generation=generation, retry_reason=retry_reason),
        )

    def wait(self, why: str, due: datetime | None = None) -> Decision:
        return Decision(kind=DecisionKind.WAIT, why=why, due=due)

    def report(self, why: str) -> Decision:
        return Decision(kind=DecisionKind.REPORT, why=why)

    def step(self, why: str) -> Decision:
        """Wait for the worker, which goes on by itself: for how long is not known, but not without any progress."""
        times = (self.vm.observed.last_progress_at, self.vm.dispatch.sent_at)
        since = max((at for at in times if at is not None), default=self.now)
        if self.now < since + timedelta(seconds=self.settings.stuck_s):
            return self.wait(why)
        told = f"{why}, and nothing about it has changed since {since:%Y-%m-%d %H:%M:%S} UTC"
        return Decision(kind=DecisionKind.STUCK, why=f"{told}. Its helper.log on {self.worker} says what it waits for")


def _nothing(case: _PlanContext) -> Decision:
    if case.seen is ObservedStatus.UNREACHABLE:
        worker: Worker | None = case.vm.worker
        since = worker.unreachable_since if worker else None
        told = f"{since:%Y-%m-%d %H:%M:%S} UTC" if since else "an unknown time"
        but = f" ({worker.problem})" if worker and worker.problem else ""
        return Decision(
            kind=DecisionKind.NOTHING, why=f"worker {case.worker} is unreachable since {told}{but}; nothing is moved"
        )
    return Decision(kind=DecisionKind.NOTHING)


def _wait(case: _PlanContext) -> Decision:
    return case.step(f"{case.worker} is {case.seen.value} it")


def _keep(case: _PlanContext) -> Decision:
    push, asked = case.vm.dispatch, case.vm.desired.user_generation
    if push.verb == "shutdown" and push.user_generation != asked and push.sent_at is not None and not case.vm.delivered:
        # Its user has thought better of it, but the guest may be shutting down already. Only while its worker does not
        # know the newer wish can an end by our own shutdown be told from one that somebody asked for after it.
        due = push.sent_at + timedelta(seconds=case.settings.retry_cap_s)
        if case.now < due:
            return case.wait("it may still shut down, as was asked before; then it is started again", due)
    if case.vm.delivered and not changed_settings(case.vm):
        return Decision(kind=DecisionKind.NOTHING)
    # Also without a difference: once the worker knows the newest generation it refuses a late copy of an older command.
    return _command(case, "modify")


def _settle(case: _PlanContext) -> Decision:
    return Decision(kind=DecisionKind.NOTHING) if case.vm.delivered else _command(case, "shutdown")


def _report(case: _PlanContext) -> Decision:
    if not case.vm.delivered and case.vm.desired.status is DesiredStatus.RUNNING:
        return _command(case, "start")  # asked for again by a user after it was seen so
    if case.seen is ObservedStatus.GONE:
        return case.report(f"it was destroyed on {case.worker} by somebody else; destroy it here, too")
    status = case.vm.observed.status
    return case.report(f"{case.seen.value} on {case.worker}: {status.message if status else 'no message'}")


def _reboot(case: _PlanContext) -> Decision:
    policy = case.vm.desired.spec.run_policy
    if not case.vm.delivered:
        if case.seen is ObservedStatus.SAVING:
            return case.step("its disks are being saved; it starts again after that")
        return _command(case, "start")
    if policy != "always":
        return _follow(case)
    if case.seen is ObservedStatus.HALTED:
        return _start_again(case, "its guest shut it down and run_policy is always", "reboot")
    return _wait(case) if case.seen is ObservedStatus.SAVING else _report(case)


def _follow(case: _PlanContext) -> Decision:
    return Decision(kind=DecisionKind.FOLLOW, why=f"it was shut down on {case.worker}: what is wanted follows")


def _start(case: _PlanContext) -> Decision:
    vm, worker = case.vm, case.worker
    if vm.desired.worker is None:
        # No back-off: looking for a worker costs no Salt job, and each poll may have found room.
        return case.send("start", "it waits for a worker")
    if not vm.delivered:
        return _command(case, "start")
    match case.seen:
        case ObservedStatus.UNREPORTED:
            return case.step(f"{worker} took the start and has not reported yet")
        case ObservedStatus.ABSENT if vm.observed.missed_polls < case.settings.misses:
            return case.wait(f"{worker} did not list it {vm.observed.missed_polls} of {case.settings.misses} times")
        case ObservedStatus.ABSENT:
            what = f"it is missing on {worker}"
        case _:
            what = f"it {_cause(case)}"
            if vm.desired.spec.run_policy in ("once", "manual"):
                return Decision(kind=DecisionKind.FOLLOW, why=f"{what} and run_policy does not start it again")
    return _start_again(case, what, "restart")


def _may_go_elsewhere(case: _PlanContext) -> bool:
    """Whether its worker has no room for it, has nothing of it, and no copy of the command is on its way there."""
    vm, push = case.vm, case.vm.current_dispatch
    refused = push.is_about("start", vm.desired.generation) and push.problem is not None
    full = refused and vm.desired.worker in push.rejected_by and push.attempts == 1
    return full and vm.desired.pin is None and not keeps_disks(vm) and len(push.rejected_by) < MOST_TRIED


def _elsewhere(case: _PlanContext) -> Decision:
    command = Command(verb="start", generation=case.fresh, elsewhere=True)
    return Decision(
        kind=DecisionKind.SEND, why=f"{case.worker} has no room for it; another worker is looked for", command=command
    )


def _cause(case: _PlanContext) -> str:
    status = case.vm.observed.status
    cause = status.halt_cause if status else None
    return {
        HaltCause.CRASHED: "crashed",
        HaltCause.HOST_LOST: "went down with its host",
        HaltCause.KILLED: "was powered off from outside",
    }.get(cause or HaltCause.UNKNOWN, "went off for an unknown reason")


def recent_restarts(vm: VM, now: datetime, settings: Settings) -> int:
    """How often it was started again by nobody's wish, within the time that counts and since its user's last wish."""
    return len(vm.current_dispatch.recent("restart", now, timedelta(seconds=settings.restart_window_s)))


def _start_again(case: _PlanContext, what: str, retry_reason: Literal["restart", "reboot"]) -> Decision:
    """Start a VM once more that had been started: with a fresh generation and a back-off.

    Restarts have an end, too. What its guest shut down is as wanted: it neither ends, nor counts as a crash.
    """
    settings = case.settings
    if retry_reason == "restart":
        limit, before = settings.restart_limit, recent_restarts(case.vm, case.now, settings)
        if before >= limit:
            hours = settings.restart_window_s / 3600
            told = f"gave up after {limit} restarts within {hours:g} h. Find the cause, then start it"
            return case.report(f"{what}; {told}")
        number = f"restart {before + 1} of {limit}"
    else:
        window = timedelta(seconds=settings.restart_window_s)
        before = len(case.vm.current_dispatch.recent("reboot", case.now, window))
        number = f"reboot {before + 1}"
    due = (case.vm.observed.since or case.now) + backoff(before, case.vm.uuid, settings)
    if case.now < due:
        return case.wait(f"{what}; starts again at {due:%H:%M:%S} UTC ({number})", due)
    return case.send("start", f"{what}; {number}", anew=True, retry_reason=retry_reason)


def _destroy(case: _PlanContext) -> Decision:
    vm, push = case.vm, case.vm.current_dispatch
    if vm.desired.worker is None:
        return Decision(kind=DecisionKind.CONFIRM, why="no worker was ever asked to start it")
    if vm.observed.tombstone is not None and vm.observed.tombstone >= vm.desired.user_generation:
        return Decision(kind=DecisionKind.CONFIRM, why=f"{case.worker} destroyed it")
    if vm.observed.missed_polls >= case.settings.misses and _listed_after_destroy(case):
        return Decision(kind=DecisionKind.CONFIRM, why=f"{case.worker} does not have it")
    if push.verb == "destroy" and push.next_at is not None and case.now < push.next_at:
        return case.wait(f"destroy was sent to {case.worker}, not confirmed yet", push.next_at)
    # Never "delivered": it is told again, at one and the same generation, until the worker says that it is gone.
    return case.send(
        "destroy", f"to be destroyed on {case.worker}", anew=vm.observed.generation > vm.desired.generation
    )


def _listed_after_destroy(case: _PlanContext) -> bool:
    """Whether the worker's last list is from after our destroy, with time for older commands to have arrived."""
    push, worker = case.vm.current_dispatch, case.vm.worker
    if push.verb != "destroy" or push.sent_at is None or worker is None or worker.seen_at is None:
        return False
    return worker.seen_at > push.sent_at + timedelta(seconds=case.settings.action_timeout_s)


def _command(case: _PlanContext, verb: Verb) -> Decision:
    """Have one command carried out: send it, send it again while it is not taken, correct drift once, then report."""
    vm, push = case.vm, case.vm.current_dispatch
    if not push.is_about(verb, vm.desired.generation):
        # One generation names one command. A worker that has taken this one, or newer, needs the next.
        return case.send(verb, f"{verb} is on its way to {case.worker}", anew=vm.delivered or _used(case))
    if push.problem is not None and push.refused_for_good:
        return case.report(f"{case.worker} refuses to {verb} it: {push.problem.message}")
    if verb == "start" and _may_go_elsewhere(case):
        return _elsewhere(case)
    if push.next_at is not None and case.now < push.next_at:
        why = f"{verb} was sent to {case.worker}, no effect seen yet" if push.sent_at else f"{verb} waits"
        return case.wait(why if push.problem is None else f"{verb} is tried again later", push.next_at)
    if not vm.delivered:
        never = push.problem is not None and push.problem.code in NEVER_ARRIVED
        told = (
            f"{verb} goes to {case.worker} as soon as Salt takes it"
            if never
            else f"{verb} is sent again to {case.worker}"
        )
        return case.send(verb, told)
    return _correct(case, verb)


def _correct(case: _PlanContext, verb: Verb) -> Decision:
    """The worker took the command, and yet the VM is not so: give it once more, with a fresh generation."""
    push = case.vm.current_dispatch
    if push.corrected_generation == push.generation:
        return case.report(f"{case.worker} took {verb} twice, and yet it is {case.seen.value}")
    due = (push.sent_at or case.now) + timedelta(seconds=case.settings.action_timeout_s)
    if case.now < due:
        return case.wait(f"{case.worker} took {verb}, no effect seen yet", due)
    return case.send(verb, f"{verb} had no effect; sent once more", anew=True, retry_reason="correction")


def _used(case: _PlanContext) -> bool:
    """Whether the current generation was already given to another command."""
    push = case.vm.current_dispatch
    return push.verb is not None and push.generation == case.vm.desired.generation


def _verb(verb: Verb) -> Callable[[_PlanContext], Decision]:
    return lambda case: _command(case, verb)


RULE_HANDLERS: Final[Mapping[Rule, Callable[[_PlanContext], Decision]]] = {
    Rule.NOTHING: _nothing,
    Rule.WAIT: _wait,
    Rule.KEEP: _keep,
    Rule.START: _start,
    Rule.REBOOT: _reboot,
    Rule.SUSPEND: _verb("suspend"),
    Rule.RESUME: _verb("resume"),
    Rule.SHUTDOWN: _verb("shutdown"),
    Rule.FOLLOW: _follow,
    Rule.SETTLE: _settle,
    Rule.DESTROY: _destroy,
    Rule.REPORT: _report,
}
