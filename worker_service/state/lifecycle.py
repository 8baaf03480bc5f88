"""What a VM's status is, and what is to be done next: functions of values, no I/O, the clock an argument."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from datetime import datetime
from enum import StrEnum
from typing import Final

import msgspec

from worker_service.contract import INTENDED_HALTS, TRIES, HaltCause, Status
from worker_service.guest_agent.readiness import AWAITED, Readiness, State
from worker_service.hypervisor.base import DomainState, Power
from worker_service.state.record import BEING_CHANGED, ENDING, STARTING, Phase, Record


class Step(StrEnum):
    """One unit of pending work. `steps` does them."""

    FETCH = "fetch images"
    BUILD = "make disks"
    BOOT = "boot"
    ASK_SHUTDOWN = "press the power button"
    CHANGE_CD = "change the CD"
    NOTE_READY = "note that the guest is ready"
    GIVE_UP = "power off what could not be made ready"
    NOTE_HALT = "note the halt"
    FLATTEN = "flatten disks"
    SAVE = "save disks"
    MOVE_TO_FAILED = "move to failed_to_save"
    CLEAN = "remove local disks"
    DESTROY = "destroy"


SHUTDOWN_TRIES: Final = 6
"""How often the power button is pressed before the guest counts as deaf."""

_BY_PHASE: Final[Mapping[Phase, Step | None]] = {
    Phase.FETCHING: Step.FETCH,
    Phase.BUILDING: Step.BUILD,
    Phase.BOOTING: Step.BOOT,
    Phase.UP: None,  # depends on the domain: below
    Phase.FLATTENING: Step.FLATTEN,
    Phase.SAVING: Step.SAVE,
    Phase.CLEANING: Step.CLEAN,
    Phase.DONE: None,
    Phase.KEPT: None,
    Phase.START_FAILED: None,
    Phase.SAVE_FAILED: None,
    Phase.DESTROYING: Step.DESTROY,
}


def next_step(record: Record, domain: DomainState, readiness: Readiness = AWAITED) -> Step | None:
    """What is to be done for this VM; None when nothing is pending. When it is due, `wait_s` says.

    `readiness` counts only for a record that is `installing`.
    """
    if record.phase is Phase.UP:
        return _next_while_up(record, domain, readiness)
    if record.shutdown_asked and record.phase in (Phase.FETCHING, Phase.BUILDING):
        return Step.NOTE_HALT  # it never ran: there is nothing to wait for
    if record.phase in ENDING and record.tries >= TRIES and not record.try_open:
        return Step.MOVE_TO_FAILED
    return _BY_PHASE[record.phase]


_ON_READINESS: Final[Mapping[State, Step | None]] = {
    State.AWAITED: None,
    State.READY: Step.NOTE_READY,
    State.FAILED: Step.GIVE_UP,
}


def _next_while_up(record: Record, domain: DomainState, readiness: Readiness) -> Step | None:
    if domain.power in (Power.OFF, Power.ABSENT):
        return Step.NOTE_HALT
    if record.installing and domain.power is Power.RUNNING and (step := _ON_READINESS[readiness.state]):
        return step
    if record.shutdown_asked and record.tries < SHUTDOWN_TRIES:
        return Step.ASK_SHUTDOWN
    if (record.spec.cd_image or "") != record.cd_uri and not record.installing and record.tries < TRIES:
        return Step.CHANGE_CD
    return None


ROOM_BYTES: Final = 64 << 20
"""Free space from which a guest that a full disk stopped runs on: enough to come further than the next write."""


def can_resume_after_enospc(domain: DomainState, free_bytes: int) -> bool:
    """Whether a guest that was stopped by a full disk can go on now."""
    return domain.power is Power.PAUSED and domain.short_of_space and free_bytes >= ROOM_BYTES


def is_held(record: Record, domain: DomainState) -> bool:
    """Whether a change of its CD keeps a guest from running for a moment, or did when it was cut off."""
    return domain.held and record.cd_uri == BEING_CHANGED


def is_forgotten(record: Record, domain: DomainState) -> bool:
    """Whether a guest is held for a change of its CD that nobody does any more."""
    return is_held(record, domain) and next_step(record, domain) is not Step.CHANGE_CD


def wait_s(record: Record, step: Step, now: datetime) -> float:
    """Seconds until a step is due; 0.0 when it is due already. It does not wait for another step's next try."""
    if record.next_try_at is None or record.next_try_of not in ("", step):
        return 0.0
    return max(0.0, (record.next_try_at - now).total_seconds())


def try_number(record: Record, phases: Collection[Phase] = STARTING | ENDING) -> int:
    """Which try of `TRIES` is under way, or comes next; 0 in other phases than these, where none are counted."""
    return min(TRIES, record.tries + (not record.try_open)) if record.phase in phases else 0


