"""The rules of commands: a table over every verb, phase, `shutdown_asked` and generation."""

from datetime import timedelta
from itertools import product

import msgspec
import pytest

from tests.unit.worker.state.test_lifecycle import AGENT, NOW, ON, PAUSED, PLACE, record
from worker_service.contract import KEEP, TRIES, Code, HaltCause
from worker_service.core.errors import Refused
from worker_service.hypervisor.base import ABSENT
from worker_service.state.command_rules import (
    after_destroy,
    after_modify,
    after_save_retry,
    after_shutdown,
    after_start,
    after_suspend_or_resume,
    starts_again,
)
from worker_service.state.record import (
    NEW_INSTANCE_FIELDS,
    SETTLED,
    STARTING,
    TRANSITIONS,
    Disk,
    Phase,
    with_disk,
    with_save,
)

LATER = NOW + timedelta(hours=1)
GENERATION = 5
OLDER, EQUAL, NEWER = 4, 5, 6
SAME, REFUSED = "same phase", "refused"
ELSEWHERE = "file:///saved/b.qcow2"

RULES = {
    "start": lambda known, number: after_start(known, known.spec, number, LATER, {}),
    "modify target": lambda known, number: after_modify(known, {"hda_save_to": ELSEWHERE}, number, {}),
    "modify CD": lambda known, number: after_modify(known, {"cd_image": "file:///cd.iso"}, number, {}),
    "suspend or resume": lambda known, number: after_suspend_or_resume(known, ON, number),
    "shutdown": lambda known, number: after_shutdown(known, number, LATER),
    "save_retry": lambda known, number: after_save_retry(known, number, LATER),
    "destroy": lambda known, number: after_destroy(known, number, LATER),
}

TABLE = {  # phase -> what each verb leads to, in the order of RULES, with a generation that is newer
    Phase.FETCHING: (SAME, SAME, REFUSED, REFUSED, SAME, REFUSED, Phase.DESTROYING),
    Phase.BUILDING: (SAME, SAME, REFUSED, REFUSED, SAME, REFUSED, Phase.DESTROYING),
    Phase.BOOTING: (SAME, SAME, REFUSED, REFUSED, SAME, REFUSED, Phase.DESTROYING),
    Phase.UP: (SAME, SAME, SAME, SAME, SAME, REFUSED, Phase.DESTROYING),
    Phase.FLATTENING: (SAME, REFUSED, REFUSED, REFUSED, SAME, SAME, Phase.DESTROYING),
    Phase.SAVING: (SAME, REFUSED, REFUSED, REFUSED, SAME, SAME, Phase.DESTROYING),
    Phase.CLEANING: (SAME, REFUSED, REFUSED, REFUSED, SAME, SAME, Phase.DESTROYING),
    Phase.DONE: (Phase.FETCHING, REFUSED, REFUSED, REFUSED, SAME, REFUSED, Phase.DESTROYING),
    Phase.KEPT: (Phase.BUILDING, SAME, REFUSED, REFUSED, Phase.FLATTENING, REFUSED, Phase.DESTROYING),
    Phase.START_FAILED: (Phase.FETCHING, REFUSED, REFUSED, REFUSED, SAME, REFUSED, Phase.DESTROYING),
    Phase.SAVE_FAILED: (REFUSED, SAME, REFUSED, REFUSED, SAME, Phase.FLATTENING, Phase.DESTROYING),
    Phase.DESTROYING: (SAME, REFUSED, REFUSED, REFUSED, SAME, REFUSED, SAME),
}
EXPECTED = {(verb, phase): aim for phase, aims in TABLE.items() for verb, aim in zip(RULES, aims, strict=True)}


def known_record(phase, *, pressed=False, **changes):
    return record(phase, generation=GENERATION, shutdown_asked=pressed, tries=2, problem="Why.", **changes)


def expected(verb, phase, number):
    if verb == "start" and number == EQUAL:
        return SAME  # a repetition of the start that was accepted, whatever became of the VM
    return EXPECTED[verb, phase]


def test_table_is_complete():
    assert set(EXPECTED) == set(product(RULES, Phase))


@pytest.mark.parametrize(("verb", "phase", "pressed"), list(product(RULES, Phase, (False, True))))
@pytest.mark.parametrize("number", [None, EQUAL, NEWER])
def test_command_that_is_not_older(verb, phase, pressed, number):
    known = known_record(phase, pressed=pressed)
    aim = expected(verb, phase, number)
    if aim is REFUSED:
        with pytest.raises(Refused) as refusal:
            RULES[verb](known, number)
        assert refusal.value.code is Code.CONFLICT
        return
    after = RULES[verb](known, number)
    assert after.phase is (phase if aim is SAME else aim)
    assert after.phase is phase or after.phase in TRANSITIONS[phase]
    assert after.phase_since == (NOW if after.phase is phase else LATER)
    pending = verb == "save_retry" and aim is SAME  # nothing but the time of the next try changes
    assert after.generation == (GENERATION if pending else number or GENERATION)


