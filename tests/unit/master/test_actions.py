import msgspec
import pytest

from master_service.actions import VERBS, asked_for, modified
from master_service.errors import Conflict
from master_service.facts import Wanted
from master_service.seen import Seen
from tests.unit.master.builders import NOW, SPEC, vm


@pytest.mark.parametrize(
    ("verb", "wanted", "seen", "after"),
    [
        ("start", Wanted.HALTED, Seen.HALTED, Wanted.RUNNING),
        ("start", Wanted.RUNNING, Seen.FAILED_TO_START, Wanted.RUNNING),
        ("start", Wanted.PAUSED, Seen.SUSPENDED, Wanted.RUNNING),
        ("suspend", Wanted.RUNNING, Seen.RUNNING, Wanted.PAUSED),
        ("resume", Wanted.PAUSED, Seen.SUSPENDED, Wanted.RUNNING),
        ("shutdown", Wanted.RUNNING, Seen.RUNNING, Wanted.HALTED),
        ("shutdown", Wanted.HALTED, Seen.RUNNING, Wanted.HALTED),
        ("destroy", Wanted.RUNNING, Seen.STARTING, Wanted.DESTROYED),
    ],
)
def test_a_change_raises_generation(verb, wanted, seen, after):
    assumed = asked_for(vm(wanted, seen, generation=3, taken=3), verb, NOW)
    assert (assumed.wanted, assumed.generation, assumed.asked, assumed.changed_at) == (after, 4, 4, NOW)


@pytest.mark.parametrize(
    ("verb", "wanted", "seen"),
    [
        ("start", Wanted.RUNNING, Seen.RUNNING),
        ("start", Wanted.RUNNING, Seen.STARTING),
        ("suspend", Wanted.PAUSED, Seen.SUSPENDED),
        ("resume", Wanted.RUNNING, Seen.RUNNING),
        ("shutdown", Wanted.HALTED, Seen.HALTED),
        ("shutdown", Wanted.HALTED, Seen.SAVING),
        ("destroy", Wanted.DESTROYED, Seen.RUNNING),
    ],
)
def test_what_is_so_already_changes_nothing(verb, wanted, seen):
    subject = vm(wanted, seen)
    assert asked_for(subject, verb, NOW) == subject.assumed


@pytest.mark.parametrize("verb", ["suspend", "resume"])
@pytest.mark.parametrize("seen", [Seen.HALTED, Seen.FAILED_TO_START, Seen.SAVING])
def test_what_is_off_is_neither_suspended_nor_resumed(verb, seen):
    with pytest.raises(Conflict, match="is off"):
        asked_for(vm(Wanted.HALTED, seen), verb, NOW)


@pytest.mark.parametrize("verb", sorted(set(VERBS) - {"destroy"}))
def test_what_is_being_destroyed_stays_so(verb):
    with pytest.raises(Conflict, match="being destroyed"):
        asked_for(vm(Wanted.DESTROYED), verb, NOW)


def test_a_change_is_above_whatever_the_worker_was_told():
    assert asked_for(vm(generation=2, taken=9), "shutdown", NOW).generation == 10


def test_modify():
    subject = vm()
    assert modified(subject, {"hda_save_to": str(SPEC.hda_save_to)}, NOW) == subject.assumed
    changed = modified(subject, {"hda_save_to": ""}, NOW, if_version=1)
    assert changed.spec == msgspec.structs.replace(SPEC, hda_save_to="")
    assert changed.generation == 2
    with pytest.raises(Conflict, match="its version is 1, not 7"):
        modified(subject, {"hda_save_to": ""}, NOW, if_version=7)
    with pytest.raises(Conflict, match="no second disk"):
        modified(subject, {"hdb_save_to": "file:/b"}, NOW)
