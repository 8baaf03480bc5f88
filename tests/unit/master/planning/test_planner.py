"""The planner: the decision table over every pair of desired and observed status, retries, back-off, stuck steps."""

import dataclasses
from datetime import timedelta

import msgspec
import pytest

from master_service.planning.actions import action_of, changed_settings
from master_service.planning.decision import DecisionKind, backoff
from master_service.planning.decision_table import DECISION_TABLE, Rule
from master_service.planning.observed import HELD, ObservedStatus, last_reported_status, observed_status
from master_service.planning.planner import decide, plan
from master_service.planning.vm import Command, DesiredStatus, DispatchState, VMProblem
from tests.unit.master.builders import CAPACITY, EARLIER, NOW, REPORTS, SETTINGS, SPEC, UUID, status, vm
from worker_service.contract import OWNER_FEATURE, Changes, Code


def after(seconds):
    return NOW + timedelta(seconds=seconds)


def decision(subject, now=NOW):
    return decide(subject, now, SETTINGS)


def test_every_desired_and_observed_pair_has_a_rule():
    assert set(DECISION_TABLE) == {(desired, observed) for desired in DesiredStatus for observed in ObservedStatus}
    assert set(Rule) == set(DECISION_TABLE.values()) | {Rule.NOTHING}


@pytest.mark.parametrize("observed", list(ObservedStatus))
def test_reports_map_to_observed_status(observed):
    subject = vm(observed=observed)
    assert observed_status(subject) is observed
    if observed in REPORTS:
        assert last_reported_status(subject) is observed


