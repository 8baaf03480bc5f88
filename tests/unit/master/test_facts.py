import dataclasses
from datetime import timedelta

import msgspec
import pytest

from master_service.facts import Command, Problem, Push, Real, after_list
from master_service.seen import Seen
from tests.unit.master.builders import CAPACITY, EARLIER, NOW, UUID, status, vm
from worker_service.contract import Code, ListReply

ASKED = NOW - timedelta(seconds=5)


def listing(*vmachines, tombstones=None):
    return ListReply(vmachines=vmachines, foreign=(), tombstones=tombstones or {}, capacity=CAPACITY, version="0.1.0")


def listed(subject, *vmachines, **more):
    return after_list(subject, listing(*vmachines, **more), ASKED)


def test_what_a_list_says_is_real():
    real = listed(vm(seen=Seen.STARTING), status(Seen.RUNNING))
    assert (real.status.status, real.real_at, real.since, real.misses) == ("running", ASKED, ASKED, 0)


def test_since_stays_while_nothing_changes():
    real = listed(vm(seen=Seen.RUNNING), status(Seen.RUNNING, message="still"))
    assert (real.real_at, real.since) == (ASKED, EARLIER)


def test_an_event_that_came_while_the_list_was_made_stands():
    subject = vm(seen=Seen.RUNNING)
    subject = dataclasses.replace(subject, real=dataclasses.replace(subject.real, real_at=NOW))
    assert listed(subject, status(Seen.STARTING)) == subject.real
    assert listed(subject) == subject.real


def test_what_is_not_listed_is_missed_unless_a_command_was_sent_meanwhile():
    subject = vm(seen=Seen.RUNNING)
    assert listed(subject) == dataclasses.replace(subject.real, misses=1)
    assert listed(dataclasses.replace(subject, push=Push(sent_at=NOW))) == subject.real
    assert listed(dataclasses.replace(subject, push=Push(sent_at=EARLIER))).misses == 1


def test_a_tombstone_counts_as_a_miss_too_and_a_listed_vm_lives():
    real = listed(vm(), tombstones={UUID: 4})
    assert (real.tombstone, real.misses, real.generation) == (4, 1, 4)
    assert listed(vm(seen=Seen.GONE), status(Seen.RUNNING), tombstones={UUID: 1}).tombstone is None


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
def test_what_is_known_may_be_newer_than_an_event(generation, since, newer):
    known = Real(status=status(generation=5))
    event = msgspec.structs.replace(status(), generation=generation, since=since)
    assert known.is_newer_than(event) is newer
    assert not Real().is_newer_than(event)


def test_a_refusal_stays_visible_while_the_same_is_tried_again_and_ends_with_success():
    command = Command(verb="start", generation=1)
    wait = timedelta(seconds=10)
    problem = Problem(code=Code.NO_ROOM, message="full")
    first = Push().sending(command, asked=1, now=NOW, again_in=wait)
    refused = first.refused(problem, now=NOW, again_in=wait)
    again = refused.sending(command, asked=1, now=NOW, again_in=wait)
    assert (again.attempts, again.problem) == (2, problem)
    other = again.sending(Command(verb="shutdown", generation=2), asked=1, now=NOW, again_in=wait)
    assert (other.attempts, other.problem) == (1, None)
    assert again.taken(1).problem is None
    assert again.taken(1).accepted == 1
    unplaced = Push().unplaced(problem, asked=1, generation=1, now=NOW, again_in=wait)
    assert unplaced.sending(command, asked=1, now=NOW, again_in=wait).problem is None
