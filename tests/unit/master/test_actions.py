import msgspec
import pytest

from master_service.core.errors import ChangedMeanwhile, Conflict
from master_service.planning.observed import Seen
from master_service.planning.outcomes import Outcome
from master_service.planning.user_actions import VERBS, asked_for, modified, outcome_of, silent, taken_away
from master_service.planning.vm import Problem, Push, Wanted
from tests.unit.master.builders import EARLIER, NOW, REPORTS, SPEC, vm
from worker_service.contract import Code


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
    with pytest.raises(ChangedMeanwhile, match="its version is 1, not 7"):
        modified(subject, {"hda_save_to": ""}, NOW, if_version=7)
    with pytest.raises(Conflict, match="no second disk"):
        modified(subject, {"hdb_save_to": "file:/b"}, NOW)


STAYS = object()
FENCED = {
    Wanted.RUNNING: {
        **dict.fromkeys(Seen, Wanted.RUNNING),
        Seen.HALTED: Wanted.HALTED,  # its guest shut it down, and all of it is saved
        Seen.SAVING: STAYS,
        Seen.FAILED_TO_SAVE: STAYS,
    },
    Wanted.PAUSED: {**dict.fromkeys(Seen, Wanted.HALTED), Seen.SAVING: STAYS, Seen.FAILED_TO_SAVE: STAYS},
    Wanted.HALTED: {
        **dict.fromkeys(Seen, STAYS),
        Seen.UNREPORTED: Wanted.HALTED,
        Seen.HALTED: Wanted.HALTED,
    },
}


NEVER_SEEN_LAST = {Seen.UNREACHABLE, Seen.ABSENT}
"""A fence judges by what its worker told last, which is neither."""


@pytest.mark.parametrize(
    ("wanted", "seen", "after"),
    [(w, s, a) for w, row in FENCED.items() for s, a in row.items() if s not in NEVER_SEEN_LAST],
)
def test_what_a_fence_takes_from_a_worker(wanted, seen, after):
    """Wanted running goes elsewhere; a disk that is on the worker and not saved yet keeps what is off where it is."""
    taken = taken_away(vm(wanted, seen, generation=3, taken=3), NOW)
    if after is STAYS:
        assert taken is None
    else:
        assert (taken.wanted, taken.worker, taken.generation, taken.asked) == (after, None, 4, 4)


def test_what_is_pinned_stays_and_what_is_to_be_destroyed_is():
    assert taken_away(vm(pin="w1"), NOW) is None
    assert taken_away(vm(Wanted.DESTROYED), NOW).destroyed_at == NOW


def test_a_worker_that_answers_is_not_off():
    with pytest.raises(Conflict, match="it is not off"):
        silent(vm().worker)
    silent(vm(seen=Seen.UNREACHABLE).worker)


WANTED = {"suspend": Wanted.PAUSED, "resume": Wanted.RUNNING, "destroy": Wanted.DESTROYED, "save_retry": Wanted.HALTED}
"""What is wanted after each verb that blocks."""
DEAD = dict.fromkeys((Seen.HALTED, Seen.CRASHED, Seen.FAILED_TO_START, Seen.FAILED_TO_SAVE), Outcome.FAILED)
COMES_TO = {
    "suspend": {**dict.fromkeys(Seen), **DEAD, Seen.SUSPENDED: Outcome.DONE},
    "resume": {**dict.fromkeys(Seen), **DEAD, Seen.RUNNING: Outcome.DONE, Seen.INSTALLING: Outcome.DONE},
    "destroy": dict.fromkeys(Seen),  # also gone is not yet destroyed: the name is not free before
    "save_retry": {**dict.fromkeys(Seen), Seen.HALTED: Outcome.DONE},
}
"""verb -> what is seen once its worker has taken it -> what it came to; None: that is not known yet."""


@pytest.mark.parametrize(("verb", "seen"), [(verb, seen) for verb in COMES_TO for seen in Seen])
def test_what_a_verb_that_blocks_came_to(verb, seen):
    assert outcome_of(vm(WANTED[verb], seen, generation=4, taken=4), verb) is COMES_TO[verb][seen]


@pytest.mark.parametrize("verb", ["suspend", "resume"])
@pytest.mark.parametrize("seen", list(REPORTS))
def test_a_report_from_before_its_worker_took_the_wish_shows_nothing_of_it(verb, seen):
    """Seen running, told to suspend, told to resume before anybody carried that out: it may be suspended by now."""
    assert outcome_of(vm(WANTED[verb], seen, generation=4, taken=3), verb) is None


@pytest.mark.parametrize("verb", ["suspend", "resume", "destroy"])
def test_a_refusal_for_good_ends_the_wait(verb):
    push = Push(asked=4, generation=4, sent_at=EARLIER, problem=Problem(code=Code.POLICY, message="no"))
    assert outcome_of(vm(WANTED[verb], generation=4, taken=3, push=push), verb) is Outcome.REFUSED
    passing = Push(asked=4, generation=4, sent_at=EARLIER, problem=Problem(code=Code.CONFLICT, message="it starts"))
    assert outcome_of(vm(WANTED[verb], generation=4, taken=3, push=passing), verb) is None
    older = Push(asked=3, generation=3, sent_at=EARLIER, problem=Problem(code=Code.POLICY, message="no"))
    assert outcome_of(vm(WANTED[verb], generation=4, taken=3, push=older), verb) is None


@pytest.mark.parametrize("verb", WANTED)
@pytest.mark.parametrize("wanted", list(Wanted))
def test_another_wish_ends_the_wait(verb, wanted):
    overtaken = wanted is Wanted.DESTROYED if verb == "save_retry" else wanted is not WANTED[verb]
    other = outcome_of(vm(wanted, Seen.STARTING, generation=4, taken=4), verb)
    assert (other is Outcome.OVERTAKEN) is (overtaken and verb != "destroy")
    gone = outcome_of(vm(Wanted.DESTROYED, Seen.GONE, destroyed_at=NOW), verb)
    assert gone is (Outcome.DONE if verb == "destroy" else Outcome.OVERTAKEN)
