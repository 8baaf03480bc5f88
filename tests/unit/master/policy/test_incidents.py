"""What people are told of by itself, and what not. A notice says what the plan does."""

import dataclasses
from datetime import timedelta

import msgspec
import pytest

from master_service.planning.observed import ObservedStatus
from master_service.planning.planner import DecisionKind, decide
from master_service.planning.vm import DispatchState, ObservedState
from master_service.policy import incidents
from master_service.policy.incidents import Kind
from tests.unit.master.builders import NOW, SETTINGS, vm
from worker_service.contract import Progress


def crashed(*restarted_before, user_generation=1, pushed_for=1):
    """A VM that crashed just now; so long ago it was started again after earlier crashes."""
    redone = tuple(NOW - before for before in restarted_before)
    push = DispatchState(user_generation=pushed_for, generation=1, verb="start", accepted=1, restarts=redone)
    subject = vm(seen=ObservedStatus.CRASHED, user_generation=user_generation, dispatch=push)
    return dataclasses.replace(subject, observed=dataclasses.replace(subject.observed, since=NOW))


MONTHS = [timedelta(days=30 * n) for n in range(1, 6)]
HOURS = [timedelta(hours=n) for n in range(1, 6)]


@pytest.mark.parametrize(
    ("subject", "message"),
    [
        (crashed(), False),
        (crashed(*HOURS[:4]), False),
        (crashed(*HOURS), True),
        (crashed(*MONTHS), False),
        (crashed(*HOURS[:4], *MONTHS), False),
        (crashed(*HOURS, user_generation=2), False),
    ],
    ids=["first", "fourth", "sixth", "over five months", "four and over months", "started again by its user"],
)
def test_a_crash_loop_is_told_exactly_when_the_plan_gives_up(subject, message):
    incident = incidents.incident_from_report(subject, subject.observed, NOW, SETTINGS)
    gave_up = decide(subject, NOW, SETTINGS).kind is DecisionKind.REPORT
    assert (incident is not None, gave_up) == (message, message)
    if incident:
        assert incident.kind is Kind.CRASH_LOOP
        assert "after 5 restarts" in incident.text


def test_a_stuck_step_is_one_incident_until_it_gets_on():
    def stuck(done, since="2026-11-23T11:00:00+00:00"):
        subject = vm(seen=ObservedStatus.SAVING)
        message = msgspec.structs.replace(
            subject.observed.status, progress=Progress(phase="save", done=done), since=since
        )
        return incidents.stuck_incident(
            dataclasses.replace(subject, observed=ObservedState(status=message)), "w1 is saving it"
        )

    assert (stuck(1).kind, stuck(1).owner, stuck(1).name) == (Kind.STUCK, "admin", "web01")
    assert stuck(1) == stuck(1)
    assert stuck(1).key != stuck(2).key
    # A key has room for what workers say, whatever that is.
    assert len(stuck(2**62, "x" * 100_000).key) < 511
    failed = msgspec.structs.replace(vm(seen=ObservedStatus.FAILED_TO_SAVE).observed.status, since="x" * 100_000)
    assert len(incidents.incident_from_report(vm(), ObservedState(status=failed), NOW, SETTINGS).key) < 511
