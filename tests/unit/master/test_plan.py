import dataclasses
from datetime import timedelta

import msgspec
import pytest

from master_service.planning.decision_table import MOVES, Move
from master_service.planning.observed import Seen, last_seen, seen_of
from master_service.planning.planner import Do, action_of, backoff, changed_settings, decide, plan
from master_service.planning.vm import Command, Problem, Push, Wanted
from tests.unit.master.builders import EARLIER, NOW, REPORTS, SETTINGS, SPEC, UUID, status, vm
from worker_service.contract import Code


def after(seconds):
    return NOW + timedelta(seconds=seconds)


def decision(subject, now=NOW):
    return decide(subject, now, SETTINGS)


def test_every_pair_of_wanted_and_seen_has_a_move():
    assert set(MOVES) == {(wanted, seen) for wanted in Wanted for seen in Seen}
    assert set(Move) == set(MOVES.values()) | {Move.NOTHING}


@pytest.mark.parametrize("seen", list(Seen))
def test_what_is_reported_is_seen_as_that(seen):
    subject = vm(seen=seen)
    assert seen_of(subject) is seen
    if seen in REPORTS:
        assert last_seen(subject) is seen


# wanted, seen, whether the worker took the newest command -> what is done, the verb
TABLE = [
    ("running", Seen.UNREPORTED, False, Do.SEND, "start"),
    ("running", Seen.STARTING, True, Do.WAIT, None),
    ("running", Seen.INSTALLING, True, Do.NOTHING, None),
    ("running", Seen.RUNNING, True, Do.NOTHING, None),
    ("running", Seen.RUNNING, False, Do.SEND, "modify"),
    ("running", Seen.SUSPENDED, True, Do.SEND, "resume"),
    ("running", Seen.SAVING, True, Do.FOLLOW, None),
    ("running", Seen.SAVING, False, Do.WAIT, None),
    ("running", Seen.HALTED, True, Do.FOLLOW, None),
    ("running", Seen.HALTED, False, Do.SEND, "start"),
    ("running", Seen.CRASHED, True, Do.SEND, "start"),
    ("running", Seen.CRASHED, False, Do.SEND, "start"),
    ("running", Seen.FAILED_TO_START, True, Do.REPORT, None),
    ("running", Seen.FAILED_TO_START, False, Do.SEND, "start"),
    ("running", Seen.FAILED_TO_SAVE, True, Do.FOLLOW, None),
    ("running", Seen.GONE, True, Do.REPORT, None),
    ("running", Seen.ABSENT, False, Do.SEND, "start"),
    ("running", Seen.ABSENT, True, Do.WAIT, None),
    ("running", Seen.UNREACHABLE, True, Do.NOTHING, None),
    ("running", Seen.UNREACHABLE, False, Do.NOTHING, None),
    ("paused", Seen.UNREPORTED, False, Do.SEND, "start"),
    ("paused", Seen.STARTING, True, Do.WAIT, None),
    ("paused", Seen.STARTING, False, Do.WAIT, None),
    ("paused", Seen.INSTALLING, False, Do.SEND, "suspend"),
    ("paused", Seen.RUNNING, False, Do.SEND, "suspend"),
    ("paused", Seen.RUNNING, True, Do.SEND, "suspend"),
    ("paused", Seen.SUSPENDED, True, Do.NOTHING, None),
    ("paused", Seen.SUSPENDED, False, Do.SEND, "modify"),
    ("paused", Seen.SAVING, False, Do.FOLLOW, None),
    ("paused", Seen.HALTED, False, Do.FOLLOW, None),
    ("paused", Seen.CRASHED, True, Do.REPORT, None),
    ("paused", Seen.FAILED_TO_START, True, Do.REPORT, None),
    ("paused", Seen.FAILED_TO_SAVE, False, Do.FOLLOW, None),
    ("paused", Seen.GONE, True, Do.REPORT, None),
    ("paused", Seen.ABSENT, False, Do.SEND, "start"),
    ("paused", Seen.ABSENT, True, Do.WAIT, None),
    ("paused", Seen.UNREACHABLE, False, Do.NOTHING, None),
    ("halted", Seen.UNREPORTED, False, Do.NOTHING, None),
    ("halted", Seen.STARTING, False, Do.SEND, "shutdown"),
    ("halted", Seen.INSTALLING, False, Do.SEND, "shutdown"),
    ("halted", Seen.RUNNING, False, Do.SEND, "shutdown"),
    ("halted", Seen.SUSPENDED, False, Do.SEND, "resume"),
    ("halted", Seen.SAVING, True, Do.WAIT, None),
    ("halted", Seen.HALTED, True, Do.NOTHING, None),
    ("halted", Seen.CRASHED, False, Do.SEND, "shutdown"),
    ("halted", Seen.FAILED_TO_START, False, Do.NOTHING, None),
    ("halted", Seen.FAILED_TO_SAVE, True, Do.NOTHING, None),
    ("halted", Seen.FAILED_TO_SAVE, False, Do.SEND, "modify"),
    ("halted", Seen.GONE, True, Do.NOTHING, None),
    ("halted", Seen.ABSENT, True, Do.NOTHING, None),
    ("halted", Seen.UNREACHABLE, False, Do.NOTHING, None),
    *[("destroyed", seen, False, Do.SEND, "destroy") for seen in Seen if seen is not Seen.UNREACHABLE],
    ("destroyed", Seen.GONE, True, Do.CONFIRM, None),
    ("destroyed", Seen.UNREACHABLE, False, Do.NOTHING, None),
]


