"""Operations: requested changes, from queued to done, failed, refused or superseded. Pure.

An operation is one requested change. Every change of its outcome goes through `move`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from enum import StrEnum
from typing import Any, Final, NamedTuple

from master_service.planning.observed import ObservedStatus


class Outcome(StrEnum):
    """The outcome of an operation, or of an act in the audit."""

    QUEUED = "queued"
    """Stored, and not yet sent to a worker."""
    SENT = "sent"
    """Handed to Salt as the job that is named."""
    ACCEPTED = "accepted"
    """Its worker has acknowledged it."""
    DONE = "done"
    """Its effect was observed, or it had nothing to do."""
    FAILED = "failed"
    """Accepted, and then it came to another end; the detail is the worker's message."""
    REFUSED = "refused"
    """By its worker, or by Salt before that; the detail says why."""
    DENIED = "denied"
    """By this master: the caller is unknown, or lacks the permission."""
    SUPERSEDED = "superseded"
    """A newer command came before this one was sent, or before its effect was observed."""


OPEN_OUTCOMES: Final = frozenset({Outcome.QUEUED, Outcome.SENT, Outcome.ACCEPTED})
"""Outcomes that are not final: the effect is still awaited."""

TRANSITIONS: Final[Mapping[Outcome, frozenset[Outcome]]] = {
    # A worker may answer, or show the effect, before the job that carried the command is stored.
    Outcome.QUEUED: frozenset(
        {Outcome.SENT, Outcome.ACCEPTED, Outcome.DONE, Outcome.FAILED, Outcome.REFUSED, Outcome.SUPERSEDED}
    ),
    Outcome.SENT: frozenset({Outcome.ACCEPTED, Outcome.DONE, Outcome.FAILED, Outcome.REFUSED, Outcome.SUPERSEDED}),
    Outcome.ACCEPTED: frozenset({Outcome.DONE, Outcome.FAILED, Outcome.SUPERSEDED}),
    # A command is sent again after a refusal: the worker may accept it, or refuse for another reason.
    Outcome.REFUSED: frozenset({Outcome.ACCEPTED, Outcome.REFUSED}),
    Outcome.DENIED: frozenset(),
    Outcome.DONE: frozenset(),
    Outcome.FAILED: frozenset(),
    Outcome.SUPERSEDED: frozenset(),
}

ONE_SHOT_VERB: Final = "save_retry"
"""The verb that changes no desired state: it is sent once, at the VM's generation, and not by the pusher."""

DETAIL_LIMIT: Final = 300
"""Characters of a detail."""


class Operation(NamedTuple):
    """One requested change, and how far it is. `jid`: the Salt job that carried it, or empty."""

    id: int
    verb: str
    generation: int
    at: datetime
    uuid: str = ""
    outcome: Outcome = Outcome.QUEUED
    detail: str = ""
    jid: str = ""


def move(operation: Operation, outcome: Outcome, **changes: Any) -> Operation:
    """Return the operation with its next outcome.

    Raises AssertionError for a step that the transition table does not have: a bug, not a user's mistake.
    """
    if outcome not in TRANSITIONS[operation.outcome]:
        raise AssertionError(f"no transition from {operation.outcome} to {outcome} (operation {operation.id})")
    return operation._replace(outcome=outcome, **changes)


def after_send(operation: Operation, jid: str, generation: int) -> Operation:
    """Return the operation after Salt took a job for its VM. `generation`: of the command in that job."""
    if operation.verb == ONE_SHOT_VERB or operation.jid:
        return operation
    if operation.outcome is Outcome.QUEUED:
        return move(operation, Outcome.SENT, jid=jid)
    # A fast worker has answered already, or shows the effect: only the job is still to be named.
    answered = operation.outcome in (Outcome.ACCEPTED, Outcome.DONE, Outcome.FAILED, Outcome.REFUSED)
    return operation._replace(jid=jid) if answered and operation.generation == generation else operation


def after_answer(operation: Operation, generation: int, reason: str | None) -> Operation:
    """Return the operation after a worker answered the command of `generation`. `reason`: of its refusal."""
    if operation.verb == ONE_SHOT_VERB or operation.generation > generation:
        return operation
    if operation.outcome not in (Outcome.QUEUED, Outcome.SENT, Outcome.REFUSED):
        return operation
    if operation.verb == "modify" and operation.outcome is Outcome.REFUSED and operation.generation < generation:
        return operation  # the change was taken back, and the newer command does not have it
    if reason is not None:
        return move(operation, Outcome.REFUSED, detail=reason)
    accepted = move(operation, Outcome.ACCEPTED, detail="")
    # The effect of a modify cannot be observed.
    return move(accepted, Outcome.DONE) if operation.verb == "modify" else accepted


def after_one_shot_send(operation: Operation) -> Operation:
    """Return a one-shot operation that was sent, and whose worker has not answered."""
    return move(operation, Outcome.SENT) if operation.outcome is Outcome.QUEUED else operation