HELD_UNTIL = {
    ObservedStatus.ELSEWHERE: DecisionKind.REPORT,
    ObservedStatus.MIGRATED: DecisionKind.REPORT,
    ObservedStatus.BUSY: DecisionKind.WAIT,
    ObservedStatus.SOUGHT: DecisionKind.WAIT,
    # Where nothing would be sent anyway, nothing waits for the search.
    (DesiredStatus.PAUSED, True, ObservedStatus.SOUGHT): DecisionKind.REPORT,
    (DesiredStatus.PAUSED, False, ObservedStatus.SOUGHT): DecisionKind.REPORT,
    (DesiredStatus.HALTED, True, ObservedStatus.SOUGHT): DecisionKind.NOTHING,
}
# wanted, seen, whether the worker took the newest command -> what is done, the verb
TABLE = [
    ("running", ObservedStatus.UNREPORTED, False, DecisionKind.SEND, "start"),
    ("running", ObservedStatus.STARTING, True, DecisionKind.WAIT, None),
    ("running", ObservedStatus.INSTALLING, True, DecisionKind.NOTHING, None),
    ("running", ObservedStatus.RUNNING, True, DecisionKind.NOTHING, None),
    ("running", ObservedStatus.RUNNING, False, DecisionKind.SEND, "modify"),
    ("running", ObservedStatus.SUSPENDED, True, DecisionKind.SEND, "resume"),
    ("running", ObservedStatus.SAVING, True, DecisionKind.FOLLOW, None),
    ("running", ObservedStatus.SAVING, False, DecisionKind.WAIT, None),
    ("running", ObservedStatus.HALTED, True, DecisionKind.FOLLOW, None),
    ("running", ObservedStatus.HALTED, False, DecisionKind.SEND, "start"),
    ("running", ObservedStatus.CRASHED, True, DecisionKind.SEND, "start"),
    ("running", ObservedStatus.CRASHED, False, DecisionKind.SEND, "start"),
    ("running", ObservedStatus.FAILED_TO_START, True, DecisionKind.REPORT, None),
    ("running", ObservedStatus.FAILED_TO_START, False, DecisionKind.SEND, "start"),
    ("running", ObservedStatus.FAILED_TO_SAVE, True, DecisionKind.FOLLOW, None),
    ("running", ObservedStatus.GONE, True, DecisionKind.REPORT, None),
    ("running", ObservedStatus.ABSENT, False, DecisionKind.SEND, "start"),
    ("running", ObservedStatus.ABSENT, True, DecisionKind.WAIT, None),
    ("running", ObservedStatus.UNREACHABLE, True, DecisionKind.NOTHING, None),
    ("running", ObservedStatus.UNREACHABLE, False, DecisionKind.NOTHING, None),
    ("paused", ObservedStatus.UNREPORTED, False, DecisionKind.SEND, "start"),
    ("paused", ObservedStatus.STARTING, True, DecisionKind.WAIT, None),
    ("paused", ObservedStatus.STARTING, False, DecisionKind.WAIT, None),
    ("paused", ObservedStatus.INSTALLING, False, DecisionKind.SEND, "suspend"),
    ("paused", ObservedStatus.RUNNING, False, DecisionKind.SEND, "suspend"),
    ("paused", ObservedStatus.RUNNING, True, DecisionKind.SEND, "suspend"),
    ("paused", ObservedStatus.SUSPENDED, True, DecisionKind.NOTHING, None),
    ("paused", ObservedStatus.SUSPENDED, False, DecisionKind.SEND, "modify"),
    ("paused", ObservedStatus.SAVING, False, DecisionKind.FOLLOW, None),
    ("paused", ObservedStatus.HALTED, False, DecisionKind.FOLLOW, None),
    ("paused", ObservedStatus.CRASHED, True, DecisionKind.REPORT, None),
    ("paused", ObservedStatus.FAILED_TO_START, True, DecisionKind.REPORT, None),
    ("paused", ObservedStatus.FAILED_TO_SAVE, False, DecisionKind.FOLLOW, None),
    ("paused", ObservedStatus.GONE, True, DecisionKind.REPORT, None),
    ("paused", ObservedStatus.ABSENT, False, DecisionKind.SEND, "start"),
    ("paused", ObservedStatus.ABSENT, True, DecisionKind.WAIT, None),
    ("paused", ObservedStatus.UNREACHABLE, False, DecisionKind.NOTHING, None),
    ("halted", ObservedStatus.UNREPORTED, False, DecisionKind.NOTHING, None),
    ("halted", ObservedStatus.STARTING, False, DecisionKind.SEND, "shutdown"),
    ("halted", ObservedStatus.INSTALLING, False, DecisionKind.SEND, "shutdown"),
    ("halted", ObservedStatus.RUNNING, False, DecisionKind.SEND, "shutdown"),
    ("halted", ObservedStatus.SUSPENDED, False, DecisionKind.SEND, "resume"),
    ("halted", ObservedStatus.SAVING, True, DecisionKind.WAIT, None),
    ("halted", ObservedStatus.HALTED, True, DecisionKind.NOTHING, None),
    ("halted", ObservedStatus.CRASHED, False, DecisionKind.SEND, "shutdown"),
    ("halted", ObservedStatus.FAILED_TO_START, False, DecisionKind.NOTHING, None),
    ("halted", ObservedStatus.FAILED_TO_SAVE, True, DecisionKind.NOTHING, None),
    ("halted", ObservedStatus.FAILED_TO_SAVE, False, DecisionKind.SEND, "modify"),
    ("halted", ObservedStatus.GONE, True, DecisionKind.REPORT, None),
    ("halted", ObservedStatus.ABSENT, True, DecisionKind.NOTHING, None),
    ("halted", ObservedStatus.UNREACHABLE, False, DecisionKind.NOTHING, None),
    *[
        ("destroyed", observed, False, DecisionKind.SEND, "destroy")
        for observed in ObservedStatus
        if observed not in HELD and observed is not ObservedStatus.UNREACHABLE
    ],
    *[
        (desired.value, observed, taken, HELD_UNTIL.get((desired, taken, observed), HELD_UNTIL[observed]), None)
        for desired in DesiredStatus
        for observed in HELD
        for taken in (True, False)
    ],
    ("destroyed", ObservedStatus.GONE, True, DecisionKind.CONFIRM, None),
    ("destroyed", ObservedStatus.UNREACHABLE, False, DecisionKind.NOTHING, None),
]


