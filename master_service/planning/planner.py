"""Decide what to do about a VM, from values: desired state, observed state, state of dispatch, and the time.

The decision table gives a rule for each pair of (desired, observed). The handler of the rule then checks its own
conditions: whether the command was sent, whether the worker accepted it, and whether a retry is due. The functions do
no I/O, and planning twice at the same time gives the same result. Each decision has a `reason`, which `status` shows as
the cause of a difference from the desired state.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Final, Literal

from master_service.core.errors import NEVER_ARRIVED
from master_service.core.settings import Settings
from master_service.planning.actions import (
    changed_settings,
    has_changed_targets,
    lacks_owner,
    lost_on_old_worker,
    starts_from_file,
)
from master_service.planning.decision import Decision, DecisionKind, PlanContext, backoff
from master_service.planning.decision_table import DECISION_TABLE, Rule
from master_service.planning.observed import (
    ENDS,
    ObservedStatus,
    awaits_start,
    keeps_disks,
    last_reported_status,
    observed_status,
)
from master_service.planning.vm import VM, Command, DesiredStatus, Verb, Worker
from worker_service.contract import IGNORES_BUTTON, Changes, HaltCause

_ON: Final = frozenset({ObservedStatus.INSTALLING, ObservedStatus.RUNNING})
MOST_TRIED: Final = 3
"""A start that this many workers have refused for lack of room stays with the last one and is retried there."""


def decide(vm: VM, now: datetime, settings: Settings) -> Decision:
    """Decide what to do about one VM now."""
    if vm.desired.destroyed_at is not None:
        return Decision(kind=DecisionKind.NOTHING)
    observed = observed_status(vm)
    rule = DECISION_TABLE[vm.desired.status, observed]
    return RULE_HANDLERS[rule](PlanContext(vm=vm, observed=observed, now=now, settings=settings))


def plan(vms: Iterable[VM], now: datetime, settings: Settings) -> dict[str, Decision]:
    """Return, by uuid, the decisions that need an action now or at a known time."""
    decisions = {vm.uuid: decide(vm, now, settings) for vm in vms}
    return {
        uuid: d
        for uuid, d in decisions.items()
        if d.due or d.kind not in (DecisionKind.NOTHING, DecisionKind.WAIT, DecisionKind.REPORT)
    }


def _nothing(case: PlanContext) -> Decision:
    if case.observed is ObservedStatus.UNREACHABLE:
        worker: Worker | None = case.vm.worker
        since = worker.unreachable_since if worker else None
        time = f"{since:%Y-%m-%d %H:%M:%S} UTC" if since else "an unknown time"
        problem = f" ({worker.problem})" if worker and worker.problem else ""
        return Decision(
            kind=DecisionKind.NOTHING,
            reason=f"worker {case.worker} is unreachable since {time}{problem}; its VMs are not moved",
        )
    if case.observed is ObservedStatus.UNREPORTED and case.vm.observed.status is not None:
        return case.step(f"{case.worker} accepted the last command and has not reported its effect yet")
    return Decision(kind=DecisionKind.NOTHING, reason=_refusal(case))


def _wait(case: PlanContext) -> Decision:
    return case.step(f"{case.worker} is {case.observed.value} it")


def _keep(case: PlanContext) -> Decision:
    dispatch = case.vm.dispatch
    superseded = dispatch.user_generation != case.vm.desired.user_generation
    if dispatch.verb == "shutdown" and superseded and dispatch.sent_at is not None and not case.vm.status_delivered:
        # The user wants the VM to run again, but the guest may be shutting down already. Until the worker gets the
        # newer command, the master can tell an end by its own shutdown from one that a user requested afterwards.
        due = dispatch.sent_at + timedelta(seconds=case.settings.retry_cap_s)
        if case.now < due:
            return case.wait("an earlier shutdown may still take effect; then it is started again", due)
    if case.vm.delivered and changed_settings(case.vm) == Changes() and not lacks_owner(case.vm):
        return Decision(kind=DecisionKind.NOTHING)
    # Even without a difference: a worker that knows the newest generation refuses a late copy of an older command.
    return _command(case, "modify")


def _hold(case: PlanContext) -> Decision:
    """Leave a VM alone whose domain somebody else works on, and say where it is and what ends that."""
    vm, worker = case.vm, case.worker
    back = f"virsh migrate --live {vm.uuid} qemu+ssh://{worker}/system"
    if case.observed is ObservedStatus.ELSEWHERE:
        other = vm.observed.elsewhere
        return case.report(
            f"{other} runs a domain with its uuid that Saltern does not manage there, as after a migration; it gets no "
            f"command until that domain is gone from {other}. Migrate it back ({back}), or, if it is a copy, shut it "
            "down and undefine it there"
        )
    if case.observed is ObservedStatus.MIGRATED:
        place = "no worker reports where it runs now" if vm.observed.elsewhere is not None else "all workers are asked"
        return case.report(
            f"libvirt migrated it away from {worker}, and {place}; it gets no command until it is back. Migrate it "
            f"back from where it runs ({back}). To give it up, shut it down there and undefine it, and then: "
            f"salt {worker} vmachines.destroy uuid={vm.uuid}"
        )
    if case.observed is ObservedStatus.SOUGHT:
        otherwise = RULE_HANDLERS[DECISION_TABLE[vm.desired.status, ObservedStatus.CRASHED]](
            replace(case, observed=ObservedStatus.CRASHED)
        )
        search = case.wait(f"it {_cause(case)}; all workers are asked first whether they run it")
        return search if otherwise.command else otherwise
    job = vm.observed.status.job if vm.observed.status else ""
    return case.wait(
        f"libvirt on {worker} is busy with it ({job}); it gets no command until that ends. "
        f"There, virsh domjobinfo {vm.uuid} and virsh blockjob {vm.uuid} DISK show how far it is"
    )


def _shutdown(case: PlanContext) -> Decision:
    """Ask the guest to shut down, once its worker knows what becomes of the disks."""
    if disks := lost_on_old_worker(case.vm):
        return case.report(
            f"{case.worker} has a version of Saltern that would discard {disks} when it halts, and so it is not shut "
            "down. Upgrade that worker, or say what becomes of the disk: modify --hda-save-to URI, or '' to discard it"
        )
    if has_changed_targets(case.vm) and not _knows_targets(case):
        return _command(case, "modify")
    return _command(case, "shutdown")


def _knows_targets(case: PlanContext) -> bool:
    """Return whether the worker has accepted the newest targets, although its last report is older."""
    vm, dispatch = case.vm, case.vm.current_dispatch
    return dispatch.verb == "shutdown" or (dispatch.is_about("modify", vm.desired.generation) and vm.delivered)


def _settle(case: PlanContext) -> Decision:
    desired, kept = case.vm.desired, keeps_disks(case.vm)
    # A change of targets that goes before a shutdown has the generation of that shutdown.
    goes_before = case.vm.current_dispatch.verb == "modify" and desired.user_generation == desired.status_generation
    if goes_before or not case.vm.status_delivered:
        return _shutdown(case) if kept else _command(case, "shutdown")
    if kept and has_changed_targets(case.vm) and not _knows_targets(case):
        return _command(case, "modify")
    return Decision(kind=DecisionKind.NOTHING, reason=_refusal(case))


def _refusal(case: PlanContext) -> str:
    """Return why a start was given up, or "". It is shown until a user requests something else."""
    dispatch = case.vm.current_dispatch
    given_up = dispatch.verb == "start" and dispatch.refused_for_good
    return f"{case.worker} refused to start it: {dispatch.problem.message}" if given_up and dispatch.problem else ""


def _report(case: PlanContext) -> Decision:
    if awaits_start(case.vm) and case.vm.desired.status is DesiredStatus.RUNNING:
        return _command(case, "start")  # a user has requested it again since that report
    if case.observed is ObservedStatus.GONE:
        return case.report(f"it was destroyed on {case.worker}, but not through this master; destroy it here too")
    status = case.vm.observed.status
    return case.report(f"{case.observed.value} on {case.worker}: {status.message if status else 'no message'}")


def _reboot(case: PlanContext) -> Decision:
    policy = case.vm.desired.spec.run_policy
    if case.observed is ObservedStatus.FAILED_TO_SAVE:
        # A start would leave its disks behind, so the master does not keep the request until they are saved.
        return Decision(
            kind=DecisionKind.FOLLOW,
            reason=f"its disks could not be saved on {case.worker}; the desired state becomes halted",
        )
    if awaits_start(case.vm):
        if case.observed is ObservedStatus.SAVING:
            return case.step("its disks are being saved; it starts again after that")
        return _command(case, "start")
    if policy != "always":
        return _follow(case)
    if case.observed is ObservedStatus.HALTED:
        return _start_again(case, "its guest shut it down and run_policy is always", "reboot")
    return _wait(case) if case.observed is ObservedStatus.SAVING else _report(case)


def _follow(case: PlanContext) -> Decision:
    status = case.vm.observed.status
    by_guest = status is not None and status.halt_cause is HaltCause.GUEST
    return Decision(
        kind=DecisionKind.FOLLOW, reason="its guest shut it down" if by_guest else f"it was shut down on {case.worker}"
    )


def _start(case: PlanContext) -> Decision:
    vm, worker = case.vm, case.worker
    if vm.desired.worker is None:
        # Without a back-off: placement costs no Salt job, and each poll may find room.
        return case.send("start", "it waits for a worker")
    if not vm.delivered:
        return _command(case, "start")
    match case.observed:
        case ObservedStatus.UNREPORTED:
            return case.step(f"{worker} accepted the start and has not reported it yet")
        case ObservedStatus.ABSENT if vm.observed.missed_polls < case.settings.misses:
            return case.wait(f"{worker} did not list it {vm.observed.missed_polls} of {case.settings.misses} times")
        case ObservedStatus.ABSENT:
            what = f"it is missing on {worker}"
        case _:
            what = f"it {_cause(case)}"
            if vm.desired.spec.run_policy in ("once", "manual"):
                return Decision(kind=DecisionKind.FOLLOW, reason=f"{what} and run_policy does not start it again")
    return _start_again(case, what, "restart")


def _may_go_elsewhere(case: PlanContext) -> bool:
    """Return whether its worker is full, has none of its disks, and cannot receive another copy of the command."""
    vm, dispatch = case.vm, case.vm.current_dispatch
    refused = dispatch.is_about("start", vm.desired.generation) and dispatch.problem is not None
    full = refused and vm.desired.worker in dispatch.rejected_by and dispatch.attempts == 1
    is_bound = vm.desired.pin is not None or keeps_disks(vm) or starts_from_file(vm)
    return full and not is_bound and len(dispatch.rejected_by) < MOST_TRIED


def _elsewhere(case: PlanContext) -> Decision:
    command = Command(verb="start", generation=case.next_generation, elsewhere=True)
    return Decision(
        kind=DecisionKind.SEND, reason=f"{case.worker} has no room for it; it goes to another worker", command=command
    )


def _cause(case: PlanContext) -> str:
    status = case.vm.observed.status
    cause = status.halt_cause if status else None
    return {
        HaltCause.CRASHED: "crashed",
        HaltCause.HOST_LOST: "stopped with its host",
        HaltCause.KILLED: "was powered off from outside",
        HaltCause.SAVED: "had its memory saved by libvirt",
    }.get(cause or HaltCause.UNKNOWN, "stopped for an unknown reason")


def recent_restarts(vm: VM, now: datetime, settings: Settings) -> int:
    """Count its automatic restarts within `restart_window_s` and since the last change by a user."""
    return len(vm.current_dispatch.recent("restart", now, timedelta(seconds=settings.restart_window_s)))


def _start_again(case: PlanContext, what: str, retry_reason: Literal["restart", "reboot"]) -> Decision:
    """Start a VM again that was started before, with a fresh generation and a back-off.

    Restarts are limited. Reboots are not, because a shutdown by the guest is no crash.
    """
    settings = case.settings
    if retry_reason == "restart":
        limit, before = settings.restart_limit, recent_restarts(case.vm, case.now, settings)
        if before >= limit:
            hours = settings.restart_window_s / 3600
            return case.report(
                f"{what}; gave up after {limit} restarts within {hours:g} h. Find the cause, then start it"
            )
        number = f"restart {before + 1} of {limit}"
    else:
        window = timedelta(seconds=settings.restart_window_s)
        before = len(case.vm.current_dispatch.recent("reboot", case.now, window))
        number = f"reboot {before + 1}"
    due = (case.vm.observed.since or case.now) + backoff(before, case.vm.uuid, settings)
    if case.now < due:
        return case.wait(f"{what}; starts again at {due:%H:%M:%S} UTC ({number})", due)
    return case.send("start", f"{what}; {number}", new_generation=True, retry_reason=retry_reason)


def _destroy(case: PlanContext) -> Decision:
    vm, dispatch = case.vm, case.vm.current_dispatch
    if vm.desired.worker is None:
        return Decision(kind=DecisionKind.CONFIRM, reason="no worker ever got a command to start it")
    if vm.observed.tombstone is not None and vm.observed.tombstone >= vm.desired.user_generation:
        return Decision(kind=DecisionKind.CONFIRM, reason=f"{case.worker} destroyed it")
    if vm.observed.missed_polls >= case.settings.misses and _listed_after_destroy(case):
        return Decision(kind=DecisionKind.CONFIRM, reason=f"{case.worker} does not have it")
    if dispatch.verb == "destroy" and dispatch.next_at is not None and case.now < dispatch.next_at:
        return case.wait(f"destroy was sent to {case.worker}, not confirmed yet", dispatch.next_at)
    # Not `_command`: destroy is sent with the same generation until the worker reports that the VM is gone.
    return case.send(
        "destroy", f"to be destroyed on {case.worker}", new_generation=vm.observed.generation > vm.desired.generation
    )


def _listed_after_destroy(case: PlanContext) -> bool:
    """Return whether the worker's last list is newer than our destroy, by enough time for older commands to arrive."""
    dispatch, worker = case.vm.current_dispatch, case.vm.worker
    if dispatch.verb != "destroy" or dispatch.sent_at is None or worker is None or worker.seen_at is None:
        return False
    return worker.seen_at > dispatch.sent_at + timedelta(seconds=case.settings.action_timeout_s)