def test_the_table_decides_every_pair():
    assert {(Wanted(wanted), seen) for wanted, seen, *_ in TABLE} == set(MOVES)


@pytest.mark.parametrize(("wanted", "seen", "taken", "do", "verb"), TABLE)
def test_decision(wanted, seen, taken, do, verb):
    made = decision(vm(Wanted(wanted), seen, generation=5, taken=5 if taken else 4))
    assert made.do is do
    assert (made.command.verb if made.command else None) == verb


def test_everything_that_is_not_as_wanted_says_why():
    for wanted, seen in MOVES:
        for taken in (4, 5):
            made = decision(vm(wanted, seen, generation=5, taken=taken))
            assert made.why or made.do is Do.NOTHING


def test_a_destroyed_vm_is_left_alone():
    assert decision(vm(Wanted.DESTROYED, Seen.RUNNING, destroyed_at=EARLIER)).do is Do.NOTHING


def test_a_vm_without_worker_is_destroyed_at_once():
    assert decision(vm(Wanted.DESTROYED, Seen.UNREPORTED, worker=None)).do is Do.CONFIRM


WINDOW = timedelta(seconds=SETTINGS.restart_window_s)


def sent(verb, generation, *, at=NOW, again_in_s=10, redo=None, push=None, asked=None):
    """Bookkeeping after this command was sent."""
    command = Command(verb=verb, generation=generation, redo=redo)
    asked = generation if asked is None else asked
    again_in = timedelta(seconds=again_in_s)
    return (push or Push()).sending(command, asked=asked, now=at, again_in=again_in, window=WINDOW)


def test_a_command_that_is_not_taken_is_sent_again_at_the_same_generation():
    subject = vm(seen=Seen.UNREPORTED, generation=1, push=sent("start", 1))
    waiting = decision(subject, after(9))
    assert (waiting.do, waiting.due) == (Do.WAIT, after(10))
    assert decision(subject, after(10)).command == Command(verb="start", generation=1)


def test_a_refusal_for_good_is_not_repeated_until_the_user_changes_something():
    refused = sent("start", 1).refused(Problem(code=Code.POLICY, message="no"), now=NOW, again_in=timedelta())
    assert decision(vm(seen=Seen.UNREPORTED, push=refused), after(10_000)).do is Do.REPORT
    assert decision(vm(seen=Seen.UNREPORTED, generation=2, push=refused)).command == Command(verb="start", generation=2)


def test_who_waits_for_a_worker_is_placed_as_soon_as_somebody_looks():
    full = Problem(code=Code.NO_ROOM, message="no worker fits")
    push = Push().unplaced(full, asked=1, generation=1, now=NOW, again_in=timedelta(hours=1))
    subject = vm(seen=Seen.UNREPORTED, worker=None, push=push)
    assert decision(subject).command == Command(verb="start", generation=1)


def test_a_passing_refusal_is_repeated_after_its_back_off():
    wait = timedelta(seconds=40)
    refused = sent("start", 1).refused(Problem(code=Code.NO_ROOM, message="full"), now=NOW, again_in=wait)
    subject = vm(seen=Seen.UNREPORTED, push=refused)
    assert decision(subject, after(39)).due == after(40)
    assert decision(subject, after(40)).command == Command(verb="start", generation=1)


def test_a_destroy_is_repeated_whatever_was_refused():
    refused = sent("destroy", 2).refused(Problem(code=Code.POLICY, message="no"), now=NOW, again_in=timedelta())
    assert decision(vm(Wanted.DESTROYED, generation=2, push=refused), after(1)).command.verb == "destroy"


