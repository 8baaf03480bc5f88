"""What a VM's status is, and what is to be done next: functions of values, no I/O, the clock an argument."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from enum import StrEnum
from typing import Final

from worker_service.contract import TRIES, WISHED, HaltCause, Status
from worker_service.hypervisor.base import DomainState, Power
from worker_service.record import Phase, Record


class Step(StrEnum):
    """One unit of pending work. `steps` does them."""

    FETCH = "fetch images"
    BUILD = "make disks"
    BOOT = "boot"
    ASK_SHUTDOWN = "press the power button"
    CHANGE_CD = "change the CD"
    NOTE_HALT = "note the halt"
    SEAL = "flatten disks"
    SAVE = "save disks"
    SET_ASIDE = "move to failed_to_save"
    CLEAN = "remove local disks"
    DESTROY = "destroy"


SHUTDOWN_TRIES: Final = 6
"""How often the power button is pressed before the guest counts as deaf."""

_BY_PHASE: Final[Mapping[Phase, Step | None]] = {
    Phase.FETCHING: Step.FETCH,
    Phase.BUILDING: Step.BUILD,
    Phase.BOOTING: Step.BOOT,
    Phase.UP: None,  # depends on the domain: below
    Phase.SEALING: Step.SEAL,
    Phase.SAVING: Step.SAVE,
    Phase.CLEANING: Step.CLEAN,
    Phase.DONE: None,
    Phase.KEPT: None,
    Phase.START_FAILED: None,
    Phase.SAVE_FAILED: None,
    Phase.DESTROYING: Step.DESTROY,
}


def next_step(record: Record, domain: DomainState) -> Step | None:
    """What is to be done for this VM; None when nothing is pending. When it is due, `record.next_try_at` says."""
    if record.phase is Phase.UP:
        return _next_while_up(record, domain)
    if record.shutdown_asked and record.phase in (Phase.FETCHING, Phase.BUILDING):
        return Step.NOTE_HALT  # it never ran: there is nothing to wait for
    if record.phase in (Phase.SAVING, Phase.SEALING) and record.tries >= TRIES and not record.try_open:
        return Step.SET_ASIDE
    return _BY_PHASE[record.phase]


def _next_while_up(record: Record, domain: DomainState) -> Step | None:
    if domain.power in (Power.OFF, Power.ABSENT):
        return Step.NOTE_HALT
    if record.shutdown_asked and record.tries < SHUTDOWN_TRIES:
        return Step.ASK_SHUTDOWN
    if (record.spec.cd_image or "") != record.cd_uri and record.tries < TRIES:
        return Step.CHANGE_CD
    return None


def wait_s(record: Record, now: datetime) -> float:
    """Seconds until the pending step is due; 0.0 when it is due already."""
    return max(0.0, (record.next_try_at - now).total_seconds()) if record.next_try_at else 0.0


def halt_cause(record: Record, domain: DomainState) -> HaltCause:
    """Why the VM is off. Without a word from the hypervisor (power cut, undefined from outside) it is nobody's wish."""
    if record.phase in (Phase.FETCHING, Phase.BUILDING):
        return HaltCause.OPERATOR
    if domain.power is Power.ABSENT:
        return HaltCause.KILLED
    cause = domain.cause or HaltCause.UNKNOWN
    return HaltCause.OPERATOR if cause is HaltCause.GUEST and record.shutdown_asked else cause


def after_halt(record: Record, cause: HaltCause) -> Phase:
    """What becomes of the disks of a VM that is off: saved, discarded as asked, or kept where nobody wished it."""
    if record.phase in (Phase.FETCHING, Phase.BUILDING):
        return Phase.CLEANING
    kept = cause not in WISHED or (cause is HaltCause.GUEST and record.spec.run_policy == "always")
    if kept and not record.shutdown_asked:  # asked for, it is a wish however it came about in the end
        return Phase.KEPT
    return Phase.SEALING if record.saved_disks else Phase.CLEANING


_STATUS: Final[Mapping[Phase, Status]] = {
    Phase.FETCHING: Status.STARTING,
    Phase.BUILDING: Status.STARTING,
    Phase.BOOTING: Status.STARTING,
    Phase.UP: Status.RUNNING,  # depends on the domain: below
    Phase.SEALING: Status.SAVING,
    Phase.SAVING: Status.SAVING,
    Phase.CLEANING: Status.SAVING,
    Phase.DONE: Status.HALTED,
    Phase.KEPT: Status.HALTED,
    Phase.START_FAILED: Status.FAILED_TO_START,
    Phase.SAVE_FAILED: Status.FAILED_TO_SAVE,
    Phase.DESTROYING: Status.HALTED,
}


def status_of(record: Record, domain: DomainState) -> Status:
    """The contract's status of a VM."""
    if record.phase is Phase.UP:
        if domain.power in (Power.OFF, Power.ABSENT):  # not noted yet
            ending = after_halt(record, halt_cause(record, domain))
            return Status.HALTED if ending is Phase.KEPT else Status.SAVING
        # Paused by an I/O error is a problem of a running VM, not the user's suspend.
        if domain.power is Power.PAUSED and not domain.problem:
            return Status.SUSPENDED
    return _STATUS[record.phase]


def message_of(record: Record, domain: DomainState) -> str:
    """One sentence for people: what it does, or why it does not and what to do."""
    if record.message:
        return record.message
    if record.phase is Phase.UP:
        if domain.problem:
            return domain.problem
        return {Power.RUNNING: "It runs.", Power.PAUSED: "It is paused in memory; resume lets it run on."}.get(
            domain.power, "It is off; its disks are next."
        )
    return {
        Phase.FETCHING: "Fetching its images.",
        Phase.BUILDING: "Making its disks.",
        Phase.BOOTING: "Booting.",
        Phase.SEALING: "It is off; flattening its disks.",
        Phase.SAVING: f"It is off; saving its disks, try {max(1, record.tries)} of {TRIES}.",
        Phase.CLEANING: "It is off; removing its local disks.",
        Phase.DESTROYING: "It is being destroyed.",
    }.get(record.phase, "")