def _command(case: PlanContext, verb: Verb) -> Decision:
    """Send a command, send it again until it is accepted, correct drift once, then report."""
    vm, dispatch = case.vm, case.vm.current_dispatch
    if not dispatch.is_about(verb, vm.desired.generation):
        # A generation names one command. A worker that has accepted this one, or a newer one, needs the next.
        return case.send(verb, f"{verb} is on its way to {case.worker}", new_generation=vm.delivered or _used(case))
    if dispatch.problem is not None and dispatch.refused_for_good:
        return _give_up(case, verb, f"{case.worker} refuses to {verb} it: {dispatch.problem.message}")
    if verb == "start" and _may_go_elsewhere(case):
        return _elsewhere(case)
    if dispatch.next_at is not None and case.now < dispatch.next_at:
        return case.wait(
            _problem(case, verb) or f"{verb} was sent to {case.worker}, no effect observed yet", dispatch.next_at
        )
    if not vm.delivered:
        return case.send(verb, _problem(case, verb) or f"{verb} is sent again to {case.worker}")
    return _correct(case, verb)


def _problem(case: PlanContext, verb: Verb) -> str:
    """Return why the last command has no effect and is sent again, or ""."""
    dispatch = case.vm.current_dispatch
    if dispatch.problem is None:
        return ""
    if dispatch.problem.code in NEVER_ARRIVED:
        return f"{verb} goes to {case.worker} as soon as Salt accepts it: {dispatch.problem.message}"
    if dispatch.sent_at is None:  # no worker fits
        return dispatch.problem.message
    return f"{case.worker} refused the {verb}, which is sent again later: {dispatch.problem.message}"