def test_table_decides_every_pair():
    assert {(DesiredStatus(desired), observed) for desired, observed, *_ in TABLE} == set(DECISION_TABLE)


@pytest.mark.parametrize(("desired", "observed", "taken", "do", "verb"), TABLE)
def test_cases_of_the_planner_are_decided(desired, observed, taken, do, verb):
    made = decision(vm(DesiredStatus(desired), observed, generation=5, taken=5 if taken else 4))
    assert made.kind is do
    assert (made.command.verb if made.command else None) == verb


def test_every_difference_has_a_reason():
    for desired, observed in DECISION_TABLE:
        for taken in (4, 5):
            made = decision(vm(desired, observed, generation=5, taken=taken))
            assert made.reason or made.kind is DecisionKind.NOTHING


def test_destroyed_vm_is_left_alone():
    assert (
        decision(vm(DesiredStatus.DESTROYED, ObservedStatus.RUNNING, destroyed_at=EARLIER)).kind is DecisionKind.NOTHING
    )


def test_vm_without_worker_is_destroyed_at_once():
    assert decision(vm(DesiredStatus.DESTROYED, ObservedStatus.UNREPORTED, worker=None)).kind is DecisionKind.CONFIRM


WINDOW = timedelta(seconds=SETTINGS.restart_window_s)


def sent(verb, generation, *, at=NOW, again_in_s=10, retry_reason=None, dispatch=None, user_generation=None):
    """The dispatch state after this command was sent."""
    command = Command(verb=verb, generation=generation, retry_reason=retry_reason)
    user_generation = generation if user_generation is None else user_generation
    again_in = timedelta(seconds=again_in_s)
    return (dispatch or DispatchState()).sending(
        command, user_generation=user_generation, now=at, again_in=again_in, window=WINDOW
    )


def test_unaccepted_command_repeats_its_generation():
    subject = vm(observed=ObservedStatus.UNREPORTED, generation=1, dispatch=sent("start", 1))
    waiting = decision(subject, after(9))
    assert (waiting.kind, waiting.due) == (DecisionKind.WAIT, after(10))
    assert decision(subject, after(10)).command == Command(verb="start", generation=1)


def test_permanent_refusal_is_not_repeated_until_a_change():
    refused = sent("start", 1).refused(VMProblem(code=Code.POLICY, message="no"), now=NOW, again_in=timedelta())
    assert decision(vm(observed=ObservedStatus.UNREPORTED, dispatch=refused), after(10_000)).kind is DecisionKind.REPORT
    assert decision(vm(observed=ObservedStatus.UNREPORTED, generation=2, dispatch=refused)).command == Command(
        verb="start", generation=2
    )


def test_unplaced_vm_is_placed_at_the_next_look():
    full = VMProblem(code=Code.NO_ROOM, message="no worker fits")
    push = DispatchState().unplaced(full, user_generation=1, generation=1, now=NOW, again_in=timedelta(hours=1))
    subject = vm(observed=ObservedStatus.UNREPORTED, worker=None, dispatch=push)
    assert decision(subject).command == Command(verb="start", generation=1)


def test_passing_refusal_is_repeated_after_its_back_off():
    wait = timedelta(seconds=40)
    refused = sent("start", 1).refused(VMProblem(code=Code.NO_ROOM, message="full"), now=NOW, again_in=wait)
    subject = vm(observed=ObservedStatus.UNREPORTED, dispatch=refused)
    assert decision(subject, after(39)).due == after(40)
    assert decision(subject, after(40)).command == Command(verb="start", generation=1)


