"""The table of `plan`: what each pair of (wanted, seen) asks for."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Final

from master_service.planning.observed import Seen
from master_service.planning.vm import Wanted


class Move(StrEnum):
    """What a pair of (wanted, seen) asks for."""

    NOTHING = "leave alone"
    WAIT = "under way: the worker goes on by itself"
    KEEP = "as wanted: tell the worker about changed settings"
    START = "start it, or start it again"
    REBOOT = "its guest shut it down: follow the guest, or boot again with run_policy always"
    SUSPEND = "suspend it"
    RESUME = "resume it"
    SHUTDOWN = "ask its guest to shut down"
    FOLLOW = "it went off by itself: what is wanted becomes halted"
    SETTLE = "it is off as wanted: make sure that the worker knows it is to stay off"
    DESTROY = "destroy it until that is confirmed"
    REPORT = "tell people: what to do is theirs to say"


_RUNNING: Final[Mapping[Seen, Move]] = {
    Seen.UNREPORTED: Move.START,
    Seen.ABSENT: Move.START,
    Seen.STARTING: Move.WAIT,
    Seen.INSTALLING: Move.KEEP,
    Seen.RUNNING: Move.KEEP,
    Seen.SUSPENDED: Move.RESUME,
    Seen.SAVING: Move.REBOOT,
    Seen.HALTED: Move.REBOOT,
    Seen.CRASHED: Move.START,
    Seen.FAILED_TO_START: Move.REPORT,
    Seen.FAILED_TO_SAVE: Move.REBOOT,
    Seen.GONE: Move.REPORT,
}
_PAUSED: Final[Mapping[Seen, Move]] = {
    **_RUNNING,
    Seen.INSTALLING: Move.SUSPEND,
    Seen.RUNNING: Move.SUSPEND,
    Seen.SUSPENDED: Move.KEEP,
    # Whoever asked to pause it meant a VM that runs: it is not started only to be paused.
    Seen.SAVING: Move.FOLLOW,
    Seen.HALTED: Move.FOLLOW,
    Seen.CRASHED: Move.REPORT,
    Seen.FAILED_TO_SAVE: Move.FOLLOW,
}
_HALTED: Final[Mapping[Seen, Move]] = {
    Seen.UNREPORTED: Move.NOTHING,
    Seen.ABSENT: Move.NOTHING,
    Seen.STARTING: Move.SHUTDOWN,
    Seen.INSTALLING: Move.SHUTDOWN,
    Seen.RUNNING: Move.SHUTDOWN,
    Seen.SUSPENDED: Move.RESUME,  # a paused guest cannot hear the power button
    Seen.SAVING: Move.WAIT,
    Seen.HALTED: Move.SETTLE,
    Seen.CRASHED: Move.SETTLE,
    Seen.FAILED_TO_START: Move.NOTHING,
    Seen.FAILED_TO_SAVE: Move.KEEP,  # it may be given another place to save to
    Seen.GONE: Move.NOTHING,
}
MOVES: Final[Mapping[tuple[Wanted, Seen], Move]] = {
    **{(Wanted.RUNNING, seen): move for seen, move in _RUNNING.items()},
    **{(Wanted.PAUSED, seen): move for seen, move in _PAUSED.items()},
    **{(Wanted.HALTED, seen): move for seen, move in _HALTED.items()},
    **{(Wanted.DESTROYED, seen): Move.DESTROY for seen in Seen},
    **{(wanted, Seen.UNREACHABLE): Move.NOTHING for wanted in Wanted},  # silence is not absence
}