def test_an_older_tombstone_does_not_confirm_a_newer_destroy():
    subject = vm(Wanted.DESTROYED, Seen.GONE, generation=5, taken=4)
    assert decision(subject).command == Command(verb="destroy", generation=5)


def test_a_list_from_well_after_the_destroy_confirms_it():
    push = sent("destroy", 2, again_in_s=1000)
    subject = vm(Wanted.DESTROYED, Seen.ABSENT, generation=2, misses=3, push=push)
    assert decision(subject, after(100)).do is Do.WAIT  # the list is from before
    worker = dataclasses.replace(subject.worker, seen_at=after(90))
    assert decision(dataclasses.replace(subject, worker=worker), after(100)).do is Do.CONFIRM


def test_one_generation_names_one_command():
    """Started by generation 1, then wanted paused before it ran: suspend is another command, so another generation."""
    subject = vm(Wanted.PAUSED, Seen.RUNNING, generation=1, taken=1, push=sent("start", 1))
    assert decision(subject).command == Command(verb="suspend", generation=2)


def test_a_start_after_a_shutdown_waits_for_what_comes_of_the_shutdown():
    """Told the newer generation at once, the worker's report of the end would look like one that came after it."""
    subject = vm(Wanted.RUNNING, Seen.RUNNING, generation=3, taken=2, push=sent("shutdown", 2))
    waiting = decision(subject, after(299))
    assert (waiting.do, waiting.due) == (Do.WAIT, after(300))
    assert decision(subject, after(300)).command == Command(verb="modify", generation=3)
    ended = vm(Wanted.RUNNING, Seen.HALTED, generation=3, taken=2, push=sent("shutdown", 2))
    assert decision(ended, after(1)).command == Command(verb="start", generation=3)


def test_drift_is_corrected_once_and_then_reported():
    push = sent("resume", 2)
    subject = vm(Wanted.RUNNING, Seen.SUSPENDED, generation=2, taken=2, push=push)
    assert decision(subject, after(29)).due == after(30)
    again = decision(subject, after(31)).command
    assert again == Command(verb="resume", generation=3, redo="correction")
    push = sent("resume", 3, at=after(31), redo="correction", push=push, asked=2)
    subject = vm(Wanted.RUNNING, Seen.SUSPENDED, generation=3, asked=2, taken=3, push=push)
    assert decision(subject, after(1000)).do is Do.REPORT


def test_a_crashed_vm_starts_again_with_growing_pauses_until_it_is_given_up():
    push, waits = Push(asked=1, generation=1, verb="start", sent_at=EARLIER), []
    generation, crashed_at = 1, NOW
    for _ in range(SETTINGS.restart_limit):
        subject = crashed(generation, crashed_at, push)
        made = decision(subject, crashed_at)
        if made.do is Do.WAIT:
            waits.append((made.due - crashed_at).total_seconds())
            made = decision(subject, made.due)
        assert made.command == Command(verb="start", generation=generation + 1, redo="restart")
        generation, crashed_at = generation + 1, crashed_at + timedelta(minutes=10)
        push = sent("start", generation, at=crashed_at, again_in_s=0, redo="restart", push=push, asked=1)
    for n, waited in enumerate(waits, start=1):
        assert 10 * n**2 <= waited <= 10 * n**2 + 5
    assert decision(crashed(generation, crashed_at, push), crashed_at).do is Do.REPORT
    # The window passes, or its user starts it again: then there are new tries.
    assert decision(crashed(generation, crashed_at, push), crashed_at + timedelta(hours=9)).do is Do.SEND
    restarted = vm(seen=Seen.CRASHED, generation=generation + 1, taken=generation, push=push)
    assert decision(restarted).command == Command(verb="start", generation=generation + 1)


def crashed(generation, at, push):
    subject = vm(seen=Seen.CRASHED, generation=generation, asked=1, taken=generation, push=push)
    return dataclasses.replace(subject, real=dataclasses.replace(subject.real, since=at))


@pytest.mark.parametrize("policy", ["once", "manual"])
def test_run_policies_that_never_start_again(policy):
    spec = msgspec.structs.replace(SPEC, run_policy=policy)
    assert decision(vm(seen=Seen.CRASHED, spec=spec)).do is Do.FOLLOW


def test_run_policy_always_boots_again_what_its_guest_shut_down():
    spec = msgspec.structs.replace(SPEC, run_policy="always")
    made = decision(vm(seen=Seen.HALTED, spec=spec))
    assert made.command == Command(verb="start", generation=2, redo="reboot")


