"""Statuses and next steps: tables over every phase and every state of a domain."""

from datetime import UTC, datetime, timedelta
from itertools import product

import msgspec
import pytest

from worker_service.contract import CONTINUABLE_HALTS, INTENDED_HALTS, TRIES, HaltCause, Spec, Status
from worker_service.guest_agent.readiness import AWAITED, Readiness, State
from worker_service.hypervisor.base import ABSENT, DomainState, Power
from worker_service.state.lifecycle import (
    ROOM_BYTES,
    SHUTDOWN_TRIES,
    Evidence,
    Step,
    after_giving_up,
    after_halt,
    can_resume_after_enospc,
    disk_fate,
    halt_cause,
    is_forgettable,
    is_forgotten,
    is_intended,
    kept_message,
    message_of,
    next_step,
    status_of,
    try_number,
    wait_s,
)
from worker_service.state.outside_changes import OFF_WITH_DISKS
from worker_service.state.record import BEING_CHANGED, SETTLED, TRANSITIONS, Disk, Phase, Record, move

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
ON, PAUSED = DomainState(Power.RUNNING), DomainState(Power.PAUSED)
STUCK = DomainState(Power.PAUSED, problem="The guest is stopped by an I/O error.")
FULL = DomainState(Power.PAUSED, problem="The data root is full.", short_of_space=True)
OFF = {cause: DomainState(Power.OFF, cause=cause) for cause in (*HaltCause, None)}
DOMAINS = (ON, PAUSED, STUCK, FULL, ABSENT, *OFF.values())


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
def test_settled_phases_and_live_domains_have_no_step(phase, domain):
    idle = phase is Phase.UP if domain.on else phase in SETTLED
    started = domain.on and phase in OFF_WITH_DISKS
    assert (next_step(record(phase), domain) is None) == (idle or (phase in SETTLED and not started))


@pytest.mark.parametrize(
    ("phase", "domain", "status"),
    [
        (Phase.FETCHING, ABSENT, Status.STARTING),
        (Phase.BOOTING, ON, Status.STARTING),
        (Phase.UP, ON, Status.RUNNING),
        (Phase.UP, PAUSED, Status.SUSPENDED),
        (Phase.UP, STUCK, Status.RUNNING),
        (Phase.UP, FULL, Status.RUNNING),
        (Phase.UP, OFF[HaltCause.GUEST], Status.SAVING),
        (Phase.UP, OFF[HaltCause.CRASHED], Status.HALTED),
        (Phase.UP, ABSENT, Status.HALTED),
        (Phase.FLATTENING, OFF[HaltCause.GUEST], Status.SAVING),
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
        ({"phase": Phase.SAVING, "tries": TRIES}, ABSENT, Step.MOVE_TO_FAILED),
        ({"phase": Phase.SAVING, "tries": TRIES, "try_open": True}, ABSENT, Step.SAVE),
        ({"phase": Phase.FLATTENING, "tries": TRIES}, ABSENT, Step.MOVE_TO_FAILED),
        ({"phase": Phase.SAVING, "tries": TRIES - 1}, ABSENT, Step.SAVE),
    ],
)
def test_next_step_follows_from_phase_and_domain(changes, domain, step):
    assert next_step(record(**changes), domain) is step


@pytest.mark.parametrize(
    ("cause", "pressed", "message", "ending"),
    [
        (HaltCause.GUEST, False, HaltCause.GUEST, Phase.FLATTENING),
        (HaltCause.GUEST, True, HaltCause.OPERATOR, Phase.FLATTENING),
        (HaltCause.HOST, False, HaltCause.HOST, Phase.FLATTENING),
        (HaltCause.CRASHED, False, HaltCause.CRASHED, Phase.KEPT),
        (HaltCause.CRASHED, True, HaltCause.CRASHED, Phase.FLATTENING),
        (HaltCause.KILLED, False, HaltCause.KILLED, Phase.KEPT),
        (None, False, HaltCause.UNKNOWN, Phase.KEPT),
    ],
)
def test_only_an_intended_halt_discards_disks(cause, pressed, message, ending):
    known = record(shutdown_asked=pressed)
    assert halt_cause(known, OFF[cause]) is message
    assert after_halt(known, message) is ending


HERE, BEFORE = "boot-2", "boot-1"


