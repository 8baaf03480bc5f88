"""Statuses and next steps: tables over every phase and every state of a domain."""

from datetime import UTC, datetime, timedelta
from itertools import product

import msgspec
import pytest

from worker_service.contract import TRIES, HaltCause, Spec, Status
from worker_service.hypervisor.base import ABSENT, DomainState, Power
from worker_service.lifecycle import (
    SHUTDOWN_TRIES,
    Step,
    after_halt,
    halt_cause,
    message_of,
    next_step,
    status_of,
    wait_s,
)
from worker_service.record import SETTLED, TRANSITIONS, Phase, Record, move

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
ON, PAUSED = DomainState(Power.RUNNING), DomainState(Power.PAUSED)
STUCK = DomainState(Power.PAUSED, problem="The guest is stopped by an I/O error.")
OFF = {cause: DomainState(Power.OFF, cause=cause) for cause in (*HaltCause, None)}
DOMAINS = (ON, PAUSED, STUCK, ABSENT, *OFF.values())


def record(phase=Phase.UP, save_to="file:///saved/a.qcow2", **changes):
    spec = Spec(name="a", hda_image="file:///images/a.qcow2", hda_save_to=save_to, **changes.pop("spec", {}))
    made = Record(uuid="u", spec=spec, generation=1, phase=phase, phase_since=NOW, created_at=NOW)
    return msgspec.structs.replace(made, **changes)


@pytest.mark.parametrize(("phase", "domain"), list(product(Phase, DOMAINS)))
def test_every_pair_has_a_status_and_a_message(phase, domain):
    assert status_of(record(phase), domain) in Status
    settled = phase in (Phase.DONE, Phase.START_FAILED, Phase.SAVE_FAILED, Phase.KEPT)
    assert settled or message_of(record(phase), domain)


@pytest.mark.parametrize(("phase", "domain"), list(product(Phase, DOMAINS)))
def test_only_settled_phases_and_live_domains_have_nothing_pending(phase, domain):
    live = phase is Phase.UP and domain.power in (Power.RUNNING, Power.PAUSED)
    assert (next_step(record(phase), domain) is None) == (phase in SETTLED or live)


@pytest.mark.parametrize(
    ("phase", "domain", "status"),
    [
        (Phase.FETCHING, ABSENT, Status.STARTING),
        (Phase.BOOTING, ON, Status.STARTING),
        (Phase.UP, ON, Status.RUNNING),
        (Phase.UP, PAUSED, Status.SUSPENDED),
        (Phase.UP, STUCK, Status.RUNNING),
        (Phase.UP, OFF[HaltCause.GUEST], Status.SAVING),
        (Phase.UP, OFF[HaltCause.CRASHED], Status.HALTED),
        (Phase.UP, ABSENT, Status.HALTED),
        (Phase.SEALING, OFF[HaltCause.GUEST], Status.SAVING),
        (Phase.SAVING, OFF[HaltCause.GUEST], Status.SAVING),
        (Phase.DONE, ABSENT, Status.HALTED),
        (Phase.START_FAILED, ABSENT, Status.FAILED_TO_START),
        (Phase.SAVE_FAILED, OFF[HaltCause.GUEST], Status.FAILED_TO_SAVE),
    ],
)
def test_statuses_of_the_contract(phase, domain, status):
    assert status_of(record(phase), domain) is status


@pytest.mark.parametrize(
    ("changes", "domain", "step"),
    [
        ({}, OFF[HaltCause.GUEST], Step.NOTE_HALT),
        ({}, ABSENT, Step.NOTE_HALT),
        ({"shutdown_asked": True}, ON, Step.ASK_SHUTDOWN),
        ({"shutdown_asked": True, "tries": SHUTDOWN_TRIES}, ON, None),
        ({"cd_uri": "file:///cd.iso"}, ON, Step.CHANGE_CD),
        ({"spec": {"cd_image": "file:///cd.iso"}}, ON, Step.CHANGE_CD),
        ({"spec": {"cd_image": "file:///cd.iso"}, "cd_uri": "file:///cd.iso"}, ON, None),
        ({"phase": Phase.FETCHING, "shutdown_asked": True}, ABSENT, Step.NOTE_HALT),
        ({"phase": Phase.BOOTING, "shutdown_asked": True}, ON, Step.BOOT),
        ({"phase": Phase.SAVING, "tries": TRIES}, ABSENT, Step.SET_ASIDE),
        ({"phase": Phase.SAVING, "tries": TRIES, "try_open": True}, ABSENT, Step.SAVE),
        ({"phase": Phase.SEALING, "tries": TRIES}, ABSENT, Step.SET_ASIDE),
        ({"phase": Phase.SAVING, "tries": TRIES - 1}, ABSENT, Step.SAVE),
    ],
)
def test_next_step(changes, domain, step):
    assert next_step(record(**changes), domain) is step


@pytest.mark.parametrize(
    ("cause", "asked", "told", "ending"),
    [
        (HaltCause.GUEST, False, HaltCause.GUEST, Phase.SEALING),
        (HaltCause.GUEST, True, HaltCause.OPERATOR, Phase.SEALING),
        (HaltCause.HOST, False, HaltCause.HOST, Phase.SEALING),
        (HaltCause.CRASHED, False, HaltCause.CRASHED, Phase.KEPT),
        (HaltCause.CRASHED, True, HaltCause.CRASHED, Phase.SEALING),
        (HaltCause.KILLED, False, HaltCause.KILLED, Phase.KEPT),
        (None, False, HaltCause.UNKNOWN, Phase.KEPT),
    ],
)
def test_only_a_wish_lets_disks_go(cause, asked, told, ending):
    known = record(shutdown_asked=asked)
    assert halt_cause(known, OFF[cause]) is told
    assert after_halt(known, told) is ending


def test_a_domain_undefined_from_outside_keeps_its_disks():
    assert after_halt(record(), halt_cause(record(), ABSENT)) is Phase.KEPT


def test_without_save_to_a_wished_halt_discards():
    assert after_halt(record(save_to=None), HaltCause.GUEST) is Phase.CLEANING
    assert after_halt(record(save_to=""), HaltCause.GUEST) is Phase.CLEANING


def test_run_policy_always_keeps_the_disk_of_a_guest_that_shut_down_by_itself():
    known = record(spec={"run_policy": "always"})
    assert after_halt(known, HaltCause.GUEST) is Phase.KEPT
    assert after_halt(known, HaltCause.OPERATOR) is Phase.SEALING


def test_waiting_is_computed_from_the_clock_that_is_given():
    assert wait_s(record(), NOW) == 0
    later = record(next_try_at=NOW + timedelta(seconds=7))
    assert wait_s(later, NOW) == 7
    assert wait_s(later, NOW + timedelta(seconds=8)) == 0


@pytest.mark.parametrize(("old", "new"), list(product(Phase, Phase)))
def test_move_obeys_the_table(old, new):
    if new in TRANSITIONS[old]:
        moved = move(record(old, tries=2, try_open=True, problem="p"), new, NOW, message="m")
        assert (moved.phase, moved.tries, moved.try_open, moved.problem, moved.message) == (new, 0, False, None, "m")
    else:
        with pytest.raises(AssertionError, match="no transition"):
            move(record(old), new, NOW)


def test_destroy_can_interrupt_everything():
    assert all(Phase.DESTROYING in TRANSITIONS[phase] for phase in set(Phase) - {Phase.DESTROYING})