def test_what_its_guest_shut_down_is_no_crash():
    """Five reboots that its guest wished for, and then one crash: that is its first restart."""
    spec, push = msgspec.structs.replace(SPEC, run_policy="always"), Push(asked=1)
    for n in range(5):
        push = sent("start", n + 2, at=after(600 * n), redo="reboot", push=push, asked=1)
    subject = dataclasses.replace(crashed(6, after(3000), push), worker=vm().worker)
    subject = dataclasses.replace(subject, assumed=dataclasses.replace(subject.assumed, spec=spec))
    made = decision(subject, after(3000))
    assert made.command == Command(verb="start", generation=7, redo="restart")
    assert "restart 1 of 5" in made.why
    # Its reboots still have pauses of their own that grow, whatever crashed.
    off = vm(seen=Seen.HALTED, generation=6, asked=1, taken=6, push=push, spec=spec)
    off = dataclasses.replace(off, real=dataclasses.replace(off.real, since=after(3000)))
    assert decision(off, after(3000)).due >= after(3000 + 10 * 5**2)


def test_a_restart_after_a_crash_is_no_correction_of_drift():
    push = sent("resume", 3, push=sent("start", 2, at=EARLIER, redo="restart", asked=1), asked=1)
    subject = vm(Wanted.RUNNING, Seen.SUSPENDED, generation=3, asked=1, taken=3, push=push)
    assert decision(subject, after(31)).command == Command(verb="resume", generation=4, redo="correction")


def test_a_missing_vm_is_started_again_after_three_misses():
    for misses in (1, 2):
        assert decision(vm(seen=Seen.ABSENT, misses=misses)).do is Do.WAIT
    assert decision(vm(seen=Seen.ABSENT, misses=3)).command == Command(verb="start", generation=2, redo="restart")


DAY = timedelta(days=1)


@pytest.mark.parametrize(
    ("subject", "verb"),
    [
        (vm(seen=Seen.UNREPORTED, push=sent("start", 1, at=NOW + DAY)), "start"),
        (vm(Wanted.DESTROYED, generation=2, push=sent("destroy", 2, at=NOW + DAY)), "destroy"),
        (vm(Wanted.PAUSED, generation=2, taken=2, push=sent("suspend", 2, at=NOW + DAY)), "suspend"),
        (vm(Wanted.RUNNING, generation=3, taken=2, push=sent("shutdown", 2, at=NOW + DAY)), "modify"),
    ],
    ids=["a lost start", "a lost destroy", "drift", "second thoughts"],
)
def test_nothing_waits_for_a_clock_that_went_back(subject, verb):
    longest = timedelta(seconds=SETTINGS.retry_cap_s)
    at_the_latest = after(SETTINGS.retry_cap_s)
    assert decision(subject, at_the_latest).do is Do.WAIT
    assert decision(subject.not_after(NOW, longest), at_the_latest).command.verb == verb


def test_a_crashed_vm_is_restarted_although_the_clock_went_back():
    subject = crashed(1, NOW + DAY, Push(asked=1, generation=1, verb="start", redone=(NOW + DAY,)))
    longest = timedelta(seconds=SETTINGS.retry_cap_s)
    assert decision(subject, after(60)).do is Do.WAIT
    assert decision(subject.not_after(NOW, longest), after(60)).command.redo == "restart"


STUCK = [
    # wanted, seen, whether the worker took the newest command, what is being waited for
    ("running", Seen.STARTING, True, "w1 is starting it"),
    ("paused", Seen.STARTING, True, "w1 is starting it"),
    ("halted", Seen.SAVING, True, "w1 is saving it"),
    ("running", Seen.SAVING, False, "its disks are being saved; it starts again after that"),
]


@pytest.mark.parametrize(("wanted", "seen", "taken", "told"), STUCK)
def test_a_step_without_any_progress_is_stuck_after_its_time(wanted, seen, taken, told):
    subject = vm(Wanted(wanted), seen, generation=5, taken=5 if taken else 4)
    subject = dataclasses.replace(subject, real=dataclasses.replace(subject.real, moved_at=NOW))
    almost = decision(subject, after(SETTINGS.stuck_s - 1))
    assert (almost.do, almost.why) == (Do.WAIT, told)
    stuck = decision(subject, after(SETTINGS.stuck_s))
    assert stuck.do is Do.STUCK
    assert stuck.why.startswith(f"{told}, and nothing about it has changed since 2026-11-23 12:00:00 UTC")
    assert UUID in plan([subject], after(SETTINGS.stuck_s), SETTINGS)
    # Whatever was told to its worker last gives it time, too.
    pushed = dataclasses.replace(subject, push=Push(asked=1, sent_at=after(600)))
    assert decision(pushed, after(SETTINGS.stuck_s + 599)).do is Do.WAIT
    assert decision(pushed, after(SETTINGS.stuck_s + 600)).do is Do.STUCK


