"""The status of a VM and its next step: functions of values without I/O, with the clock as an argument."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from datetime import datetime
from enum import StrEnum
from typing import Final

import msgspec

from worker_service.contract import CONTINUABLE_HALTS, INTENDED_HALTS, TRIES, HaltCause, Status
from worker_service.guest_agent.readiness import AWAITED, Readiness, State
from worker_service.hypervisor.base import DomainState, Power
from worker_service.state.outside_changes import was_started
from worker_service.state.record import BEING_CHANGED, ENDING, STARTING, Phase, Record


class Step(StrEnum):
    """One unit of pending work, done by `steps`."""

    FETCH = "fetch images"
    BUILD = "make disks"
    BOOT = "boot"
    ASK_SHUTDOWN = "press the power button"
    CHANGE_CD = "change the CD"
    NOTE_READY = "note that the guest is ready"
    GIVE_UP = "power off what could not be made ready"
    NOTE_HALT = "note the halt"
    NOTE_START = "note that it was started from outside"
    FLATTEN = "flatten disks"
    SAVE = "save disks"
    MOVE_TO_FAILED = "move to failed_to_save"
    CLEAN = "remove local disks"
    DESTROY = "destroy"


SHUTDOWN_TRIES: Final = 6
"""Presses of the power button after which a guest counts as unresponsive."""

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
    """Return the next step for a VM, or None without pending work. `wait_s` computes when the step is due.

    `readiness` counts only for a record that is `installing`.
    """
    if domain.job and record.phase is not Phase.DESTROYING:
        return None  # what the hypervisor does with it for somebody else ends first
    if was_started(record, domain):
        return Step.NOTE_START
    if record.phase is Phase.UP:
        return _next_while_up(record, domain, readiness)
    if record.shutdown_asked and record.phase in (Phase.FETCHING, Phase.BUILDING):
        return Step.NOTE_HALT  # it never ran: no guest has to shut down
    if record.phase in ENDING and record.tries >= TRIES and not record.try_open:
        return Step.MOVE_TO_FAILED
    return _BY_PHASE[record.phase]


_ON_READINESS: Final[Mapping[State, Step | None]] = {
    State.AWAITED: None,
    State.READY: Step.NOTE_READY,
    State.FAILED: Step.GIVE_UP,
}


def _next_while_up(record: Record, domain: DomainState, readiness: Readiness) -> Step | None:
    if not domain.on:
        return Step.NOTE_HALT
    if record.installing and domain.power is Power.RUNNING and (step := _ON_READINESS[readiness.state]):
        return step
    if record.shutdown_asked and record.tries < SHUTDOWN_TRIES:
        return Step.ASK_SHUTDOWN
    return Step.CHANGE_CD if _wants_another_cd(record) else None


def _wants_another_cd(record: Record) -> bool:
    return (record.spec.cd_image or "") != record.cd_uri and not record.installing and record.tries < TRIES


ROOM_BYTES: Final = 64 << 20
"""Free space at which a guest that a full disk stopped is resumed: enough for more than the next write."""


def can_resume_after_enospc(domain: DomainState, free_bytes: int) -> bool:
    """Return whether a guest that a full disk stopped can go on now."""
    return domain.power is Power.PAUSED and domain.short_of_space and not domain.job and free_bytes >= ROOM_BYTES


def is_held(record: Record, domain: DomainState) -> bool:
    """Return whether a guest is paused for a change of its CD, which may have been interrupted.

    The change may have begun since the record was read.
    """
    return domain.held and not domain.job and (record.cd_uri == BEING_CHANGED or _wants_another_cd(record))


def is_forgotten(record: Record, domain: DomainState) -> bool:
    """Return whether a guest is still paused for a change of its CD that is no longer pending."""
    return is_held(record, domain) and next_step(record, domain) is not Step.CHANGE_CD


def wait_s(record: Record, step: Step, now: datetime) -> float:
    """Return the seconds until a step is due, 0.0 if it is due. The next try of another step does not count."""
    if record.next_try_at is None or record.next_try_of not in ("", step):
        return 0.0
    return max(0.0, (record.next_try_at - now).total_seconds())


def try_number(record: Record, phases: Collection[Phase] = STARTING | ENDING) -> int:
    """Return the number of the current or next try, of `TRIES`; 0 in phases without counted tries."""
    return min(TRIES, record.tries + (not record.try_open)) if record.phase in phases else 0


class Evidence(msgspec.Struct, frozen=True, kw_only=True):
    """Facts about a halt in addition to the domain's state, which libvirt forgets when it restarts."""

    host_boot: str = ""
    """The host's present boot id."""
    host_stopping: bool = False
    """Whether the host is shutting down."""
    logged: HaltCause | None = None
    """The end of the domain's last run in the hypervisor's log; None if the log has no end."""