@pytest.mark.parametrize(
    ("code", "sent_before", "reason"),
    [
        (Code.NO_ROOM, True, "w1 refused the start, which is sent again later: It is full."),
        ("salt_unavailable", True, "start goes to w1 as soon as Salt accepts it: It is full."),
        (Code.NO_ROOM, False, "It is full."),
    ],
)
def test_refusal_is_the_reason_until_the_next_answer(code, sent_before, reason):
    """Before the next try, when it is due, and while that try has no answer yet."""
    problem = VMProblem(code=code, message="It is full.")
    push = sent("start", 1).refused(problem, now=NOW, again_in=timedelta(seconds=40))
    push = push if sent_before else dataclasses.replace(push, sent_at=None)
    subject = vm(observed=ObservedStatus.UNREPORTED, dispatch=push)
    assert [decision(subject, after(s)).reason for s in (0, 39, 40)] == [reason] * 3
    if sent_before:
        again = dataclasses.replace(subject, dispatch=sent("start", 1, at=after(40), dispatch=push))
        assert decision(again, after(41)).reason == reason


def test_destroy_is_repeated_whatever_was_refused():
    refused = sent("destroy", 2).refused(VMProblem(code=Code.POLICY, message="no"), now=NOW, again_in=timedelta())
    assert decision(vm(DesiredStatus.DESTROYED, generation=2, dispatch=refused), after(1)).command.verb == "destroy"


def test_older_tombstone_does_not_confirm_a_newer_destroy():
    subject = vm(DesiredStatus.DESTROYED, ObservedStatus.GONE, generation=5, taken=4)
    assert decision(subject).command == Command(verb="destroy", generation=5)


def test_list_from_well_after_the_destroy_confirms_it():
    push = sent("destroy", 2, again_in_s=1000)
    subject = vm(DesiredStatus.DESTROYED, ObservedStatus.ABSENT, generation=2, missed_polls=3, dispatch=push)
    assert decision(subject, after(100)).kind is DecisionKind.WAIT  # the list is from before
    worker = dataclasses.replace(subject.worker, seen_at=after(90))
    assert decision(dataclasses.replace(subject, worker=worker), after(100)).kind is DecisionKind.CONFIRM


def test_one_generation_names_one_command():
    """Started by generation 1, then paused before it ran: suspend is another command, so it has another generation."""
    subject = vm(DesiredStatus.PAUSED, ObservedStatus.RUNNING, generation=1, taken=1, dispatch=sent("start", 1))
    assert decision(subject).command == Command(verb="suspend", generation=2)


def test_start_after_shutdown_waits_for_its_outcome():
    """With the newer generation at once, the worker's report of the end would look like one that came after it."""
    subject = vm(DesiredStatus.RUNNING, ObservedStatus.RUNNING, generation=3, taken=2, dispatch=sent("shutdown", 2))
    waiting = decision(subject, after(299))
    assert (waiting.kind, waiting.due) == (DecisionKind.WAIT, after(300))
    assert decision(subject, after(300)).command == Command(verb="modify", generation=3)
    ended = vm(DesiredStatus.RUNNING, ObservedStatus.HALTED, generation=3, taken=2, dispatch=sent("shutdown", 2))
    assert decision(ended, after(1)).command == Command(verb="start", generation=3)


def test_drift_is_corrected_once_and_then_reported():
    push = sent("resume", 2)
    subject = vm(DesiredStatus.RUNNING, ObservedStatus.SUSPENDED, generation=2, taken=2, dispatch=push)
    assert decision(subject, after(29)).due == after(30)
    again = decision(subject, after(31)).command
    assert again == Command(verb="resume", generation=3, retry_reason="correction")
    push = sent("resume", 3, at=after(31), retry_reason="correction", dispatch=push, user_generation=2)
    subject = vm(
        DesiredStatus.RUNNING, ObservedStatus.SUSPENDED, generation=3, user_generation=2, taken=3, dispatch=push
    )
    assert decision(subject, after(1000)).kind is DecisionKind.REPORT


