"""The table of `plan`: what each pair of (wanted, seen) asks for."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Final

from master_service.planning.observed import ObservedStatus
from master_service.planning.vm import DesiredStatus


class Rule(StrEnum):
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


_RUNNING: Final[Mapping[ObservedStatus, Rule]] = {
    ObservedStatus.UNREPORTED: Rule.START,
    ObservedStatus.ABSENT: Rule.START,
    ObservedStatus.STARTING: Rule.WAIT,
    ObservedStatus.INSTALLING: Rule.KEEP,
    ObservedStatus.RUNNING: Rule.KEEP,
    ObservedStatus.SUSPENDED: Rule.RESUME,
    ObservedStatus.SAVING: Rule.REBOOT,
    ObservedStatus.HALTED: Rule.REBOOT,
    ObservedStatus.CRASHED: Rule.START,
    ObservedStatus.FAILED_TO_START: Rule.REPORT,
    ObservedStatus.FAILED_TO_SAVE: Rule.REBOOT,
    ObservedStatus.GONE: Rule.REPORT,
}
_PAUSED: Final[Mapping[ObservedStatus, Rule]] = {
    **_RUNNING,
    ObservedStatus.INSTALLING: Rule.SUSPEND,
    ObservedStatus.RUNNING: Rule.SUSPEND,
    ObservedStatus.SUSPENDED: Rule.KEEP,
    # Whoever asked to pause it meant a VM that runs: it is not started only to be paused.
    ObservedStatus.SAVING: Rule.FOLLOW,
    ObservedStatus.HALTED: Rule.FOLLOW,
    ObservedStatus.CRASHED: Rule.REPORT,
    ObservedStatus.FAILED_TO_SAVE: Rule.FOLLOW,
}
_HALTED: Final[Mapping[ObservedStatus, Rule]] = {
    ObservedStatus.UNREPORTED: Rule.NOTHING,
    ObservedStatus.ABSENT: Rule.NOTHING,
    ObservedStatus.STARTING: Rule.SHUTDOWN,
    ObservedStatus.INSTALLING: Rule.SHUTDOWN,
    ObservedStatus.RUNNING: Rule.SHUTDOWN,
    ObservedStatus.SUSPENDED: Rule.RESUME,  # a paused guest cannot hear the power button
    ObservedStatus.SAVING: Rule.WAIT,
    ObservedStatus.HALTED: Rule.SETTLE,
    ObservedStatus.CRASHED: Rule.SETTLE,
    ObservedStatus.FAILED_TO_START: Rule.NOTHING,
    ObservedStatus.FAILED_TO_SAVE: Rule.KEEP,  # it may be given another place to save to
    ObservedStatus.GONE: Rule.NOTHING,
}
DECISION_TABLE: Final[Mapping[tuple[DesiredStatus, ObservedStatus], Rule]] = {
    **{(DesiredStatus.RUNNING, seen): move for seen, move in _RUNNING.items()},
    **{(DesiredStatus.PAUSED, seen): move for seen, move in _PAUSED.items()},
    **{(DesiredStatus.HALTED, seen): move for seen, move in _HALTED.items()},
    **{(DesiredStatus.DESTROYED, seen): Rule.DESTROY for seen in ObservedStatus},
    **{(wanted, ObservedStatus.UNREACHABLE): Rule.NOTHING for wanted in DesiredStatus},  # silence is not absence
}
