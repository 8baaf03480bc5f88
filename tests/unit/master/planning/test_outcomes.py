"""The outcome of a command, for every verb and every observed status of its VM."""

from datetime import UTC, datetime

import pytest

from master_service.planning.observed import ObservedStatus
from master_service.planning.outcomes import OpenOperation, Outcome, outcome_of_status, resolve_outcomes

D, F, N = Outcome.DONE, Outcome.FAILED, None
ORDER = list(ObservedStatus)
T0, T1, T2 = (datetime(2026, 1, day, tzinfo=UTC) for day in (1, 2, 3))
TABLE = {
    # unreported, absent, starting, installing, running, suspended, saving, halted, crashed,
    # failed to start, failed to save, gone, unreachable
    "create": [N, N, N, N, D, D, D, D, D, F, D, N, N],
    "start": [N, N, N, N, D, D, D, D, D, F, D, N, N],
    "shutdown": [N, N, N, N, N, N, N, D, N, N, F, N, N],
    "suspend": [N, N, N, N, N, D, N, F, F, F, F, N, N],
    "resume": [N, N, N, D, D, N, N, F, F, F, F, N, N],
    "destroy": [N, N, N, N, N, N, N, N, N, N, N, D, N],
    "save_retry": [N, N, N, N, N, N, N, D, N, N, F, N, N],
    "modify": [D] * 13,
}


@pytest.mark.parametrize("verb", TABLE)
def test_every_verb_and_sight(verb):
    assert [outcome_of_status(verb, seen) for seen in ORDER] == TABLE[verb]


@pytest.mark.parametrize(
    ("lines", "seen", "generation", "expected"),
    [
        ([(1, "create", 1)], ObservedStatus.STARTING, 1, {}),
        ([(1, "create", 1)], ObservedStatus.RUNNING, 1, {1: D}),
        ([(1, "create", 1), (2, "suspend", 2)], ObservedStatus.RUNNING, 1, {1: D}),
        ([(1, "create", 1), (2, "suspend", 2)], ObservedStatus.RUNNING, 2, {1: D}),
        ([(1, "create", 1), (2, "shutdown", 2)], ObservedStatus.STARTING, 2, {}),
        ([(1, "suspend", 1), (2, "resume", 2)], ObservedStatus.RUNNING, 2, {1: Outcome.SUPERSEDED, 2: D}),
        ([(1, "suspend", 1), (2, "start", 2)], ObservedStatus.STARTING, 2, {}),
        ([(1, "suspend", 1), (2, "destroy", 2)], ObservedStatus.GONE, 2, {1: Outcome.SUPERSEDED, 2: D}),
        ([(1, "start", 3), (2, "modify", 3)], ObservedStatus.FAILED_TO_START, 4, {1: F, 2: D}),
        ([(1, "start", 5)], ObservedStatus.HALTED, 4, {}),
        ([], ObservedStatus.GONE, 9, {}),
    ],
)
def test_operations_of_one_vm_are_resolved_together(lines, seen, generation, expected):
    assert resolve_outcomes([OpenOperation(*line, at=T0) for line in lines], seen, generation, T1) == expected


@pytest.mark.parametrize(
    ("seen", "since", "expected"),
    [
        (ObservedStatus.FAILED_TO_SAVE, None, {}),
        (ObservedStatus.FAILED_TO_SAVE, T0, {}),
        (ObservedStatus.FAILED_TO_SAVE, T1, {}),
        (ObservedStatus.FAILED_TO_SAVE, T2, {1: F}),
        (ObservedStatus.SAVING, T2, {}),
        (ObservedStatus.HALTED, T0, {1: D}),
        (ObservedStatus.HALTED, T2, {1: D}),
    ],
)
def test_earlier_save_failure_says_nothing_about_a_retry(seen, since, expected):
    assert resolve_outcomes([OpenOperation(1, "save_retry", 3, at=T1)], seen, 3, since) == expected
