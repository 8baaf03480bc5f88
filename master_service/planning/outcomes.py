"""What became of a command that a user gave: from queued to done, failed, refused or superseded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from enum import StrEnum
from typing import Final, NamedTuple

from master_service.planning.observed import Seen


class Outcome(StrEnum):
    """What became of it."""

    ASKED = "asked"
    """Kept; a worker has still to be told."""
    SENT = "sent"
    """Handed to Salt as the job that is named."""
    TAKEN = "taken"
    """Its worker has acknowledged it."""
    DONE = "done"
    """Its effect was seen, or there was nothing more to do."""
    FAILED = "failed"
    """Taken, and then it came to another end; the detail is the worker's word for it."""
    REFUSED = "refused"
    """By its worker, or by Salt before that; the detail says why."""
    DENIED = "denied"
    """By this master: not who they say they are, or not allowed."""
    OVERTAKEN = "overtaken"
    """Something newer was asked before a worker was told, or before any effect was seen."""


OPEN: Final = frozenset({Outcome.ASKED, Outcome.SENT, Outcome.TAKEN})
"""Outcomes that are none yet."""

_RAN: Final = frozenset({Seen.RUNNING, Seen.SUSPENDED, Seen.SAVING, Seen.HALTED, Seen.CRASHED, Seen.FAILED_TO_SAVE})
_DEAD: Final = frozenset({Seen.HALTED, Seen.CRASHED, Seen.FAILED_TO_START, Seen.FAILED_TO_SAVE})
_EFFECTS: Final[Mapping[str, tuple[frozenset[Seen], frozenset[Seen]]]] = {
    "create": (_RAN, frozenset({Seen.FAILED_TO_START})),
    "start": (_RAN, frozenset({Seen.FAILED_TO_START})),
    "shutdown": (frozenset({Seen.HALTED}), frozenset({Seen.FAILED_TO_SAVE})),
    "suspend": (frozenset({Seen.SUSPENDED}), _DEAD),
    "resume": (frozenset({Seen.RUNNING, Seen.INSTALLING}), _DEAD),
    "destroy": (frozenset({Seen.GONE}), frozenset()),
    "save_retry": (frozenset({Seen.HALTED}), frozenset({Seen.FAILED_TO_SAVE})),
}
"""verb -> (seen, it is done; seen, it has failed). Of other verbs no effect is seen: taken is done."""


def came_to(verb: str, seen: Seen) -> Outcome | None:
    """What a command has come to, by what its worker reports since it took it; None: that is not known yet."""
    done, failed = _EFFECTS.get(verb, (frozenset(Seen), frozenset()))
    if seen in done:
        return Outcome.DONE
    return Outcome.FAILED if seen in failed else None


ONCE: Final = "save_retry"
"""The verb that is no wish: told to a worker once, at the generation that it has, and not by the pusher."""


class Open(NamedTuple):
    """A line without an outcome yet."""

    id: int
    verb: str
    generation: int
    at: datetime


def outcomes(lines: Sequence[Open], seen: Seen, generation: int, since: datetime | None) -> dict[int, Outcome]:
    """By id, what open lines about one VM have come to. `generation`: reported; `since`: when it became `seen`.

    A line that a newer one has ended without any effect of its own is overtaken.
    """
    told = [line for line in lines if line.generation <= generation]
    found = {
        line.id: outcome
        for line in told
        if (outcome := came_to(line.verb, seen)) and not _is_of_before(line, outcome, since)
    }
    newest = max((line.generation for line in told), default=0)
    over = any(line.id in found for line in told if line.generation == newest)
    for line in told:
        if line.generation < newest and found.get(line.id) is not Outcome.DONE:
            found.pop(line.id, None)
            if over:
                found[line.id] = Outcome.OVERTAKEN
    return found


def _is_of_before(line: Open, outcome: Outcome, since: datetime | None) -> bool:
    """Whether a failure is the one for which a save is tried again: no generation tells the two apart."""
    return line.verb == ONCE and outcome is Outcome.FAILED and (since is None or since <= line.at)
