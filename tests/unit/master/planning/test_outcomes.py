"""The outcome of a command, for every verb and every observed status of its VM."""

from datetime import UTC, datetime

import pytest

from master_service.planning.observed import HELD, ObservedStatus
from master_service.planning.outcomes import (
    DETAIL_LIMIT,
    ONE_SHOT_VERB,
    Operation,
    Outcome,
    after_answer,
    after_destroy,
    after_new_command,
    after_one_shot_answer,
    after_one_shot_send,
    after_refused_send,
    after_report,
    after_send,
    move,
    outcome_of_status,
    resolve_outcomes,
)

D, F, N = Outcome.DONE, Outcome.FAILED, None
ORDER = [observed for observed in ObservedStatus if observed not in HELD]
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
    assert [outcome_of_status(verb, observed) for observed in ORDER] == TABLE[verb]
    assert {outcome_of_status(verb, observed) for observed in HELD} == {D if verb == "modify" else N}


@pytest.mark.parametrize(
    ("lines", "observed", "generation", "expected"),
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
def test_operations_of_one_vm_are_resolved_together(lines, observed, generation, expected):
    assert resolve_outcomes([Operation(*line, at=T0) for line in lines], observed, generation, T1) == expected


@pytest.mark.parametrize(
    ("observed", "since", "expected"),
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
def test_earlier_save_failure_says_nothing_about_a_retry(observed, since, expected):
    assert resolve_outcomes([Operation(1, "save_retry", 3, at=T1)], observed, 3, since) == expected


NEXT = {
    Outcome.QUEUED: {"sent", "accepted", "done", "failed", "refused", "superseded"},
    Outcome.SENT: {"accepted", "done", "failed", "refused", "superseded"},
    Outcome.ACCEPTED: {"done", "failed", "superseded"},
    Outcome.REFUSED: {"accepted", "refused"},
    Outcome.DENIED: set(),
    Outcome.DONE: set(),
    Outcome.FAILED: set(),
    Outcome.SUPERSEDED: set(),
}


def operation(outcome, verb="start", generation=1, **more):
    return Operation(7, verb, generation, T1, outcome=outcome, **more)


@pytest.mark.parametrize("before", Outcome)
@pytest.mark.parametrize("after", Outcome)
def test_every_pair_of_outcomes(before, after):
    if after in NEXT[before]:
        moved = move(operation(before), after, detail="why")
        assert (moved.id, moved.outcome, moved.detail) == (7, after, "why")
    else:
        with pytest.raises(AssertionError, match=f"from {before} to {after}"):
            move(operation(before), after)


SENT = {"queued": "sent", "accepted": "accepted", "done": "done", "failed": "failed", "refused": "refused"}
ANSWERED = {"queued": "accepted", "sent": "accepted", "refused": "accepted"}
REJECTED = {"queued": "refused", "sent": "refused", "refused": "refused"}


@pytest.mark.parametrize(
    ("change", "moves"),
    [
        pytest.param(lambda each: after_send(each, "1", 1), SENT, id="sent"),
        pytest.param(lambda each: after_answer(each, 1, None), ANSWERED, id="accepted"),
        pytest.param(lambda each: after_answer(each, 1, "no room"), REJECTED, id="refused"),
        pytest.param(lambda each: after_refused_send(each, "Salt is away"), REJECTED, id="refused by Salt"),
        pytest.param(after_new_command, {"queued": "superseded"}, id="a new command"),
        pytest.param(
            after_destroy, dict.fromkeys(["queued", "sent", "accepted"], "superseded"), id="its VM was destroyed"
        ),
    ],
)
@pytest.mark.parametrize("before", Outcome)
def test_operation_moves_after_each_cause(change, moves, before):
    after = change(operation(before))
    assert after.outcome == moves.get(before, before)
    if before not in moves:
        assert after == operation(before)


@pytest.mark.parametrize("before", Outcome)
def test_one_shot_operation_moves_only_by_its_own_answer(before):
    subject = operation(before, ONE_SHOT_VERB)
    for change in (
        lambda each: after_send(each, "1", 1), lambda each: after_answer(each, 1, None), after_new_command,
    ):  # fmt: skip
        assert change(subject) == subject
    handed = after_one_shot_send(subject)
    assert handed.outcome == ("sent" if before is Outcome.QUEUED else before)
    waits = before in (Outcome.QUEUED, Outcome.SENT)
    assert after_one_shot_answer(subject, None).outcome == ("accepted" if waits else before)
    refused = after_one_shot_answer(handed, "x" * 1000)
    assert (refused.outcome, len(refused.detail)) == (("refused", DETAIL_LIMIT) if waits else (before, 0))


def test_job_is_named_once_and_only_for_its_command():
    assert after_send(operation(Outcome.QUEUED, generation=2), "1", 3).jid == "1"
    assert after_send(operation(Outcome.DONE, generation=2), "1", 3).jid == ""
    assert after_send(operation(Outcome.DONE, generation=3), "1", 3).jid == "1"
    assert after_send(operation(Outcome.DONE, generation=3, jid="0"), "1", 3).jid == "0"


def test_answer_moves_no_newer_operation():
    newer = operation(Outcome.SENT, generation=2)
    assert after_answer(newer, 1, None) == newer


def test_accepted_modify_is_done():
    assert after_answer(operation(Outcome.SENT, "modify", detail="no room"), 1, None) == operation(D, "modify")


def test_refused_change_stays_refused():
    """The next command carries the former values. A repeated try of the same command may still be accepted."""
    refused = operation(Outcome.REFUSED, "modify", detail="outside")
    assert after_answer(refused, 2, None) == refused
    assert after_answer(refused, 1, None) == operation(D, "modify")


def test_destroy_is_done_with_its_vm():
    assert after_destroy(operation(Outcome.SENT, "destroy")).outcome is D


def test_report_ends_open_operations_with_its_message():
    given = [operation(Outcome.ACCEPTED), operation(Outcome.DONE)._replace(id=8)]
    (failed,) = after_report(given, ObservedStatus.FAILED_TO_START, 1, T2, "No space left.")
    assert (failed.id, failed.outcome, failed.detail) == (7, F, "No space left.")
    (done,) = after_report(given, ObservedStatus.RUNNING, 1, T2, "It is running.")
    assert (done.outcome, done.detail) == (D, "")
    assert after_report(given, ObservedStatus.STARTING, 1, T2, "") == []