@pytest.mark.parametrize("observed", [ObservedStatus.RUNNING, ObservedStatus.INSTALLING])
def test_guest_that_ignores_the_power_button_is_named(observed):
    push = sent("shutdown", 3, retry_reason="correction", dispatch=sent("shutdown", 2), user_generation=2)
    subject = vm(DesiredStatus.HALTED, observed, generation=3, user_generation=2, taken=3, dispatch=push)
    made = decision(subject, after(1000))
    assert made.kind is DecisionKind.REPORT
    for words in (
        "accepted shutdown twice",
        "its guest ignores the power button",
        "`poweroff` on its console",
        "acpid",
    ):
        assert words in made.reason


def test_crashed_vm_restarts_with_growing_pauses_until_given_up():
    push, waits = DispatchState(user_generation=1, generation=1, verb="start", sent_at=EARLIER), []
    generation, crashed_at = 1, NOW
    for _ in range(SETTINGS.restart_limit):
        subject = crashed(generation, crashed_at, push)
        made = decision(subject, crashed_at)
        if made.kind is DecisionKind.WAIT:
            waits.append((made.due - crashed_at).total_seconds())
            made = decision(subject, made.due)
        assert made.command == Command(verb="start", generation=generation + 1, retry_reason="restart")
        generation, crashed_at = generation + 1, crashed_at + timedelta(minutes=10)
        push = sent(
            "start", generation, at=crashed_at, again_in_s=0, retry_reason="restart", dispatch=push, user_generation=1
        )
    for n, waited in enumerate(waits, start=1):
        assert 10 * n**2 <= waited <= 10 * n**2 + 5
    assert decision(crashed(generation, crashed_at, push), crashed_at).kind is DecisionKind.REPORT
    # The window passes, or its user starts it again: then there are new tries.
    assert decision(crashed(generation, crashed_at, push), crashed_at + timedelta(hours=9)).kind is DecisionKind.SEND
    restarted = vm(observed=ObservedStatus.CRASHED, generation=generation + 1, taken=generation, dispatch=push)
    assert decision(restarted).command == Command(verb="start", generation=generation + 1)


def crashed(generation, at, push):
    subject = vm(
        observed=ObservedStatus.CRASHED, generation=generation, user_generation=1, taken=generation, dispatch=push
    )
    return dataclasses.replace(subject, observed=dataclasses.replace(subject.observed, since=at))


@pytest.mark.parametrize("policy", ["once", "manual"])
def test_run_policies_that_never_start_again(policy):
    spec = msgspec.structs.replace(SPEC, run_policy=policy)
    assert decision(vm(observed=ObservedStatus.CRASHED, spec=spec)).kind is DecisionKind.FOLLOW


def test_run_policy_always_restarts_after_guest_shutdown():
    spec = msgspec.structs.replace(SPEC, run_policy="always")
    made = decision(vm(observed=ObservedStatus.HALTED, spec=spec))
    assert made.command == Command(verb="start", generation=2, retry_reason="reboot")


def test_guest_shutdown_is_no_crash():
    """Five reboots that its guest requested, and then one crash: that is its first restart."""
    spec, push = msgspec.structs.replace(SPEC, run_policy="always"), DispatchState(user_generation=1)
    for n in range(5):
        push = sent("start", n + 2, at=after(600 * n), retry_reason="reboot", dispatch=push, user_generation=1)
    subject = dataclasses.replace(crashed(6, after(3000), push), worker=vm().worker)
    subject = dataclasses.replace(subject, desired=dataclasses.replace(subject.desired, spec=spec))
    made = decision(subject, after(3000))
    assert made.command == Command(verb="start", generation=7, retry_reason="restart")
    assert "restart 1 of 5" in made.reason
    # Its reboots still have pauses of their own that grow, whatever crashed.
    off = vm(observed=ObservedStatus.HALTED, generation=6, user_generation=1, taken=6, dispatch=push, spec=spec)
    off = dataclasses.replace(off, observed=dataclasses.replace(off.observed, since=after(3000)))
    assert decision(off, after(3000)).due >= after(3000 + 10 * 5**2)


