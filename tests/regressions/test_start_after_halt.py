"""A start on a halted VM was taken back at once: the old report of the halt counted as a halt of the new life."""

import pytest

from master_service.planning.observed import Seen, seen_of
from master_service.planning.planner import Do, decide
from master_service.planning.vm import Push, Wanted
from tests.unit.master.builders import NOW, SETTINGS, vm


def started_again(seen, reported_at):
    """A VM that was told to start at generation 3; its worker took that, and reported `seen` at some generation."""
    push = Push(asked=3, generation=3, verb="start", sent_at=NOW, attempts=1, accepted=3)
    return vm(Wanted.RUNNING, seen, generation=3, taken=reported_at, push=push)


@pytest.mark.parametrize("seen", [Seen.HALTED, Seen.CRASHED, Seen.FAILED_TO_START, Seen.FAILED_TO_SAVE])
def test_an_end_from_before_the_start_says_nothing(seen):
    case = started_again(seen, reported_at=2)
    assert seen_of(case) is Seen.UNREPORTED
    assert decide(case, NOW, SETTINGS).do is Do.WAIT


def test_an_end_of_the_new_life_counts():
    assert seen_of(started_again(Seen.HALTED, reported_at=3)) is Seen.HALTED
    assert decide(started_again(Seen.HALTED, reported_at=3), NOW, SETTINGS).do is Do.FOLLOW