NO_EVIDENCE: Final = Evidence()


def halt_cause(record: Record, domain: DomainState, evidence: Evidence = NO_EVIDENCE) -> HaltCause:
    """Return why the VM is off. A halt without a known cause, as after a power cut, counts as unexpected."""
    if record.phase in (Phase.FETCHING, Phase.BUILDING):
        return HaltCause.OPERATOR
    rebooted = bool(record.host_boot and evidence.host_boot and record.host_boot != evidence.host_boot)
    cause = _cause_by_hypervisor(domain, evidence)
    if cause is None:
        return HaltCause.HOST_LOST if rebooted else HaltCause.UNKNOWN
    if cause is HaltCause.GUEST:  # an operator or the host may have asked the guest
        if record.shutdown_asked:
            return HaltCause.OPERATOR
        if record.ended_by_host or evidence.host_stopping or rebooted:
            return HaltCause.HOST
    return cause


def _cause_by_hypervisor(domain: DomainState, evidence: Evidence) -> HaltCause | None:
    if domain.power is Power.ABSENT:  # `virsh migrate --undefinesource` leaves no domain
        return HaltCause.MIGRATED if evidence.logged is HaltCause.MIGRATED else HaltCause.KILLED
    return HaltCause.SAVED if domain.saved_memory else domain.cause or evidence.logged


def after_halt(record: Record, cause: HaltCause, readiness: Readiness = AWAITED) -> Phase:
    """Return the next phase of a VM that is off: its disks are saved, discarded, or kept as they are.

    A guest that never became ready, or went off by itself before, has failed to start. It never reached the desired
    state, so its disks must not replace a saved one. If the host shut down while the guest was installing, its disks
    are kept and it goes on later.
    """
    if record.phase in (Phase.FETCHING, Phase.BUILDING) and not record.has_own_disks:
        return Phase.CLEANING  # no guest ran
    if cause in CONTINUABLE_HALTS:
        return Phase.KEPT
    if record.installing and record.phase is Phase.UP and readiness.state is not State.READY:
        by_itself = cause is HaltCause.GUEST and not record.shutdown_asked
        if by_itself or readiness.state is State.FAILED:
            return Phase.START_FAILED
    ends = record.shutdown_asked or is_intended(record, cause, readiness)  # after a request every halt is intended
    if ends and record.unsaved_disks:
        return Phase.FLATTENING
    return Phase.CLEANING if ends and not record.disks_stay else Phase.KEPT


def is_intended(record: Record, cause: HaltCause | None, readiness: Readiness = AWAITED) -> bool:
    """Return whether a halt was meant to last. After any other one, the next start of the VM is due."""
    always = cause in (HaltCause.GUEST, HaltCause.HOST) and record.spec.run_policy == "always"
    interrupted = cause is HaltCause.HOST and record.installing and readiness.state is not State.READY
    return cause in INTENDED_HALTS and not (always or interrupted)


def after_giving_up(record: Record) -> Phase:
    """Return the next phase of a VM that cannot be started. Disks of an earlier run are treated as after a crash."""
    return after_halt(record, HaltCause.CRASHED) if record.has_own_disks else Phase.START_FAILED


_STATUS: Final[Mapping[Phase, Status]] = {
    Phase.FETCHING: Status.STARTING,
    Phase.BUILDING: Status.STARTING,
    Phase.BOOTING: Status.STARTING,
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
    Phase.START_FAILED: Status.INSTALLING,  # until the phase is recorded: `failed to start` allows a new start
    Phase.FLATTENING: Status.SAVING,
    Phase.CLEANING: Status.SAVING,
}


def status_of(
    record: Record, domain: DomainState, evidence: Evidence = NO_EVIDENCE, readiness: Readiness = AWAITED
) -> Status:
    """Return the contract's status of a VM."""
    if record.phase is Phase.UP or was_started(record, domain):
        if not domain.on:  # not noted yet
            cause = halt_cause(record, domain, evidence)
            ending = after_halt(record, cause, readiness)
            if ending is Phase.KEPT and is_intended(record, cause, readiness):
                return Status.SAVING  # until that is recorded: `halted` allows a new start
            return _ENDING[ending]
        # A VM that is paused by an I/O error or for a change of its CD runs: no user suspended it.
        if domain.power is Power.PAUSED and not domain.problem and not domain.job and not is_held(record, domain):
            return Status.SUSPENDED
        return Status.INSTALLING if record.installing else Status.RUNNING
    if record.phase is Phase.CLEANING and record.tries >= TRIES:
        return Status.HALTED  # its disks are saved; `problem` says what keeps the rest here
    return _STATUS[record.phase]


