"""What became of a command that a user gave: from queued to done, failed, refused or superseded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from enum import StrEnum
from typing import Final, NamedTuple

from master_service.planning.observed import ObservedStatus


class Outcome(StrEnum):
    """What became of it."""

    QUEUED = "queued"
    """Kept; a worker has still to be told."""
    SENT = "sent"
    """Handed to Salt as the job that is named."""
    ACCEPTED = "accepted"
    """Its worker has acknowledged it."""
    DONE = "done"
    """Its effect was seen, or there was nothing more to do."""
    FAILED = "failed"
    """Taken, and then it came to another end; the detail is the worker's word for it."""
    REFUSED = "refused"
    """By its worker, or by Salt before that; the detail says why."""
    DENIED = "denied"
    """By this master: not who they say they are, or not allowed."""
    SUPERSEDED = "superseded"
    """Something newer was asked before a worker was told, or before any effect was seen."""


OPEN_OUTCOMES: Final = frozenset({Outcome.QUEUED, Outcome.SENT, Outcome.ACCEPTED})
"""Outcomes that are none yet."""

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
"""verb -> (seen, it is done; seen, it has failed). Of other verbs no effect is seen: taken is done."""


def outcome_of_status(verb: str, seen: ObservedStatus) -> Outcome | None:
    """What a command has come to, by what its worker reports since it took it; None: that is not known yet."""
    done, failed = _EFFECTS.get(verb, (frozenset(ObservedStatus), frozenset()))
    if seen in done:
        return Outcome.DONE
    return Outcome.FAILED if seen in failed else None


ONE_SHOT_VERB: Final = "save_retry"
"""The verb that is no wish: told to a worker once, at the generation that it has, and not by the pusher."""


class OpenOperation(NamedTuple):
    """A line without an outcome yet."""

    id: int
    verb: str
    generation: int
    at: datetime


def resolve_outcomes(
    lines: Sequence[OpenOperation], seen: ObservedStatus, generation: int, since: datetime | None
) -> dict[int, Outcome]:
    """By id, what open lines about one VM have come to. `generation`: reported; `since`: when it became `seen`.

    A line that a newer one has ended without any effect of its own is overtaken.
    """
    told = [line for line in lines if line.generation <= generation]
    found = {
        line.id: outcome
        for line in told
        if (outcome := outcome_of_status(line.verb, seen)) and not _is_of_before(line, outcome, since)
    }
    newest = max((line.generation for line in told), default=0)
    over = any(line.id in found for line in told if line.generation == newest)
    for line in told:
        if line.generation < newest and found.get(line.id) is not Outcome.DONE:
            found.pop(line.id, None)
            if over:
                found[line.id] = Outcome.SUPERSEDED
    return found


def _is_of_before(line: OpenOperation, outcome: Outcome, since: datetime | None) -> bool:
    """Whether a failure is the one for which a save is tried again: no generation tells the two apart."""
    return line.verb == ONE_SHOT_VERB and outcome is Outcome.FAILED and (since is None or since <= line.at)