def test_a_start_that_is_never_reported_is_stuck_too():
    push = Push(asked=3, generation=3, verb="start", sent_at=NOW, attempts=1, accepted=3)
    subject = vm(Wanted.RUNNING, Seen.HALTED, generation=3, taken=2, push=push)
    assert decision(subject, after(SETTINGS.stuck_s)).do is Do.STUCK


def test_what_is_no_step_is_never_stuck():
    """A VM may run, or be off, for years; and a silent worker says nothing about a step."""
    steps = {(Wanted(wanted), seen) for wanted, seen, _, _ in STUCK}
    for wanted, seen in set(MOVES) - steps:
        subject = vm(wanted, seen, generation=5, taken=5)
        subject = dataclasses.replace(subject, real=dataclasses.replace(subject.real, moved_at=EARLIER))
        expected = seen in (Seen.STARTING, Seen.SAVING) and decision(subject, EARLIER).do is Do.WAIT
        assert (decision(subject, after(10_000)).do is Do.STUCK) is expected, (wanted, seen)


def test_changed_settings_are_told_and_nothing_else():
    spec = msgspec.structs.replace(SPEC, hda_save_to="file:/srv/saved/other.qcow2", cd_image="file:/srv/iso/a.iso")
    subject = vm(seen=Seen.RUNNING, generation=2, spec=spec)
    assert changed_settings(subject) == {"hda_save_to": spec.hda_save_to, "cd_image": spec.cd_image}
    assert changed_settings(vm(seen=Seen.INSTALLING, generation=2, spec=spec)) == {"hda_save_to": spec.hda_save_to}
    told = action_of(subject, decision(subject).command)
    assert (told.verb, told.generation, told.params) == ("modify", 2, changed_settings(subject))


def test_absent_and_empty_places_to_save_to_are_the_same():
    spec = msgspec.structs.replace(SPEC, hda_save_to="")
    subject = vm(spec=spec)
    real = dataclasses.replace(subject.real, status=status(spec=msgspec.structs.replace(SPEC, hda_save_to=None)))
    assert changed_settings(dataclasses.replace(subject, real=real)) == {}


def test_a_start_carries_the_whole_spec():
    told = action_of(vm(), Command(verb="start", generation=7))
    assert (told.uuid, told.generation) == (UUID, 7)
    assert told.params == msgspec.to_builtins(SPEC)


def test_commands_stay_above_what_the_worker_was_told():
    """A database restored from yesterday knows less than the worker."""
    subject = vm(Wanted.DESTROYED, Seen.RUNNING, generation=2, taken=9)
    assert decision(subject).command == Command(verb="destroy", generation=10)


def test_back_off():
    waits = [backoff(n, UUID, SETTINGS).total_seconds() for n in range(8)]
    assert waits[0] == 0
    assert all(10 * n**2 <= waits[n] <= 10 * n**2 + 5 for n in range(1, 6))
    assert waits[6:] == [300, 300]
    others = {backoff(1, f"{UUID}{n}", SETTINGS) for n in range(20)}
    assert len(others) > 10


def test_planning_twice_is_planning_once():
    vms = [vm(wanted, seen, generation=3, taken=2) for wanted, seen in MOVES]
    vms = [dataclasses.replace(v, assumed=dataclasses.replace(v.assumed, uuid=f"vm{n}")) for n, v in enumerate(vms)]
    first = plan(vms, NOW, SETTINGS)
    assert first == plan(vms, NOW, SETTINGS)
    assert first


def test_once_sent_nothing_more_is_to_be_done_now():
    for wanted, seen in MOVES:
        subject = vm(wanted, seen, generation=3, taken=2)
        made = decision(subject)
        if made.command is None:
            continue
        again_in = timedelta(seconds=10)
        push = subject.current_push.sending(made.command, asked=3, now=NOW, again_in=again_in, window=WINDOW)
        assumed = dataclasses.replace(subject.assumed, generation=made.command.generation)
        assert decision(dataclasses.replace(subject, assumed=assumed, push=push)).do is Do.WAIT