def test_restart_after_a_crash_is_no_correction_of_drift():
    push = sent(
        "resume", 3, dispatch=sent("start", 2, at=EARLIER, retry_reason="restart", user_generation=1), user_generation=1
    )
    subject = vm(
        DesiredStatus.RUNNING, ObservedStatus.SUSPENDED, generation=3, user_generation=1, taken=3, dispatch=push
    )
    assert decision(subject, after(31)).command == Command(verb="resume", generation=4, retry_reason="correction")


def test_missing_vm_is_started_again_after_three_misses():
    for misses in (1, 2):
        assert decision(vm(observed=ObservedStatus.ABSENT, missed_polls=misses)).kind is DecisionKind.WAIT
    assert decision(vm(observed=ObservedStatus.ABSENT, missed_polls=3)).command == Command(
        verb="start", generation=2, retry_reason="restart"
    )


DAY = timedelta(days=1)


@pytest.mark.parametrize(
    ("subject", "verb"),
    [
        (vm(observed=ObservedStatus.UNREPORTED, dispatch=sent("start", 1, at=NOW + DAY)), "start"),
        (vm(DesiredStatus.DESTROYED, generation=2, dispatch=sent("destroy", 2, at=NOW + DAY)), "destroy"),
        (vm(DesiredStatus.PAUSED, generation=2, taken=2, dispatch=sent("suspend", 2, at=NOW + DAY)), "suspend"),
        (vm(DesiredStatus.RUNNING, generation=3, taken=2, dispatch=sent("shutdown", 2, at=NOW + DAY)), "modify"),
    ],
    ids=["a lost start", "a lost destroy", "drift", "second thoughts"],
)
def test_clock_set_back_delays_nothing(subject, verb):
    longest = timedelta(seconds=SETTINGS.retry_cap_s)
    at_the_latest = after(SETTINGS.retry_cap_s)
    assert decision(subject, at_the_latest).kind is DecisionKind.WAIT
    assert decision(subject.clamp_to(NOW, longest), at_the_latest).command.verb == verb


def test_crashed_vm_is_restarted_although_the_clock_went_back():
    subject = crashed(1, NOW + DAY, DispatchState(user_generation=1, generation=1, verb="start", restarts=(NOW + DAY,)))
    longest = timedelta(seconds=SETTINGS.retry_cap_s)
    assert decision(subject, after(60)).kind is DecisionKind.WAIT
    assert decision(subject.clamp_to(NOW, longest), after(60)).command.retry_reason == "restart"


STUCK = [
    # desired, observed, whether the worker accepted the newest command, the expected reason
    ("running", ObservedStatus.STARTING, True, "w1 is starting it"),
    ("paused", ObservedStatus.STARTING, True, "w1 is starting it"),
    ("halted", ObservedStatus.SAVING, True, "w1 is saving it"),
    ("running", ObservedStatus.SAVING, False, "its disks are being saved; it starts again after that"),
]


@pytest.mark.parametrize(("desired", "observed", "taken", "message"), STUCK)
def test_step_without_any_progress_is_stuck_after_its_time(desired, observed, taken, message):
    subject = vm(DesiredStatus(desired), observed, generation=5, taken=5 if taken else 4)
    subject = dataclasses.replace(subject, observed=dataclasses.replace(subject.observed, last_progress_at=NOW))
    almost = decision(subject, after(SETTINGS.stuck_s - 1))
    assert (almost.kind, almost.reason) == (DecisionKind.WAIT, message)
    stuck = decision(subject, after(SETTINGS.stuck_s))
    assert stuck.kind is DecisionKind.STUCK
    assert stuck.reason.startswith(f"{message}, without progress since 2026-11-23 12:00:00 UTC")
    assert UUID in plan([subject], after(SETTINGS.stuck_s), SETTINGS)
    # A command that was sent to its worker gives it time, too.
    pushed = dataclasses.replace(subject, dispatch=DispatchState(user_generation=1, sent_at=after(600)))
    assert decision(pushed, after(SETTINGS.stuck_s + 599)).kind is DecisionKind.WAIT
    assert decision(pushed, after(SETTINGS.stuck_s + 600)).kind is DecisionKind.STUCK