@pytest.mark.parametrize(
    ("message", "changes", "evidence", "cause", "ending"),
    [
        # libvirt remembers and is believed; the other evidence decides about the intention
        (HaltCause.GUEST, {}, {}, HaltCause.GUEST, Phase.FLATTENING),
        (HaltCause.GUEST, {"ended_by_host": True}, {}, HaltCause.HOST, Phase.FLATTENING),
        (HaltCause.GUEST, {}, {"host_stopping": True}, HaltCause.HOST, Phase.FLATTENING),
        (HaltCause.GUEST, {"shutdown_asked": True}, {"host_stopping": True}, HaltCause.OPERATOR, Phase.FLATTENING),
        (HaltCause.KILLED, {"ended_by_host": True}, {}, HaltCause.KILLED, Phase.KEPT),
        (HaltCause.CRASHED, {}, {"host_stopping": True}, HaltCause.CRASHED, Phase.KEPT),
        # libvirtd was restarted meanwhile: its log remembers
        (None, {"host_boot": HERE}, {"logged": HaltCause.GUEST}, HaltCause.GUEST, Phase.FLATTENING),
        (None, {"shutdown_asked": True}, {"logged": HaltCause.GUEST}, HaltCause.OPERATOR, Phase.FLATTENING),
        (None, {"host_boot": HERE}, {"logged": HaltCause.CRASHED}, HaltCause.CRASHED, Phase.KEPT),
        (None, {"host_boot": HERE}, {"logged": HaltCause.KILLED}, HaltCause.KILLED, Phase.KEPT),
        (None, {"host_boot": HERE}, {}, HaltCause.UNKNOWN, Phase.KEPT),
        # the host was: in order, with a word in the log, or not
        (None, {"host_boot": BEFORE}, {"logged": HaltCause.GUEST}, HaltCause.HOST, Phase.FLATTENING),
        (None, {"host_boot": BEFORE}, {"logged": HaltCause.CRASHED}, HaltCause.CRASHED, Phase.KEPT),
        (None, {"host_boot": BEFORE}, {}, HaltCause.HOST_LOST, Phase.KEPT),
        (None, {"host_boot": BEFORE, "shutdown_asked": True}, {}, HaltCause.HOST_LOST, Phase.FLATTENING),
        # a record of an older version has no boot id, and a host may have none
        (None, {}, {}, HaltCause.UNKNOWN, Phase.KEPT),
        (None, {"host_boot": BEFORE}, {"host_boot": ""}, HaltCause.UNKNOWN, Phase.KEPT),
    ],
)  # fmt: skip
def test_halt_cause_decides_about_intention(message, changes, evidence, cause, ending):
    known, observed = record(**changes), Evidence(**{"host_boot": HERE, **evidence})
    assert halt_cause(known, OFF[message], observed) is cause
    assert after_halt(known, cause) is ending
    assert status_of(known, OFF[message], observed) is (Status.HALTED if ending is Phase.KEPT else Status.SAVING)


def test_domain_undefined_from_outside_keeps_its_disks():
    assert after_halt(record(), halt_cause(record(), ABSENT)) is Phase.KEPT


PLACE = "file:///saved/a.qcow2"
DATA = {"hdb_image": "blank:1M"}


@pytest.mark.parametrize("cause", sorted(INTENDED_HALTS))
@pytest.mark.parametrize(
    ("hda", "hdb", "saved", "ending"),
    [
        (None, {}, False, Phase.KEPT),
        ("", {}, False, Phase.CLEANING),
        (PLACE, {}, False, Phase.FLATTENING),
        (PLACE, {}, True, Phase.CLEANING),
        (None, DATA, False, Phase.KEPT),
        ("", DATA, False, Phase.KEPT),  # the second one stays, so both do
        (PLACE, DATA, False, Phase.FLATTENING),
        (PLACE, DATA, True, Phase.KEPT),
        ("", {**DATA, "hdb_save_to": ""}, False, Phase.CLEANING),
        (None, {**DATA, "hdb_save_to": ""}, False, Phase.KEPT),
        (PLACE, {**DATA, "hdb_save_to": ""}, True, Phase.CLEANING),
        (PLACE, {"hdb_save_to": None}, True, Phase.CLEANING),  # no such disk
    ],
)
def test_intended_halt_ends_as_each_disk_says(cause, hda, hdb, saved, ending):
    known = record(save_to=hda, spec=hdb, disks={"hda": Disk(saved_to=PLACE if saved else None)})
    assert after_halt(known, cause) is ending
    assert known.disks_stay is (hda is None or bool(hdb.get("hdb_image") and hdb.get("hdb_save_to") is None))
    unrecorded = status_of(known, OFF[cause])
    assert unrecorded is Status.SAVING  # not `halted` before it is recorded: that allows a new start


