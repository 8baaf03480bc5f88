"""What a command has come to, for every verb and everything that may be seen of its VM."""

from datetime import UTC, datetime

import pytest

from master_service.planning.observed import Seen
from master_service.planning.outcomes import Open, Outcome, came_to, outcomes

D, F, N = Outcome.DONE, Outcome.FAILED, None
ORDER = list(Seen)
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
    assert [came_to(verb, seen) for seen in ORDER] == TABLE[verb]


@pytest.mark.parametrize(
    ("lines", "seen", "generation", "expected"),
    [
        ([(1, "create", 1)], Seen.STARTING, 1, {}),
        ([(1, "create", 1)], Seen.RUNNING, 1, {1: D}),
        ([(1, "create", 1), (2, "suspend", 2)], Seen.RUNNING, 1, {1: D}),
        ([(1, "create", 1), (2, "suspend", 2)], Seen.RUNNING, 2, {1: D}),
        ([(1, "create", 1), (2, "shutdown", 2)], Seen.STARTING, 2, {}),
        ([(1, "suspend", 1), (2, "resume", 2)], Seen.RUNNING, 2, {1: Outcome.OVERTAKEN, 2: D}),
        ([(1, "suspend", 1), (2, "start", 2)], Seen.STARTING, 2, {}),
        ([(1, "suspend", 1), (2, "destroy", 2)], Seen.GONE, 2, {1: Outcome.OVERTAKEN, 2: D}),
        ([(1, "start", 3), (2, "modify", 3)], Seen.FAILED_TO_START, 4, {1: F, 2: D}),
        ([(1, "start", 5)], Seen.HALTED, 4, {}),
        ([], Seen.GONE, 9, {}),
    ],
)
def test_lines_of_one_vm(lines, seen, generation, expected):
    assert outcomes([Open(*line, at=T0) for line in lines], seen, generation, T1) == expected


@pytest.mark.parametrize(
    ("seen", "since", "expected"),
    [
        (Seen.FAILED_TO_SAVE, None, {}),
        (Seen.FAILED_TO_SAVE, T0, {}),
        (Seen.FAILED_TO_SAVE, T1, {}),
        (Seen.FAILED_TO_SAVE, T2, {1: F}),
        (Seen.SAVING, T2, {}),
        (Seen.HALTED, T0, {1: D}),
        (Seen.HALTED, T2, {1: D}),
    ],
)
def test_what_had_failed_before_a_save_was_tried_again_says_nothing_of_that_try(seen, since, expected):
    assert outcomes([Open(1, "save_retry", 3, at=T1)], seen, 3, since) == expected
