"""Regression: a start of a halted VM was undone at once, as the old report of the halt counted for the new life."""

import pytest

from master_service.planning.decision import DecisionKind
from master_service.planning.observed import ObservedStatus, observed_status
from master_service.planning.planner import decide
from master_service.planning.vm import DesiredStatus, DispatchState
from tests.unit.master.builders import NOW, SETTINGS, vm


def started_again(observed, reported_at):
    """A VM with a start command of generation 3. Its worker accepted that, and reported `seen` at some generation."""
    push = DispatchState(user_generation=3, generation=3, verb="start", sent_at=NOW, attempts=1, accepted=3)
    return vm(DesiredStatus.RUNNING, observed, generation=3, taken=reported_at, dispatch=push)


@pytest.mark.parametrize(
    "observed",
    [ObservedStatus.HALTED, ObservedStatus.CRASHED, ObservedStatus.FAILED_TO_START, ObservedStatus.FAILED_TO_SAVE],
)
def test_end_from_before_the_start_says_nothing(observed):
    case = started_again(observed, reported_at=2)
    assert observed_status(case) is ObservedStatus.UNREPORTED
    assert decide(case, NOW, SETTINGS).kind is DecisionKind.WAIT


def test_end_of_the_new_life_counts():
    assert observed_status(started_again(ObservedStatus.HALTED, reported_at=3)) is ObservedStatus.HALTED
    assert decide(started_again(ObservedStatus.HALTED, reported_at=3), NOW, SETTINGS).kind is DecisionKind.FOLLOW
