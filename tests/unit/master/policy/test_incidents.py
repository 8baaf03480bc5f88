"""Incidents that users are notified of. A crash loop agrees with the planner's decision."""

import dataclasses
from datetime import timedelta

import msgspec
import pytest

from master_service.planning.decision import DecisionKind
from master_service.planning.observed import ObservedStatus
from master_service.planning.planner import decide
from master_service.planning.vm import DispatchState, ObservedState, VMProblem
from master_service.policy import incidents
from master_service.policy.incidents import Kind
from tests.unit.master.builders import EARLIER, NOW, SETTINGS, SPEC, vm
from worker_service.contract import Code, Progress


def crashed(*restarted_before, user_generation=1, pushed_for=1):
    """A VM that crashed just now, with restarts after earlier crashes at these ages."""
    restarts = tuple(NOW - before for before in restarted_before)
    push = DispatchState(user_generation=pushed_for, generation=1, verb="start", accepted=1, restarts=restarts)
    subject = vm(observed=ObservedStatus.CRASHED, user_generation=user_generation, dispatch=push)
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
def test_crash_loop_is_an_incident_when_the_planner_gives_up(subject, message):
    incident = incidents.incident_from_report(subject, subject.observed, NOW, SETTINGS)
    gave_up = decide(subject, NOW, SETTINGS).kind is DecisionKind.REPORT
    assert (incident is not None, gave_up) == (message, message)
    if incident:
        assert incident.kind is Kind.CRASH_LOOP
        assert "after 5 restarts" in incident.text


def test_stuck_step_is_one_incident_until_it_gets_on():
    def stuck(done, since="2026-11-23T11:00:00+00:00"):
        subject = vm(observed=ObservedStatus.SAVING)
        message = msgspec.structs.replace(
            subject.observed.status, progress=Progress(phase="save", done=done), since=since
        )
        return incidents.stuck_incident(
            dataclasses.replace(subject, observed=ObservedState(status=message)), "w1 is saving it"
        )

    assert (stuck(1).kind, stuck(1).owner, stuck(1).name) == (Kind.STUCK, "admin", "web01")
    assert stuck(1) == stuck(1)
    assert stuck(1).key != stuck(2).key
    # A key has room for any text of a worker.
    assert len(stuck(2**62, "x" * 100_000).key) < 511
    failed = msgspec.structs.replace(vm(observed=ObservedStatus.FAILED_TO_SAVE).observed.status, since="x" * 100_000)
    assert len(incidents.incident_from_report(vm(), ObservedState(status=failed), NOW, SETTINGS).key) < 511


def test_step_stuck_before_acceptance_is_one_incident():
    sent = vm(observed=ObservedStatus.STARTING, dispatch=DispatchState(user_generation=1, generation=1, verb="start"))
    accepted = dataclasses.replace(sent, dispatch=sent.dispatch.with_accepted(1))
    assert incidents.stuck_incident(sent, "late").key == incidents.stuck_incident(accepted, "late").key


REFUSED = VMProblem(code=Code.NAME_TAKEN, message="The name is taken.")
PASSING = VMProblem(code=Code.NO_ROOM, message="There is no room.")


def refused_start(problem=REFUSED, verb="start"):
    return DispatchState(user_generation=1, generation=4, verb=verb, problem=problem)


def test_start_refused_for_good_is_one_incident():
    incident = incidents.refusal_incident(vm(), refused_start())
    assert (incident.kind, incident.owner, incident.name) == (Kind.FAILED_TO_START, "admin", "web01")
    assert incident.key == f"failed_to_start:{vm().uuid}:4:refused"
    assert REFUSED.message in incident.text


@pytest.mark.parametrize(
    "dispatch",
    [refused_start(verb="shutdown"), refused_start(None), refused_start(PASSING)],
    ids=["other verb", "no problem", "tried again"],
)
def test_refusal_of_another_kind_is_no_incident(dispatch):
    assert incidents.refusal_incident(vm(), dispatch) is None


def test_vm_without_a_report_is_no_incident():
    assert incidents.incident_from_report(vm(), ObservedState(), NOW, SETTINGS) is None


def test_silent_worker_reaches_administrators_and_each_owner():
    several = [
        vm(owner=owner, owner_id=f"id-of-{owner}", spec=msgspec.structs.replace(SPEC, name=f"{owner}{n:02}"))
        for owner, count in (("ada", 1), ("bob", 11))
        for n in range(count)
    ]
    found = {incident.owner: incident for incident in incidents.worker_incidents("w1", EARLIER, several)}
    assert sorted(found) == ["", "ada", "bob"]
    assert len({incident.key for incident in found.values()}) == 3
    assert {incident.kind for incident in found.values()} == {Kind.UNREACHABLE}
    assert {incident.name for incident in found.values()} == {"w1"}
    assert "ada00" in found["ada"].text
    assert "bob09" in found["bob"].text
    assert "bob10" not in found["bob"].text


def test_doubt_about_a_worker_is_one_incident_a_day():
    first = incidents.doubt_incident("w1", "has no signature", NOW)
    assert (first.kind, first.name, first.owner) == (Kind.NOT_BELIEVED, "w1", "")
    assert "A message in the name of worker w1 has no signature." in first.text
    keys = [
        incidents.doubt_incident(worker, doubt, at).key
        for worker, doubt, at in (
            ("w1", "has no signature", NOW + timedelta(minutes=1)),
            ("w1", "has no signature", NOW + timedelta(days=1)),
            ("w1", "was said before", NOW),
            ("w2", "has no signature", NOW),
        )
    ]
    assert [key == first.key for key in keys] == [True, False, False, False]
