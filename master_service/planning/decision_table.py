"""The planner's table: the rule for each pair of (desired, observed)."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Final

from master_service.planning.observed import HELD, ObservedStatus
from master_service.planning.vm import DesiredStatus


class Rule(StrEnum):
    """The rule for a pair of (desired, observed)."""

    NOTHING = "leave alone"
    WAIT = "wait: the worker continues by itself"
    KEEP = "in the desired state: send changed settings to the worker"
    START = "start it, or start it again"
    REBOOT = "its guest shut it down: follow the guest, or boot again if run_policy is always"
    SUSPEND = "suspend it"
    RESUME = "resume it"
    SHUTDOWN = "ask its guest to shut down"
    FOLLOW = "it was shut down by itself: the desired state becomes halted"
    SETTLE = "it is off as desired: make sure that the worker keeps it off"
    DESTROY = "destroy it until the worker confirms that"
    REPORT = "report it: only a user can decide what to do"
    HOLD = "send nothing: somebody else works on its domain"


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
    # A pause is meant for a running VM: the master does not start a VM only to pause it.
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
    ObservedStatus.SUSPENDED: Rule.RESUME,  # a paused guest does not see the power button
    ObservedStatus.SAVING: Rule.WAIT,
    ObservedStatus.HALTED: Rule.SETTLE,
    ObservedStatus.CRASHED: Rule.SETTLE,
    ObservedStatus.FAILED_TO_START: Rule.NOTHING,
    ObservedStatus.FAILED_TO_SAVE: Rule.KEEP,  # a user may change its *_save_to
    ObservedStatus.GONE: Rule.REPORT,
}
DECISION_TABLE: Final[Mapping[tuple[DesiredStatus, ObservedStatus], Rule]] = {
    **{(DesiredStatus.RUNNING, observed): rule for observed, rule in _RUNNING.items()},
    **{(DesiredStatus.PAUSED, observed): rule for observed, rule in _PAUSED.items()},
    **{(DesiredStatus.HALTED, observed): rule for observed, rule in _HALTED.items()},
    **{(DesiredStatus.DESTROYED, observed): Rule.DESTROY for observed in ObservedStatus},
    **{(desired, ObservedStatus.UNREACHABLE): Rule.NOTHING for desired in DesiredStatus},  # silence is not absence
    **{(desired, observed): Rule.HOLD for desired in DesiredStatus for observed in HELD},
}
