"""The observed state of a VM after events and polls, and the bookkeeping of its commands."""

import dataclasses
from datetime import timedelta

import msgspec
import pytest

from master_service.planning.observed import ObservedStatus
from master_service.planning.vm import VM, Command, DispatchState, ObservedState, VMProblem
from master_service.policy.poll_digest import apply_event, apply_poll
from tests.unit.master.builders import CAPACITY, EARLIER, NOW, UUID, status, vm
from worker_service.contract import Code, ListReply, Progress, Status

POLLED_AT = NOW - timedelta(seconds=5)
WINDOW = timedelta(hours=8)
LONGEST = timedelta(minutes=5)


def listing(*vmachines, tombstones=None):
    return ListReply(vmachines=vmachines, foreign=(), tombstones=tombstones or {}, capacity=CAPACITY, version="0.1.0")


def listed(subject, *vmachines, **more):
    return apply_poll(subject, listing(*vmachines, **more), POLLED_AT)


def test_list_is_the_observed_state():
    real = listed(vm(observed=ObservedStatus.STARTING), status(ObservedStatus.RUNNING))
    assert (real.status.status, real.real_at, real.since, real.missed_polls) == ("running", POLLED_AT, POLLED_AT, 0)


def test_since_stays_while_nothing_changes():
    real = listed(vm(observed=ObservedStatus.RUNNING), status(ObservedStatus.RUNNING, message="still"))
    assert (real.real_at, real.since) == (POLLED_AT, EARLIER)


DAY = timedelta(days=1)


def test_times_that_are_still_to_come_count_as_now():
    """The clock went back by a day, so every stored time lies in the future."""
    noted = ObservedState(
        status=status(), real_at=NOW + DAY, since=NOW + DAY, last_progress_at=NOW + DAY, missed_polls=2
    )
    pushed = DispatchState(
        sent_at=NOW + DAY, next_at=NOW + DAY, restarts=(EARLIER, NOW + DAY), reboots=(NOW + DAY,), attempts=3
    )
    subject = dataclasses.replace(vm(), observed=noted, dispatch=pushed)
    subject = dataclasses.replace(subject, worker=dataclasses.replace(subject.worker, seen_at=NOW + DAY))
    settled = subject.clamp_to(NOW, LONGEST)
    assert settled.observed == ObservedState(
        status=status(), real_at=NOW, since=NOW, last_progress_at=NOW, missed_polls=2
    )
    assert settled.dispatch == DispatchState(
        sent_at=NOW, next_at=NOW, restarts=(EARLIER, NOW), reboots=(NOW,), attempts=3
    )
    assert settled.worker.seen_at == NOW
    assert settled.clamp_to(NOW, LONGEST) == settled


def test_list_is_believed_again_once_the_clock_went_back():
    subject = vm(observed=ObservedStatus.STARTING)
    subject = dataclasses.replace(subject, observed=dataclasses.replace(subject.observed, real_at=NOW + DAY))
    assert listed(subject, status(ObservedStatus.RUNNING)) == subject.observed
    assert listed(subject.clamp_to(POLLED_AT, LONGEST), status(ObservedStatus.RUNNING)).status.status is Status.RUNNING


@pytest.mark.parametrize("again_in", [timedelta(), LONGEST])
def test_past_times_and_the_next_try_stay(again_in):
    push = DispatchState(sent_at=EARLIER, next_at=NOW + again_in, restarts=(EARLIER,))
    subject = dataclasses.replace(vm(dispatch=push), worker=None)
    assert subject.clamp_to(NOW, LONGEST) == subject
    assert (
        VM(desired=subject.desired, observed=ObservedState(), dispatch=DispatchState()).clamp_to(NOW, LONGEST).dispatch
        == DispatchState()
    )


LOADING = Progress(phase="fetch", done=10, total=100)


@pytest.mark.parametrize(
    ("change", "moved"),
    [
        ({}, False),
        ({"progress": Progress(phase="fetch", done=10, total=100, rate=0.5, eta_s=9)}, False),
        ({"progress": Progress(phase="fetch", done=11, total=100)}, True),
        ({"progress": Progress(phase="convert", done=10, total=100)}, True),
        ({"progress": None}, True),
        ({"since": "2026-11-23T10:00:00+00:00"}, True),
        ({"message": "another try"}, True),
        ({"save_try": 2}, True),
        ({"generation": 2}, True),
        ({"status": Status.RUNNING}, True),
    ],
)
def test_any_news_from_the_worker_is_progress(change, moved):
    before = ObservedState().reported(status(ObservedStatus.STARTING, progress=LOADING), EARLIER)
    assert before.last_progress_at == EARLIER
    after = before.reported(status(ObservedStatus.STARTING, **({"progress": LOADING} | change)), NOW)
    assert after.last_progress_at == (NOW if moved else EARLIER)