OFF: Final = "It is off"


def kept_message(record: Record, cause: HaltCause, folder: str, *, saved_memory: bool = False) -> str:
    """Return the message of a VM that is off and whose disks are kept in a folder."""
    shutdown = "saves" if record.unsaved_disks else "keeps" if record.disks_stay else "discards"
    settled = shutdown == "keeps" and is_intended(record, cause)
    kept = f"{OFF}{'' if settled else f' ({cause})'}; its disks are kept in {folder}."
    if saved_memory:
        return f"{kept} Its memory is saved: start resumes it, shutdown drops it and {shutdown} the disks."
    if cause in CONTINUABLE_HALTS:
        return f"{kept} {_GOES_ON[cause]}"
    if shutdown == "keeps":
        saved = ", ".join(disk.saved_to for disk in record.disks.values() if disk.saved_to)
        also = f" Saved to {saved}." if saved else ""
        return f"{kept} {'start' if settled else 'Start'} boots it again, destroy discards them.{also}"
    return f"{kept} Start boots it again, shutdown {shutdown} {'it' if shutdown == 'saves' else 'them'}."


_GOES_ON: Final[Mapping[HaltCause, str]] = {
    HaltCause.SAVED: "Somebody saved its memory to a file: `virsh restore` resumes it from there. Start and "
    "shutdown use its disks without that memory.",
    HaltCause.MIGRATED: "It runs on another host. Migrate it back with `virsh migrate` to go on here; destroy "
    "discards only what it left here.",
}


def disk_fate(record: Record, disk_name: str) -> str:
    """Return what becomes of a disk, or became of it, in words that follow its name."""
    saved, stays = record.disks[disk_name].saved_to is not None, record.disks_stay
    if record.phase in STARTING | {Phase.UP}:
        ways = [*(["saved"] if disk_name in record.targets else []), *(["kept here"] if stays else [])]
        return f"will be {' and '.join(ways) or 'discarded'} when it halts"
    if disk_name in record.unsaved_disks and record.phase in ENDING:
        return "being saved"
    failed = record.phase is Phase.SAVE_FAILED or (record.phase is Phase.DESTROYING and record.unsaved)
    here = failed or record.phase is Phase.KEPT or (record.phase in ENDING and stays)
    if saved:
        return "saved, and kept here" if here else "saved"
    return "kept here" if here else "discarded"


def is_forgettable(record: Record) -> bool:
    """Return whether a worker may forget this VM once it has been halted for a while.

    A VM that its site started past any master has its last save noted only here.
    """
    return record.phase is Phase.DONE and bool(record.owner or not record.last_saves)


def message_of(record: Record, domain: DomainState, readiness: Readiness = AWAITED) -> str:
    """Return one sentence for people about a VM's work, or the reason of a failure with advice."""
    if was_started(record, domain):
        return "It runs: it was started from outside."
    if record.message:
        return record.message
    if record.phase is Phase.UP:
        return _message_while_up(record, domain, readiness)
    if record.phase in REMOVING and record.tries >= TRIES:
        return f"{REMOVING[record.phase]}, but what is left of it here cannot be removed: {record.problem}"
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


REMOVING: Final[Mapping[Phase, str]] = {
    Phase.CLEANING: "It is halted, and its disks are saved or discarded as asked",
    Phase.DESTROYING: "It is being destroyed",
}
"""Phases that remove what is left, and that are tried until it is gone."""


def _message_while_up(record: Record, domain: DomainState, readiness: Readiness) -> str:
    if domain.job:
        return f"Somebody else keeps it busy ({domain.job}): Saltern leaves it alone until that ends."
    if domain.problem:
        return domain.problem
    if record.installing and (domain.power is Power.RUNNING or readiness.state is State.FAILED):
        return readiness.message or "It is ready."
    if is_held(record, domain):
        return "It runs."
    return {Power.RUNNING: "It runs.", Power.PAUSED: "It is paused in memory; resume lets it run on."}.get(
        domain.power, "It is off; its disks are next."
    )