def test_start_that_is_never_reported_is_stuck_too():
    push = DispatchState(user_generation=3, generation=3, verb="start", sent_at=NOW, attempts=1, accepted=3)
    subject = vm(DesiredStatus.RUNNING, ObservedStatus.HALTED, generation=3, taken=2, dispatch=push)
    assert decision(subject, after(SETTINGS.stuck_s)).kind is DecisionKind.STUCK


def test_vm_without_a_step_is_never_stuck():
    """A VM may run, or be off, for years, and a silent worker reports no step."""
    steps = {(DesiredStatus(desired), observed) for desired, observed, _, _ in STUCK}
    for desired, observed in set(DECISION_TABLE) - steps:
        subject = vm(desired, observed, generation=5, taken=5)
        subject = dataclasses.replace(subject, observed=dataclasses.replace(subject.observed, last_progress_at=EARLIER))
        expected = (
            observed in (ObservedStatus.STARTING, ObservedStatus.SAVING)
            and decision(subject, EARLIER).kind is DecisionKind.WAIT
        )
        assert (decision(subject, after(10_000)).kind is DecisionKind.STUCK) is expected, (desired, observed)


def test_changed_settings_alone_are_sent():
    spec = msgspec.structs.replace(SPEC, hda_save_to="file:/srv/saved/other.qcow2", cd_image="file:/srv/iso/a.iso")
    subject = vm(observed=ObservedStatus.RUNNING, generation=2, spec=spec)
    assert changed_settings(subject) == Changes(hda_save_to=spec.hda_save_to, cd_image=spec.cd_image)
    assert changed_settings(vm(observed=ObservedStatus.INSTALLING, generation=2, spec=spec)) == Changes(
        hda_save_to=spec.hda_save_to
    )
    message = action_of(subject, decision(subject).command)
    assert (message.verb, message.generation, message.params) == ("modify", 2, changed_settings(subject))


def test_absent_and_empty_places_to_save_to_are_the_same():
    spec = msgspec.structs.replace(SPEC, hda_save_to="")
    subject = vm(spec=spec)
    real = dataclasses.replace(subject.observed, status=status(spec=msgspec.structs.replace(SPEC, hda_save_to=None)))
    assert changed_settings(dataclasses.replace(subject, observed=real)) == Changes()


def test_start_carries_the_whole_spec():
    message = action_of(vm(), Command(verb="start", generation=7))
    assert (message.uuid, message.generation) == (UUID, 7)
    assert message.params == SPEC


def test_generation_stays_above_that_of_the_worker():
    """A database restored from yesterday knows less than the worker."""
    subject = vm(DesiredStatus.DESTROYED, ObservedStatus.RUNNING, generation=2, taken=9)
    assert decision(subject).command == Command(verb="destroy", generation=10)


def test_back_off_grows_up_to_its_bound():
    waits = [backoff(n, UUID, SETTINGS).total_seconds() for n in range(8)]
    assert waits[0] == 0
    assert all(10 * n**2 <= waits[n] <= 10 * n**2 + 5 for n in range(1, 6))
    assert waits[6:] == [300, 300]
    others = {backoff(1, f"{UUID}{n}", SETTINGS) for n in range(20)}
    assert len(others) > 10