def after_one_shot_answer(operation: Operation, reason: str | None) -> Operation:
    """Return a one-shot operation after its worker answered. `reason`: of its refusal."""
    if operation.outcome not in (Outcome.QUEUED, Outcome.SENT):
        return operation  # a report has shown the effect already
    outcome = Outcome.ACCEPTED if reason is None else Outcome.REFUSED
    return move(operation, outcome, detail=(reason or "")[:DETAIL_LIMIT])


def after_refused_send(operation: Operation, reason: str) -> Operation:
    """Return the operation after Salt refused its job."""
    if Outcome.REFUSED not in TRANSITIONS[operation.outcome]:
        return operation
    return move(operation, Outcome.REFUSED, detail=reason[:DETAIL_LIMIT])


def after_new_command(operation: Operation) -> Operation:
    """Return the operation after its user gave the VM another command."""
    waits = operation.outcome is Outcome.QUEUED and operation.verb != ONE_SHOT_VERB
    return move(operation, Outcome.SUPERSEDED) if waits else operation


def after_destroy(operation: Operation) -> Operation:
    """Return the operation after its VM was destroyed: no other effect can follow."""
    if operation.outcome not in OPEN_OUTCOMES:
        return operation
    return move(operation, Outcome.DONE if operation.verb == "destroy" else Outcome.SUPERSEDED)


def after_report(
    operations: Iterable[Operation], observed: ObservedStatus, generation: int, since: datetime | None, message: str
) -> list[Operation]:
    """Return the open operations on one VM that are over after a report. `message`: the worker's.

    `generation`: as reported; `since`: when the VM became `observed`.
    """
    open_ones = [operation for operation in operations if operation.outcome in OPEN_OUTCOMES]
    outcomes = resolve_outcomes(open_ones, observed, generation, since)
    return [
        move(
            operation,
            outcomes[operation.id],
            detail=message[:DETAIL_LIMIT] if outcomes[operation.id] is Outcome.FAILED else "",
        )
        for operation in open_ones
        if operation.id in outcomes
    ]


_RAN: Final = frozenset(
    {
        ObservedStatus.RUNNING,
        ObservedStatus.SUSPENDED,
        ObservedStatus.SAVING,
        ObservedStatus.HALTED,
        ObservedStatus.CRASHED,
        ObservedStatus.FAILED_TO_SAVE,
    }
)
_DEAD: Final = frozenset(
    {ObservedStatus.HALTED, ObservedStatus.CRASHED, ObservedStatus.FAILED_TO_START, ObservedStatus.FAILED_TO_SAVE}
)
_EFFECTS: Final[Mapping[str, tuple[frozenset[ObservedStatus], frozenset[ObservedStatus]]]] = {
    "create": (_RAN, frozenset({ObservedStatus.FAILED_TO_START})),
    "start": (_RAN, frozenset({ObservedStatus.FAILED_TO_START})),
    "shutdown": (frozenset({ObservedStatus.HALTED}), frozenset({ObservedStatus.FAILED_TO_SAVE})),
    "suspend": (frozenset({ObservedStatus.SUSPENDED}), _DEAD),
    "resume": (frozenset({ObservedStatus.RUNNING, ObservedStatus.INSTALLING}), _DEAD),
    "destroy": (frozenset({ObservedStatus.GONE}), frozenset()),
    "save_retry": (frozenset({ObservedStatus.HALTED}), frozenset({ObservedStatus.FAILED_TO_SAVE})),
}
"""verb -> (done if observed, failed if observed). The effects of other verbs cannot be observed: accepted is done."""


def outcome_of_status(verb: str, observed: ObservedStatus) -> Outcome | None:
    """Return the outcome of an accepted command by the VM's observed status, or None if it is not known yet."""
    done, failed = _EFFECTS.get(verb, (frozenset(ObservedStatus), frozenset()))
    if observed in done:
        return Outcome.DONE
    return Outcome.FAILED if observed in failed else None


def resolve_outcomes(
    operations: Sequence[Operation], observed: ObservedStatus, generation: int, since: datetime | None
) -> dict[int, Outcome]:
    """Return by id the outcomes of open operations on one VM. `since`: when the VM became `observed`.

    `generation` is the reported one. An older operation without an effect of its own is superseded by a newer one.
    """
    reached = [operation for operation in operations if operation.generation <= generation]
    found = {
        operation.id: outcome
        for operation in reached
        if (outcome := outcome_of_status(operation.verb, observed))
        and not _is_earlier_failure(operation, outcome, since)
    }
    newest = max((operation.generation for operation in reached), default=0)
    over = any(operation.id in found for operation in reached if operation.generation == newest)
    for operation in reached:
        if operation.generation < newest and found.get(operation.id) is not Outcome.DONE:
            found.pop(operation.id, None)
            if over:
                found[operation.id] = Outcome.SUPERSEDED
    return found


def _is_earlier_failure(operation: Operation, outcome: Outcome, since: datetime | None) -> bool:
    """Return whether a failure is the one for which the save is retried: both have the same generation."""
    return operation.verb == ONE_SHOT_VERB and outcome is Outcome.FAILED and (since is None or since <= operation.at)