def test_report_before_progress_times_counts_from_the_next():
    known = dataclasses.replace(vm(observed=ObservedStatus.STARTING).observed, last_progress_at=None)
    assert known.reported(known.status, NOW).last_progress_at == NOW


def test_event_that_came_while_the_list_was_made_stands():
    subject = vm(observed=ObservedStatus.RUNNING)
    subject = dataclasses.replace(subject, observed=dataclasses.replace(subject.observed, real_at=NOW))
    assert listed(subject, status(ObservedStatus.STARTING)) == subject.observed
    assert listed(subject) == subject.observed


def test_unlisted_vm_is_missed_unless_a_command_was_sent():
    subject = vm(observed=ObservedStatus.RUNNING)
    assert listed(subject) == dataclasses.replace(subject.observed, missed_polls=1)
    assert listed(dataclasses.replace(subject, dispatch=DispatchState(sent_at=NOW))) == subject.observed
    assert listed(dataclasses.replace(subject, dispatch=DispatchState(sent_at=EARLIER))).missed_polls == 1


def test_tombstone_counts_as_a_miss_too_and_a_listed_vm_lives():
    real = listed(vm(), tombstones={UUID: 4})
    assert (real.tombstone, real.missed_polls, real.generation) == (4, 1, 4)
    assert (
        listed(vm(observed=ObservedStatus.GONE), status(ObservedStatus.RUNNING), tombstones={UUID: 1}).tombstone is None
    )


@pytest.mark.parametrize(
    ("generation", "since", "newer"),
    [
        (4, "2026-11-23T11:00:09+00:00", True),
        (5, "2026-11-23T10:59:59+00:00", True),
        (5, "2026-11-23T11:00:00+00:00", False),
        (5, "2026-11-23T11:00:01+00:00", False),
        (6, "2026-11-23T10:00:00+00:00", False),
    ],
)
def test_known_state_may_be_newer_than_an_event(generation, since, newer):
    known = ObservedState(status=status(generation=5))
    event = msgspec.structs.replace(status(), generation=generation, since=since)
    assert known.is_newer_than(event) is newer
    assert not ObservedState().is_newer_than(event)


def test_refusal_stays_visible_until_a_retry_succeeds():
    command = Command(verb="start", generation=1)
    wait = timedelta(seconds=10)
    problem = VMProblem(code=Code.NO_ROOM, message="full")
    first = DispatchState().sending(command, user_generation=1, now=NOW, again_in=wait, window=WINDOW)
    refused = first.refused(problem, now=NOW, again_in=wait)
    again = refused.sending(command, user_generation=1, now=NOW, again_in=wait, window=WINDOW)
    assert (again.attempts, again.problem) == (2, problem)
    other = again.sending(
        Command(verb="shutdown", generation=2), user_generation=1, now=NOW, again_in=wait, window=WINDOW
    )
    assert (other.attempts, other.problem) == (1, None)
    assert again.with_accepted(1).problem is None
    assert again.with_accepted(1).accepted == 1
    unplaced = DispatchState().unplaced(problem, user_generation=1, generation=1, now=NOW, again_in=wait)
    assert unplaced.sending(command, user_generation=1, now=NOW, again_in=wait, window=WINDOW).problem is None


def test_old_restarts_are_forgotten_at_the_next_command():
    push = DispatchState(restarts=(NOW - timedelta(hours=9), EARLIER), reboots=(NOW - timedelta(hours=8), EARLIER))
    wait = timedelta(seconds=10)
    after = {
        reason: push.sending(
            Command(verb="start", generation=2, retry_reason=reason),
            user_generation=1,
            now=NOW,
            again_in=wait,
            window=WINDOW,
        )
        for reason in (None, "restart", "reboot", "correction")
    }
    assert {reason: (made.restarts, made.reboots, made.corrected_generation) for reason, made in after.items()} == {
        None: ((EARLIER,), (EARLIER,), 0),
        "restart": ((EARLIER, NOW), (EARLIER,), 0),
        "reboot": ((EARLIER,), (EARLIER, NOW), 0),
        "correction": ((EARLIER,), (EARLIER,), 2),
    }


def test_event_of_another_worker_is_no_news():
    assert apply_event(vm(), "w2", status(generation=9), NOW) is None


def test_list_of_other_vms_is_a_missed_poll():
    assert apply_poll(vm(), listing(status(uuid="another")), NOW).missed_polls == 1


@pytest.mark.parametrize(("generation", "is_news"), [(4, False), (5, False), (6, True)])
def test_event_from_before_a_tombstone_is_no_news(generation, is_news):
    destroyed = vm(observed=ObservedStatus.GONE, generation=5, taken=5)
    assert (apply_event(destroyed, "w1", status(generation=generation), NOW) is not None) is is_news