@pytest.mark.parametrize("cause", list(HaltCause))
@pytest.mark.parametrize("requested", [False, True])
def test_disk_without_a_target_is_kept_after_every_halt(cause, requested):
    assert after_halt(record(save_to=None, shutdown_asked=requested), cause) is Phase.KEPT


@pytest.mark.parametrize(
    ("cause", "changes", "intended"),
    [
        (HaltCause.GUEST, {}, True),
        (HaltCause.HOST, {}, True),
        (HaltCause.OPERATOR, {"spec": {"run_policy": "always"}}, True),
        (HaltCause.GUEST, {"spec": {"run_policy": "always"}}, False),
        (HaltCause.HOST, {"spec": {"run_policy": "always"}}, False),
        (HaltCause.HOST, {"spec": {"soft_list": ("git",)}}, False),  # interrupted
        (HaltCause.HOST, {"spec": {"soft_list": ("git",)}, "ready_at": NOW}, True),
        (HaltCause.CRASHED, {}, False),
        (HaltCause.MIGRATED, {}, False),
        (None, {}, False),
    ],
)
def test_next_start_is_due_unless_the_halt_was_meant(cause, changes, intended):
    assert is_intended(record(**changes), cause) is intended


FATES = {  # phase -> of a disk that stays, is discarded, is to be saved, is saved, is saved and stays
    **dict.fromkeys(
        (Phase.FETCHING, Phase.BUILDING, Phase.BOOTING, Phase.UP),
        (
            "will be kept here when it halts", "will be discarded when it halts", "will be saved when it halts",
            "will be saved when it halts", "will be saved and kept here when it halts",
        ),
    ),
    **dict.fromkeys(
        (Phase.FLATTENING, Phase.SAVING), ("kept here", "discarded", "being saved", "saved", "saved, and kept here")
    ),
    Phase.KEPT: ("kept here", "kept here", "kept here", "saved, and kept here", "saved, and kept here"),
    Phase.SAVE_FAILED: ("kept here", "kept here", "kept here", "saved, and kept here", "saved, and kept here"),
    **dict.fromkeys(
        (Phase.CLEANING, Phase.DONE, Phase.START_FAILED, Phase.DESTROYING),
        ("discarded", "discarded", "discarded", "saved", "saved"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("phase", list(Phase))
def test_fate_of_each_disk_is_said(phase):
    saved = {"disks": {"hda": Disk(saved_to=PLACE), "hdb": Disk()}}
    known = (
        record(phase, None, disks={"hda": Disk()}),
        record(phase, "", disks={"hda": Disk()}),
        record(phase, disks={"hda": Disk()}),
        record(phase, **saved),
        record(phase, **saved, spec=DATA),
    )
    assert tuple(disk_fate(each, "hda") for each in known) == FATES[phase]


def test_unsaved_disks_of_a_destroyed_vm_are_kept():
    assert disk_fate(record(Phase.DESTROYING, disks={"hda": Disk()}, unsaved=True), "hda") == "kept here"


@pytest.mark.parametrize(
    ("phase", "owner", "changes", "forgotten"),
    [
        (Phase.DONE, "ann", {"disks": {"hda": Disk(saved_to=PLACE)}}, True),  # its master knows the save
        (Phase.DONE, "", {"disks": {"hda": Disk(saved_to=PLACE)}}, False),
        (Phase.DONE, "", {"disks": {"hda": Disk()}}, True),
        (Phase.DONE, "", {"origin": {"hda": "file:///a#sha256=0a"}}, False),
        (Phase.KEPT, "", {}, False),
        (Phase.START_FAILED, "ann", {}, False),
        (Phase.SAVE_FAILED, "ann", {}, False),
    ],
)
def test_halted_vm_is_forgotten_unless_only_it_knows_its_save(phase, owner, changes, forgotten):
    assert is_forgettable(record(phase, owner=owner, **changes)) is forgotten


def test_run_policy_always_keeps_disk_after_guest_shutdown():
    known = record(spec={"run_policy": "always"})
    assert after_halt(known, HaltCause.GUEST) is Phase.KEPT
    assert after_halt(known, HaltCause.HOST) is Phase.KEPT
    assert after_halt(known, HaltCause.OPERATOR) is Phase.FLATTENING
    assert status_of(record(save_to=None, spec={"run_policy": "always"}), OFF[HaltCause.GUEST]) is Status.HALTED


@pytest.mark.parametrize(
    ("domain", "free", "goes_on"),
    [
        (FULL, ROOM_BYTES, True),
        (FULL, ROOM_BYTES - 1, False),
        (STUCK, ROOM_BYTES, False),
        (PAUSED, ROOM_BYTES, False),
        (ON, ROOM_BYTES, False),
        (ABSENT, ROOM_BYTES, False),
    ],
)
def test_only_a_guest_without_space_resumes_when_there_is_some(domain, free, goes_on):
    assert can_resume_after_enospc(domain, free) is goes_on


def test_waiting_is_computed_from_the_clock_that_is_given():
    assert wait_s(record(), Step.ASK_SHUTDOWN, NOW) == 0
    later = record(next_try_at=NOW + timedelta(seconds=7), next_try_of=Step.ASK_SHUTDOWN)
    assert wait_s(later, Step.ASK_SHUTDOWN, NOW) == 7
    assert wait_s(later, Step.ASK_SHUTDOWN, NOW + timedelta(seconds=8)) == 0


@pytest.mark.parametrize(("of", "step"), list(product(("", *Step), Step)))
def test_step_waits_for_its_own_next_try_alone(of, step):
    """In a record of an older version every step waits."""
    later = record(next_try_at=NOW + timedelta(seconds=7), next_try_of=of)
    assert wait_s(later, step, NOW) == (7 if of in ("", step) else 0)


@pytest.mark.parametrize(
    ("changes", "number", "words"),
    [
        ({"phase": Phase.FETCHING}, 1, "Fetching its images."),
        ({"phase": Phase.FETCHING, "tries": 1}, 2, "Fetching its images, try 2 of 3."),
        ({"phase": Phase.BUILDING, "tries": 2}, 3, "Making its disks, try 3 of 3."),
        ({"phase": Phase.BOOTING, "tries": 1}, 2, "Booting, try 2 of 3."),
        ({"phase": Phase.FLATTENING}, 1, "flattening its disks, try 1 of 3."),
        ({"phase": Phase.FLATTENING, "tries": 2, "try_open": True}, 2, "flattening its disks, try 2 of 3."),
        ({"phase": Phase.SAVING}, 1, "saving its disks, try 1 of 3."),
        ({"phase": Phase.SAVING, "tries": 1, "try_open": True}, 1, "saving its disks, try 1 of 3."),
        ({"phase": Phase.SAVING, "tries": 1}, 2, "saving its disks, try 2 of 3."),
        ({"phase": Phase.SAVING, "tries": 3, "try_open": True}, 3, "saving its disks, try 3 of 3."),
        ({"phase": Phase.SAVING, "tries": 3}, 3, "saving its disks, try 3 of 3."),
        ({"phase": Phase.SAVING, "tries": 4}, 3, "saving its disks, try 3 of 3."),
        ({"phase": Phase.UP, "tries": 2}, 0, "It runs."),
        ({"phase": Phase.CLEANING, "tries": 2}, 0, "removing its local disks."),
    ],
)
def test_tries_are_shown_where_they_are_counted(changes, number, words):
    assert try_number(record(**changes)) == number
    domain = ABSENT if changes["phase"] in OFF_WITH_DISKS else ON
    assert message_of(record(**changes), domain).endswith(words)


@pytest.mark.parametrize(("old", "new"), list(product(Phase, Phase)))
def test_move_obeys_the_table(old, new):
    if new in TRANSITIONS[old]:
        moved = move(record(old, tries=2, try_open=True, problem="p"), new, NOW, message="m")
        assert (moved.phase, moved.tries, moved.try_open, moved.problem, moved.message) == (new, 0, False, None, "m")
    else:
        with pytest.raises(AssertionError, match="no transition"):
            move(record(old), new, NOW)


KEPT_BEFORE = {"halt_cause": HaltCause.CRASHED}
"""Started again from the disks of an earlier life, and not up yet."""


@pytest.mark.parametrize(
    ("phase", "changes", "ending"),
    [
        # it never ran: no disk is lost
        (Phase.FETCHING, {}, Phase.CLEANING),
        (Phase.BUILDING, {}, Phase.CLEANING),
        # it has run before, and its disks are the only ones
        (Phase.BUILDING, KEPT_BEFORE, Phase.FLATTENING),
        (Phase.BUILDING, {**KEPT_BEFORE, "save_to": ""}, Phase.CLEANING),
        (Phase.BUILDING, {**KEPT_BEFORE, "save_to": None}, Phase.KEPT),
        (Phase.KEPT, KEPT_BEFORE, Phase.FLATTENING),
        (Phase.KEPT, {**KEPT_BEFORE, "save_to": ""}, Phase.CLEANING),
    ],
)
def test_shutdown_before_it_is_up_saves_the_earlier_disks(phase, changes, ending):
    known = record(phase, shutdown_asked=True, **changes)
    assert after_halt(known, halt_cause(known, ABSENT) if phase is not Phase.KEPT else HaltCause.OPERATOR) is ending
    assert ending in TRANSITIONS[phase]


@pytest.mark.parametrize(
    ("changes", "ending"),
    [
        ({}, Phase.START_FAILED),
        ({"shutdown_asked": True}, Phase.START_FAILED),
        (KEPT_BEFORE, Phase.KEPT),
        ({**KEPT_BEFORE, "shutdown_asked": True}, Phase.FLATTENING),
        ({**KEPT_BEFORE, "shutdown_asked": True, "save_to": ""}, Phase.CLEANING),
        ({**KEPT_BEFORE, "shutdown_asked": True, "save_to": None}, Phase.KEPT),
    ],
)
@pytest.mark.parametrize("phase", [Phase.BUILDING, Phase.BOOTING])
def test_given_up_start_keeps_the_earlier_disks(phase, changes, ending):
    assert after_giving_up(record(phase, **changes)) is ending
    assert ending in TRANSITIONS[phase]


def test_destroy_can_interrupt_everything():
    assert all(Phase.DESTROYING in TRANSITIONS[phase] for phase in set(Phase) - {Phase.DESTROYING})


READY, FAILED = Readiness(state=State.READY, message=""), Readiness(state=State.FAILED, message="no such package")
AGENT = {"spec": {"soft_list": ("git",)}}
DONE = {**AGENT, "ready_at": NOW}


@pytest.mark.parametrize(
    ("changes", "domain", "readiness", "status", "step"),
    [
        (AGENT, ON, AWAITED, Status.INSTALLING, None),
        (AGENT, ON, READY, Status.INSTALLING, Step.NOTE_READY),
        (AGENT, ON, FAILED, Status.INSTALLING, Step.GIVE_UP),
        (AGENT, PAUSED, AWAITED, Status.SUSPENDED, None),
        (AGENT, PAUSED, FAILED, Status.SUSPENDED, None),
        (AGENT, STUCK, AWAITED, Status.INSTALLING, None),
        ({"spec": {"run_agent": True}}, ON, AWAITED, Status.INSTALLING, None),
        ({"spec": {"soft_list": ("git",), "run_agent": False}}, ON, AWAITED, Status.RUNNING, None),
        # Once it was ready it is never installing again, despite the log.
        (DONE, ON, FAILED, Status.RUNNING, None),
        (DONE, ON, AWAITED, Status.RUNNING, None),
        (DONE, OFF[HaltCause.GUEST], AWAITED, Status.SAVING, Step.NOTE_HALT),
        # Off before it was ready.
        (AGENT, OFF[HaltCause.GUEST], AWAITED, Status.INSTALLING, Step.NOTE_HALT),
        (AGENT, OFF[HaltCause.GUEST], READY, Status.SAVING, Step.NOTE_HALT),
        (AGENT, OFF[HaltCause.KILLED], FAILED, Status.INSTALLING, Step.NOTE_HALT),
        (AGENT, OFF[HaltCause.CRASHED], AWAITED, Status.HALTED, Step.NOTE_HALT),
        (AGENT, ABSENT, AWAITED, Status.HALTED, Step.NOTE_HALT),
        ({**AGENT, "shutdown_asked": True}, OFF[HaltCause.GUEST], AWAITED, Status.SAVING, Step.NOTE_HALT),
        # Its host shut down during the installation. That was not intended: the agent continues at the next start.
        ({**AGENT, "ended_by_host": True}, OFF[HaltCause.GUEST], AWAITED, Status.HALTED, Step.NOTE_HALT),
        ({**AGENT, "ended_by_host": True}, OFF[HaltCause.GUEST], READY, Status.SAVING, Step.NOTE_HALT),
        ({**AGENT, "ended_by_host": True, "shutdown_asked": True}, OFF[HaltCause.GUEST], AWAITED, Status.SAVING,
         Step.NOTE_HALT),
        ({**DONE, "ended_by_host": True}, OFF[HaltCause.GUEST], AWAITED, Status.SAVING, Step.NOTE_HALT),
        ({**AGENT, "shutdown_asked": True}, ON, AWAITED, Status.INSTALLING, Step.ASK_SHUTDOWN),
        # A CD is changed once installing is done.
        ({"spec": {**AGENT["spec"], "cd_image": "file:///cd.iso"}}, ON, AWAITED, Status.INSTALLING, None),
        ({"spec": {**AGENT["spec"], "cd_image": "file:///cd.iso"}, "ready_at": NOW}, ON, AWAITED, Status.RUNNING,
         Step.CHANGE_CD),
    ],
)  # fmt: skip
def test_readiness_decides_about_status_and_step(changes, domain, readiness, status, step):
    assert status_of(record(**changes), domain, readiness=readiness) is status
    assert next_step(record(**changes), domain, readiness) is step


@pytest.mark.parametrize(("phase", "domain", "readiness"), list(product(Phase, DOMAINS, (AWAITED, READY, FAILED))))
def test_every_triple_of_a_vm_with_an_agent_has_an_answer(phase, domain, readiness):
    known = record(phase, **AGENT)
    assert status_of(known, domain, readiness=readiness) in Status
    assert message_of(known, domain, readiness) or phase in SETTLED
    if phase is Phase.UP and domain.power in (Power.OFF, Power.ABSENT):
        assert after_halt(known, halt_cause(known, domain), readiness) in TRANSITIONS[Phase.UP]


def test_failed_guest_is_never_saved():
    for cause, pressed in product(frozenset(HaltCause) - CONTINUABLE_HALTS, (True, False)):
        assert after_halt(record(shutdown_asked=pressed, **AGENT), cause, FAILED) is Phase.START_FAILED


HELD = DomainState(Power.PAUSED, held=True)


def test_guest_held_for_its_disc_counts_as_running():
    changing = record(cd_uri=BEING_CHANGED, spec={"cd_image": "file:///iso/a.iso"})
    assert status_of(changing, HELD) is Status.RUNNING
    assert message_of(changing, HELD) == message_of(record(), ON)


@pytest.mark.parametrize(("tries", "forgotten"), [(0, False), (TRIES, True)])
def test_guest_is_held_only_while_its_disc_is_changed(tries, forgotten):
    changing = record(cd_uri=BEING_CHANGED, spec={"cd_image": "file:///iso/a.iso"}, tries=tries)
    assert is_forgotten(changing, HELD) is forgotten
    assert not is_forgotten(changing, ON)


@pytest.mark.parametrize("phase", [Phase.CLEANING, Phase.DESTROYING])
def test_remains_that_cannot_be_removed_are_said_so(phase):
    stuck = record(phase, tries=TRIES, problem="Busy.")
    assert status_of(stuck, ABSENT) is Status.HALTED
    assert message_of(stuck, ABSENT).endswith("what is left of it here cannot be removed: Busy.")


@pytest.mark.parametrize(
    ("cause", "save_to", "saved_memory", "words"),
    [
        (HaltCause.KILLED, PLACE, False, "Start boots it again, shutdown saves it."),
        (HaltCause.KILLED, None, False, "Start boots it again, destroy discards them."),
        (HaltCause.KILLED, "", False, "Start boots it again, shutdown discards them."),
        (HaltCause.KILLED, PLACE, True, "start resumes it, shutdown drops it and saves the disks"),
        (HaltCause.KILLED, None, True, "start resumes it, shutdown drops it and keeps the disks"),
        (HaltCause.SAVED, PLACE, False, "`virsh restore` resumes it"),
        (HaltCause.MIGRATED, PLACE, False, "Migrate it back with `virsh migrate`"),
        (HaltCause.GUEST, PLACE, False, "Start boots it again, shutdown saves it."),
    ],
)
def test_kept_disks_are_said_with_the_way_on(cause, save_to, saved_memory, words):
    message = kept_message(record(save_to=save_to), cause, "/vms/u", saved_memory=saved_memory)
    assert message.startswith(f"It is off ({cause}); its disks are kept in /vms/u.")
    assert words in message


def test_disks_of_an_intended_halt_are_said_to_be_kept():
    said = "It is off; its disks are kept in /vms/u. start boots it again, destroy discards them."
    assert kept_message(record(save_to=None), HaltCause.GUEST, "/vms/u") == said
    both = record(spec=DATA, disks={"hda": Disk(saved_to=PLACE), "hdb": Disk()})
    assert kept_message(both, HaltCause.OPERATOR, "/vms/u") == f"{said} Saved to {PLACE}."


def test_message_of_the_record_comes_first():
    assert message_of(record(message="It was saved."), ABSENT) == "It was saved."