class Evidence(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of a halt beside the domain's state, which libvirt forgets when it is restarted."""

    host_boot: str = ""
    """Boot id of the host now."""
    host_stopping: bool = False
    """The host is shutting down at this moment."""
    logged: HaltCause | None = None
    """How the domain's last run ended, by the hypervisor's log; None where it says of no end."""


NO_EVIDENCE: Final = Evidence()


def halt_cause(record: Record, domain: DomainState, evidence: Evidence = NO_EVIDENCE) -> HaltCause:
    """Why the VM is off. Where nobody has a word for it (power cut, undefined from outside) it is nobody's wish."""
    if record.phase in (Phase.FETCHING, Phase.BUILDING):
        return HaltCause.OPERATOR
    if domain.power is Power.ABSENT:
        return HaltCause.KILLED
    rebooted = bool(record.host_boot and evidence.host_boot and record.host_boot != evidence.host_boot)
    cause = domain.cause or evidence.logged
    if cause is None:
        return HaltCause.HOST_LOST if rebooted else HaltCause.UNKNOWN
    if cause is HaltCause.GUEST:  # somebody may have told it to
        if record.shutdown_asked:
            return HaltCause.OPERATOR
        if record.ended_by_host or evidence.host_stopping or rebooted:
            return HaltCause.HOST
    return cause


def after_halt(record: Record, cause: HaltCause, readiness: Readiness = AWAITED) -> Phase:
    """What becomes of the disks of a VM that is off: saved, discarded as asked, or kept where nobody wished it.

    A guest that failed to become ready, or went off by itself before, has failed to start: it never was what was asked
    for, and its disks are not saved over what is. Nor are they when its host shut down amid that: it goes on later.
    """
    if record.phase in (Phase.FETCHING, Phase.BUILDING) and not record.has_own_disks:
        return Phase.CLEANING  # nothing ran
    if record.installing and record.phase is Phase.UP and readiness.state is not State.READY:
        by_itself = cause is HaltCause.GUEST and not record.shutdown_asked
        if by_itself or readiness.state is State.FAILED:
            return Phase.START_FAILED
        if cause is HaltCause.HOST and not record.shutdown_asked:
            return Phase.KEPT
    goes_on = cause in (HaltCause.GUEST, HaltCause.HOST) and record.spec.run_policy == "always"
    kept = cause not in INTENDED_HALTS or goes_on
    if kept and not record.shutdown_asked:  # asked for, it is a wish however it came about in the end
        return Phase.KEPT
    return Phase.FLATTENING if record.saved_disks else Phase.CLEANING


def after_giving_up(record: Record) -> Phase:
    """What becomes of a VM that cannot be started: the disks of an earlier life end as if it had crashed once more."""
    return after_halt(record, HaltCause.CRASHED) if record.has_own_disks else Phase.START_FAILED


_STATUS: Final[Mapping[Phase, Status]] = {
    Phase.FETCHING: Status.STARTING,
    Phase.BUILDING: Status.STARTING,
    Phase.BOOTING: Status.STARTING,
    Phase.UP: Status.RUNNING,  # depends on the domain: below
    Phase.FLATTENING: Status.SAVING,
    Phase.SAVING: Status.SAVING,
    Phase.CLEANING: Status.SAVING,
    Phase.DONE: Status.HALTED,
    Phase.KEPT: Status.HALTED,
    Phase.START_FAILED: Status.FAILED_TO_START,
    Phase.SAVE_FAILED: Status.FAILED_TO_SAVE,
    Phase.DESTROYING: Status.HALTED,
}


_ENDING: Final[Mapping[Phase, Status]] = {
    Phase.KEPT: Status.HALTED,
    Phase.START_FAILED: Status.INSTALLING,  # failed to start only once that is noted: then it may be started again
    Phase.FLATTENING: Status.SAVING,
    Phase.CLEANING: Status.SAVING,
}


def status_of(
    record: Record, domain: DomainState, evidence: Evidence = NO_EVIDENCE, readiness: Readiness = AWAITED
) -> Status:
    """The contract's status of a VM."""
    if record.phase is Phase.UP:
        if domain.power in (Power.OFF, Power.ABSENT):  # not noted yet
            return _ENDING[after_halt(record, halt_cause(record, domain, evidence), readiness)]
        # Paused by an I/O error, or held for its CD, is a running VM, not the user's suspend.
        if domain.power is Power.PAUSED and not domain.problem and not is_held(record, domain):
            return Status.SUSPENDED
        if record.installing:
            return Status.INSTALLING
    return _STATUS[record.phase]


def message_of(record: Record, domain: DomainState, readiness: Readiness = AWAITED) -> str:
    """One sentence for people: what it does, or why it does not and what to do."""
    if record.message:
        return record.message
    if record.phase is Phase.UP:
        if domain.problem:
            return domain.problem
        if record.installing and (domain.power is Power.RUNNING or readiness.state is State.FAILED):
            return readiness.message or "It is ready."
        if is_held(record, domain):
            return "It runs."
        return {Power.RUNNING: "It runs.", Power.PAUSED: "It is paused in memory; resume lets it run on."}.get(
            domain.power, "It is off; its disks are next."
        )
    number = try_number(record)
    again = f", try {number} of {TRIES}" if number > 1 or record.phase in ENDING else ""
    return {
        Phase.FETCHING: f"Fetching its images{again}.",
        Phase.BUILDING: f"Making its disks{again}.",
        Phase.BOOTING: f"Booting{again}.",
        Phase.FLATTENING: f"It is off; flattening its disks{again}.",
        Phase.SAVING: f"It is off; saving its disks{again}.",
        Phase.CLEANING: "It is off; removing its local disks.",
        Phase.DESTROYING: "It is being destroyed.",
    }.get(record.phase, "")