@pytest.mark.parametrize(("verb", "phase", "pressed"), list(product(RULES, Phase, (False, True))))
def test_older_command_is_refused(verb, phase, pressed):
    off = verb == "suspend or resume" and EXPECTED[verb, phase] is REFUSED
    with pytest.raises(Refused) as refusal:
        RULES[verb](known_record(phase, pressed=pressed), OLDER)
    assert refusal.value.code is (Code.CONFLICT if off else Code.STALE)


@pytest.mark.parametrize(("phase", "pressed"), list(product(Phase, (False, True))))
def test_shutdown_is_recorded_before_the_halt_only(phase, pressed):
    after = after_shutdown(known_record(phase, pressed=pressed), None, LATER)
    heeded = phase is Phase.UP or (phase in STARTING and not pressed)
    assert after.shutdown_asked == (pressed or heeded)
    assert (after.tries, after.problem) == ((0, None) if heeded or phase is Phase.KEPT else (2, "Why."))
    assert after.halt_cause is (HaltCause.OPERATOR if phase is Phase.KEPT else None)


@pytest.mark.parametrize(
    ("save_to", "saved", "cause", "phase", "settled"),
    [
        ("", None, HaltCause.CRASHED, Phase.CLEANING, True),
        ("", None, HaltCause.GUEST, Phase.CLEANING, True),
        (PLACE, None, HaltCause.CRASHED, Phase.FLATTENING, True),
        (PLACE, PLACE, HaltCause.GUEST, Phase.CLEANING, True),
        (None, None, HaltCause.CRASHED, Phase.KEPT, True),
        (None, None, HaltCause.GUEST, Phase.KEPT, False),  # there is nothing to do
        (None, PLACE, HaltCause.OPERATOR, Phase.KEPT, False),
    ],
)
def test_shutdown_of_kept_disks_ends_as_each_says(save_to, saved, cause, phase, settled):
    known = known_record(Phase.KEPT, save_to=save_to, halt_cause=cause, disks={"hda": Disk(saved_to=saved)})
    after = after_shutdown(known, NEWER, LATER, "/vms/u")
    assert (after.phase, after.generation) == (phase, NEWER)
    assert after.halt_cause is (HaltCause.OPERATOR if settled else cause)
    if phase is Phase.KEPT and settled:
        assert after.message == (
            "It is off; its disks are kept in /vms/u. start boots it again, destroy discards them."
        )
        assert after.problem is None


def test_shutdown_saves_what_was_not_saved_yet():
    """After a halt whose disk was kept, and a target that is named later; then again after the next life."""
    kept = known_record(Phase.KEPT, save_to=None, halt_cause=HaltCause.GUEST, disks={"hda": Disk()})
    named = after_modify(kept, {"hda_save_to": PLACE}, None, {"hda": None})
    assert after_shutdown(named, None, LATER).phase is Phase.FLATTENING
    saved = with_save(with_disk(named, "hda", flat_sha256="0a"), "hda", PLACE)
    assert after_shutdown(after_modify(saved, {"hda_save_to": KEEP}, None, {}), None, LATER).phase is Phase.KEPT
    elsewhere = after_modify(saved, {"hda_save_to": ELSEWHERE}, None, {"hda": None})
    assert after_shutdown(elsewhere, None, LATER).phase is Phase.FLATTENING
    assert after_shutdown(after_modify(saved, {"hda_save_to": ""}, None, {}), None, LATER).phase is Phase.CLEANING


@pytest.mark.parametrize(
    ("cause", "message", "said"),
    [
        (HaltCause.CRASHED, "It is off (crashed); …", "It is off (crashed); its disks"),
        (HaltCause.GUEST, "It is off; …", "It is off (guest shut down); its disks"),
        (None, "It is off; …", "It is off (unknown); its disks"),
        (HaltCause.SAVED, "It is off (memory saved); …", ""),
        (HaltCause.CRASHED, "It could not be started: …", ""),
    ],
)
def test_message_of_kept_disks_follows_their_target(cause, message, said):
    kept = known_record(Phase.KEPT, save_to=None, halt_cause=cause, message=message, disks={"hda": Disk()})
    after = after_modify(kept, {"hda_save_to": PLACE}, None, {}, folder="/vms/u").message
    assert after == ((said and f"{said} are kept in /vms/u. Start boots it again, shutdown saves it.") or message)


def test_keep_makes_a_target_absent():
    after = after_modify(known_record(Phase.UP, disks={"hda": Disk()}), {"hda_save_to": KEEP}, None, {})
    assert (after.spec.hda_save_to, after.save_to("hda"), after.disks_stay) == (None, None, True)


