"""What people are told of by itself, and what not. A notice says what the plan does."""

import dataclasses
from datetime import timedelta

import msgspec
import pytest

from master_service.planning.observed import Seen
from master_service.planning.planner import Do, decide
from master_service.planning.vm import Push, Real
from master_service.policy import incidents
from master_service.policy.incidents import Kind
from tests.unit.master.builders import NOW, SETTINGS, vm
from worker_service.contract import Progress


def crashed(*restarted_before, asked=1, pushed_for=1):
    """A VM that crashed just now; so long ago it was started again after earlier crashes."""
    redone = tuple(NOW - before for before in restarted_before)
    push = Push(asked=pushed_for, generation=1, verb="start", accepted=1, redone=redone)
    subject = vm(seen=Seen.CRASHED, asked=asked, push=push)
    return dataclasses.replace(subject, real=dataclasses.replace(subject.real, since=NOW))


MONTHS = [timedelta(days=30 * n) for n in range(1, 6)]
HOURS = [timedelta(hours=n) for n in range(1, 6)]


@pytest.mark.parametrize(
    ("subject", "told"),
    [
        (crashed(), False),
        (crashed(*HOURS[:4]), False),
        (crashed(*HOURS), True),
        (crashed(*MONTHS), False),
        (crashed(*HOURS[:4], *MONTHS), False),
        (crashed(*HOURS, asked=2), False),
    ],
    ids=["first", "fourth", "sixth", "over five months", "four and over months", "started again by its user"],
)
def test_a_crash_loop_is_told_exactly_when_the_plan_gives_up(subject, told):
    incident = incidents.of_vm(subject, subject.real, NOW, SETTINGS)
    gave_up = decide(subject, NOW, SETTINGS).do is Do.REPORT
    assert (incident is not None, gave_up) == (told, told)
    if incident:
        assert incident.kind is Kind.CRASH_LOOP
        assert "after 5 restarts" in incident.text


def test_a_stuck_step_is_one_incident_until_it_gets_on():
    def stuck(done, since="2026-11-23T11:00:00+00:00"):
        subject = vm(seen=Seen.SAVING)
        told = msgspec.structs.replace(subject.real.status, progress=Progress(phase="save", done=done), since=since)
        return incidents.of_stuck(dataclasses.replace(subject, real=Real(status=told)), "w1 is saving it")

    assert (stuck(1).kind, stuck(1).owner, stuck(1).name) == (Kind.STUCK, "admin", "web01")
    assert stuck(1) == stuck(1)
    assert stuck(1).key != stuck(2).key
    # A key has room for what workers say, whatever that is.
    assert len(stuck(2**62, "x" * 100_000).key) < 511
    failed = msgspec.structs.replace(vm(seen=Seen.FAILED_TO_SAVE).real.status, since="x" * 100_000)
    assert len(incidents.of_vm(vm(), Real(status=failed), NOW, SETTINGS).key) < 511