def _give_up(case: PlanContext, verb: Verb, reason: str) -> Decision:
    """Report a command that was refused for good. A user's start of a VM that had ended is no longer desired."""
    ended = last_reported_status(case.vm) in ENDS and not case.vm.status_delivered
    return Decision(kind=DecisionKind.GIVE_UP, reason=reason) if verb == "start" and ended else case.report(reason)


def _correct(case: PlanContext, verb: Verb) -> Decision:
    """Send an accepted command once more, with a fresh generation: the VM is not in the desired state."""
    dispatch = case.vm.current_dispatch
    if dispatch.corrected_generation == dispatch.generation:
        why = f": {IGNORES_BUTTON}" if verb == "shutdown" and case.observed in _ON else ""
        return case.report(f"{case.worker} accepted {verb} twice, but it is {case.observed.value}{why}")
    due = (dispatch.sent_at or case.now) + timedelta(seconds=case.settings.action_timeout_s)
    if case.now < due:
        return case.wait(f"{case.worker} accepted {verb}, no effect observed yet", due)
    return case.send(
        verb, f"{verb} had no effect; it is sent once more", new_generation=True, retry_reason="correction"
    )


def _used(case: PlanContext) -> bool:
    """Return whether the current generation already names another command."""
    dispatch = case.vm.current_dispatch
    return dispatch.verb is not None and dispatch.generation == case.vm.desired.generation


def _verb(verb: Verb) -> Callable[[PlanContext], Decision]:
    return lambda case: _command(case, verb)


RULE_HANDLERS: Final[Mapping[Rule, Callable[[PlanContext], Decision]]] = {
    Rule.NOTHING: _nothing,
    Rule.WAIT: _wait,
    Rule.KEEP: _keep,
    Rule.START: _start,
    Rule.REBOOT: _reboot,
    Rule.SUSPEND: _verb("suspend"),
    Rule.RESUME: _verb("resume"),
    Rule.SHUTDOWN: _shutdown,
    Rule.FOLLOW: _follow,
    Rule.SETTLE: _settle,
    Rule.DESTROY: _destroy,
    Rule.REPORT: _report,
    Rule.HOLD: _hold,
}
