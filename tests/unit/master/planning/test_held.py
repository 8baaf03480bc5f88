"""A VM whose domain somebody else works on: no command, and a problem that says where it is and what ends that."""

import dataclasses
from datetime import timedelta

import msgspec
import pytest

from master_service.planning.decision import DecisionKind
from master_service.planning.observed import HELD, LEFT, ObservedStatus, observed_status
from master_service.planning.planner import decide
from master_service.planning.status import display_status
from master_service.planning.vm import DesiredStatus
from master_service.policy.poll_digest import apply_event, apply_poll
from tests.unit.master.builders import CAPACITY, EARLIER, NOW, SETTINGS, UUID, status, vm
from worker_service.contract import HaltCause, ListReply, Status

LATER = NOW + timedelta(days=1)


def with_observed(subject, **changes):
    return dataclasses.replace(subject, observed=dataclasses.replace(subject.observed, **changes))


def reported(subject, **changes):
    return with_observed(subject, status=msgspec.structs.replace(subject.observed.status, **changes))


@pytest.mark.parametrize("desired", list(DesiredStatus))
@pytest.mark.parametrize("observed", list(HELD))
@pytest.mark.parametrize("taken", [4, 5])
def test_held_vm_gets_no_command_at_any_time(desired, observed, taken):
    subject = vm(desired, observed, generation=5, taken=taken)
    for at in (NOW, LATER):
        made = decide(subject, at, SETTINGS)
        assert made.command is None
        assert made.kind in (DecisionKind.WAIT, DecisionKind.REPORT) or observed is ObservedStatus.SOUGHT
        assert made.reason or made.kind is DecisionKind.NOTHING


@pytest.mark.parametrize(
    ("subject", "code", "sentences"),
    [
        (
            vm(observed=ObservedStatus.ELSEWHERE),
            "elsewhere",
            [
                "W2 runs a domain with its uuid",
                f"virsh migrate --live {UUID} qemu+ssh://w1/system",
                "undefine it there",
            ],
        ),
        (
            vm(observed=ObservedStatus.MIGRATED),
            "migrated",
            ["migrated it away from w1", "no worker reports where", f"salt w1 vmachines.destroy uuid={UUID}"],
        ),
        (
            with_observed(vm(observed=ObservedStatus.MIGRATED), elsewhere=None),
            "migrated",
            ["migrated it away from w1", "all workers are asked"],
        ),
        (vm(observed=ObservedStatus.BUSY), "busy", ["on w1 is busy with it (migration)", f"virsh domjobinfo {UUID}"]),
    ],
)
def test_problem_says_where_it_is_and_what_to_do(subject, code, sentences):
    shown = display_status(subject, NOW, SETTINGS)
    (problem,) = shown.problems
    assert problem.code == code
    assert [each for each in sentences if each not in problem.message] == []
    assert shown.reason


@pytest.mark.parametrize("cause", list(HaltCause))
def test_unknown_end_is_looked_for_on_all_workers_first(cause):
    off = reported(vm(observed=ObservedStatus.CRASHED), halt_cause=cause)
    unknown = with_observed(off, elsewhere=None)
    held = observed_status(unknown) in HELD
    assert held is (cause in LEFT)
    back = off if cause is not HaltCause.MIGRATED else vm()
    assert observed_status(back) not in HELD


def test_vm_that_is_back_goes_on():
    there = vm(DesiredStatus.HALTED, ObservedStatus.MIGRATED, generation=5, taken=4)
    assert decide(there, NOW, SETTINGS).command is None
    back = reported(there, status=Status.RUNNING, halt_cause=None)
    assert decide(back, NOW, SETTINGS).command.verb == "shutdown"
    assert display_status(back, NOW, SETTINGS).problems == ()


def test_vm_is_held_without_a_worker_and_on_a_silent_one():
    """A fence took it from its worker, or its worker is silent: another one runs it all the same."""
    assert observed_status(vm(observed=ObservedStatus.ELSEWHERE, worker=None)) is ObservedStatus.ELSEWHERE
    silent = with_observed(vm(observed=ObservedStatus.UNREACHABLE), elsewhere="w2")
    assert decide(silent, LATER, SETTINGS).command is None
    assert [problem.code for problem in display_status(silent, NOW, SETTINGS).problems] == ["unreachable", "elsewhere"]


def test_record_that_vanished_after_a_migration_starts_nothing():
    lost = with_observed(vm(observed=ObservedStatus.MIGRATED), missed_polls=9)
    assert decide(lost, LATER, SETTINGS).command is None


def test_destroyed_record_ends_the_hold_by_the_worker():
    """A person gave it up on its worker, as the problem says."""
    given_up = with_observed(vm(DesiredStatus.DESTROYED, ObservedStatus.MIGRATED, generation=5, taken=4), tombstone=5)
    assert decide(given_up, NOW, SETTINGS).kind is DecisionKind.CONFIRM


def test_news_of_the_worker_reopens_the_search():
    subject = vm()
    assert apply_event(subject, "w1", status(since="2026-11-23T12:00:00+00:00"), NOW).elsewhere == ""
    killed = status(ObservedStatus.CRASHED, halt_cause=HaltCause.KILLED)
    assert apply_event(subject, "w1", killed, NOW).elsewhere is None
    # Where it was found it stays until a poll says otherwise, whatever its own worker reports.
    found = with_observed(subject, elsewhere="w2")
    assert apply_event(found, "w1", killed, NOW).elsewhere == "w2"
    reply = ListReply(vmachines=(killed,), foreign=(), tombstones={}, capacity=CAPACITY, version="1")
    assert apply_poll(found, reply, NOW).elsewhere == "w2"


@pytest.mark.parametrize(
    ("before", "real_at", "found", "complete", "after"),
    [
        (None, EARLIER, "w2", False, "w2"),
        (None, EARLIER, "", False, None),
        (None, EARLIER, "", True, ""),
        ("w2", EARLIER, "", False, "w2"),
        ("w2", EARLIER, "", True, ""),
        ("", EARLIER, "w3", True, "w3"),
        (None, NOW + timedelta(seconds=1), "", True, None),  # an event came since the poll was sent
        (None, NOW + timedelta(seconds=1), "w2", True, "w2"),
        (None, None, "", True, ""),
    ],
)
def test_search_is_proven_by_a_complete_poll(before, real_at, found, complete, after):
    observed = dataclasses.replace(vm().observed, elsewhere=before, real_at=real_at)
    assert observed.after_search(found, NOW, complete=complete).elsewhere == after