def test_planning_twice_is_planning_once():
    vms = [vm(desired, observed, generation=3, taken=2) for desired, observed in DECISION_TABLE]
    vms = [dataclasses.replace(v, desired=dataclasses.replace(v.desired, uuid=f"vm{n}")) for n, v in enumerate(vms)]
    first = plan(vms, NOW, SETTINGS)
    assert first == plan(vms, NOW, SETTINGS)
    assert first


def test_second_plan_after_sending_is_empty():
    for desired, observed in DECISION_TABLE:
        subject = vm(desired, observed, generation=3, taken=2)
        made = decision(subject)
        if made.command is None:
            continue
        again_in = timedelta(seconds=10)
        push = subject.current_dispatch.sending(
            made.command, user_generation=3, now=NOW, again_in=again_in, window=WINDOW
        )
        assumed = dataclasses.replace(subject.desired, generation=made.command.generation)
        assert decision(dataclasses.replace(subject, desired=assumed, dispatch=push)).kind is DecisionKind.WAIT


def test_settings_that_a_worker_did_not_report_are_not_changed():
    subject = vm()
    unknown = dataclasses.replace(subject.observed, status=status(spec=None))
    assert changed_settings(dataclasses.replace(subject, observed=unknown)) == Changes()


def test_missing_vm_without_a_destroy_sent_gets_one():
    subject = vm(DesiredStatus.DESTROYED, ObservedStatus.ABSENT, generation=2, missed_polls=3)
    assert decision(subject, after(100)).command == Command(verb="destroy", generation=2)


@pytest.mark.parametrize(
    ("observed", "kind"),
    [(ObservedStatus.SAVING, DecisionKind.WAIT), (ObservedStatus.FAILED_TO_SAVE, DecisionKind.FOLLOW)],
)
def test_run_policy_always_starts_only_a_saved_vm(observed, kind):
    spec = msgspec.structs.replace(SPEC, run_policy="always")
    assert decision(vm(observed=observed, spec=spec)).kind is kind


@pytest.mark.parametrize("verb", ["shutdown", "suspend", "resume", "destroy"])
def test_action_of_another_verb_carries_no_parameters(verb):
    message = action_of(vm(), Command(verb=verb, generation=7))
    assert (message.verb, message.generation) == (verb, 7)
    assert "params" not in msgspec.to_builtins(message)


def on_worker(owner, *, features=(OWNER_FEATURE,), **more):
    """A running VM of admin on a worker with these features, which reports it under an owner."""
    made = vm(spec=SPEC, **more)
    worker = dataclasses.replace(made.worker, capacity=msgspec.structs.replace(CAPACITY, features=features))
    observed = dataclasses.replace(made.observed, status=msgspec.structs.replace(made.observed.status, owner=owner))
    return dataclasses.replace(made, worker=worker, observed=observed)


@pytest.mark.parametrize("verb", ["start", "modify"])
def test_owner_goes_to_workers_that_read_it(verb):
    command = Command(verb=verb, generation=2)
    assert action_of(on_worker(""), command).owner == "admin"
    assert "owner" not in msgspec.to_builtins(action_of(on_worker("", features=()), command))  # 0.2 would refuse it
    assert "owner" not in msgspec.to_builtins(action_of(vm(worker=None), command))
    assert not hasattr(action_of(on_worker(""), Command(verb="suspend", generation=2)), "owner")


def test_worker_with_another_owner_gets_it_once():
    """After an upgrade of the master or of the worker."""
    assert decision(on_worker("admin")).kind is DecisionKind.NOTHING
    assert decision(on_worker("", features=())).kind is DecisionKind.NOTHING
    made = decision(on_worker(""))
    assert (made.kind, made.command.verb, made.command.generation) == (DecisionKind.SEND, "modify", 2)
    again = sent("modify", 2, retry_reason="correction").with_accepted(2)
    stays = decision(on_worker("", generation=2, taken=2, dispatch=again), after(3600))
    assert stays.kind is DecisionKind.REPORT