@pytest.mark.parametrize("phase", [Phase.DONE, Phase.START_FAILED])
def test_start_remembers_its_origin_until_the_next_one(phase):
    saves = {"hda": f"{PLACE}#sha256={'0a' * 32}"}
    after = after_start(known_record(phase), known_record(phase).spec, NEWER, LATER, {}, origin=saves)
    assert (after.origin, after.image("hda"), after.last_saves) == (saves, saves["hda"], saves)
    assert after.image("hdb") is None
    again = after_start(after, after.spec, NEWER, LATER, {}, origin={"hda": "file:///other#sha256=0b"})
    assert again.origin == saves  # it is on its way: a repetition
    ended = msgspec.structs.replace(after, phase=phase)
    new = after_start(ended, ended.spec, NEWER + 1, LATER, {})
    assert (new.origin, new.image("hda")) == ({}, new.spec.hda_image)


def test_kept_disks_come_before_an_origin():
    after = after_start(
        known_record(Phase.KEPT), known_record(Phase.KEPT).spec, NEWER, LATER, {}, origin={"hda": "file:/x#sha256=0a"}
    )
    assert (after.phase, after.origin) == (Phase.BUILDING, {})


@pytest.mark.parametrize(("phase", "pressed"), list(product(sorted(SETTLED - {Phase.SAVE_FAILED}), (False, True))))
def test_new_start_forgets_the_shutdown_and_all_but_kept_disks(phase, pressed):
    known = known_record(phase, pressed=pressed, disks={"hda": Disk(virtual_size=7)}, instance_id="1")
    larger = msgspec.structs.replace(known.spec, mem_size=1024)
    after = after_start(known, larger, NEWER, LATER, {"hda": "etag"})
    assert starts_again(known, after)
    assert (after.spec, after.shutdown_asked, after.tries, after.problem) == (larger, False, 0, None)
    if phase is Phase.KEPT:
        assert after.disks == {"hda": Disk(virtual_size=7, target_version="etag")}
    else:
        assert {key: getattr(after, key) for key in NEW_INSTANCE_FIELDS} == NEW_INSTANCE_FIELDS


@pytest.mark.parametrize("phase", sorted(set(Phase) - SETTLED))
def test_start_with_other_parameters_of_a_vm_is_refused(phase):
    known = known_record(phase)
    assert not starts_again(known, after_start(known, known.spec, None, LATER, {}))
    with pytest.raises(Refused, match="mem_size"):
        after_start(known, msgspec.structs.replace(known.spec, mem_size=1024), None, LATER, {})


@pytest.mark.parametrize("change", [{"hda_image": ELSEWHERE}, {"hdb_image": ELSEWHERE}])
@pytest.mark.parametrize(("save_to", "advice"), [(PLACE, "Call shutdown first"), (None, "name a place with modify")])
def test_kept_disks_are_not_replaced(change, save_to, advice):
    known = known_record(Phase.KEPT, save_to=save_to)
    with pytest.raises(Refused, match=f"{next(iter(change))} cannot be changed.*{advice}"):
        after_start(known, msgspec.structs.replace(known.spec, **change), None, LATER, {})


def test_modify_notes_the_new_target_and_what_lies_there():
    known = known_record(Phase.UP, disks={"hda": Disk()})
    after = after_modify(known, {"hda_save_to": ELSEWHERE}, None, {"hda": "etag", "hdb": None})
    assert (after.save_to("hda"), after.disks) == (ELSEWHERE, {"hda": Disk(target_version="etag")})
    assert (after.tries, after.problem) == (0, None)


def test_cd_of_a_guest_that_installs_is_not_changed():
    with pytest.raises(Refused, match="is installing"):
        after_modify(known_record(Phase.UP, **AGENT), {"cd_image": ""}, None, {})


def test_paused_vm_can_be_resumed_and_an_ended_one_cannot():
    assert after_suspend_or_resume(known_record(Phase.UP), PAUSED, NEWER).generation == NEWER
    with pytest.raises(Refused, match="is halted"):
        after_suspend_or_resume(known_record(Phase.KEPT), ABSENT, NEWER)


def test_retry_of_a_save_that_is_pending_is_due_at_once():
    known = known_record(Phase.SAVING, next_try_at=LATER)
    assert after_save_retry(known, NEWER, NOW).next_try_at is None


def test_start_waits_for_remains_that_cannot_be_removed():
    stuck = record(Phase.CLEANING, tries=TRIES, problem="Busy.")
    with pytest.raises(Refused, match=r"cannot be removed yet\. Busy\."):
        after_start(stuck, stuck.spec, NEWER, LATER, {})
