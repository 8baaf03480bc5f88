"""Actions of users on a VM: the desired state after a verb, a modification or a fence, and the outcome of a verb."""

import dataclasses

import msgspec
import pytest

from master_service.core.errors import ChangedMeanwhile, Conflict, Refused
from master_service.planning.actions import console_of, lacks_of
from master_service.planning.observed import ObservedStatus
from master_service.planning.outcomes import Outcome
from master_service.planning.user_actions import (
    VERBS,
    apply_action,
    apply_modify,
    evacuate,
    outcome_of,
    require_can,
    require_unreachable,
)
from master_service.planning.vm import DesiredStatus, DispatchState, VMProblem
from tests.unit.master.builders import CAPACITY, EARLIER, NOW, REPORTS, SPEC, vm
from worker_service.contract import Capabilities, Code


@pytest.mark.parametrize(
    ("verb", "desired", "observed", "after"),
    [
        ("start", DesiredStatus.HALTED, ObservedStatus.HALTED, DesiredStatus.RUNNING),
        ("start", DesiredStatus.RUNNING, ObservedStatus.FAILED_TO_START, DesiredStatus.RUNNING),
        ("start", DesiredStatus.PAUSED, ObservedStatus.SUSPENDED, DesiredStatus.RUNNING),
        ("suspend", DesiredStatus.RUNNING, ObservedStatus.RUNNING, DesiredStatus.PAUSED),
        ("resume", DesiredStatus.PAUSED, ObservedStatus.SUSPENDED, DesiredStatus.RUNNING),
        ("shutdown", DesiredStatus.RUNNING, ObservedStatus.RUNNING, DesiredStatus.HALTED),
        ("shutdown", DesiredStatus.HALTED, ObservedStatus.RUNNING, DesiredStatus.HALTED),
        ("destroy", DesiredStatus.RUNNING, ObservedStatus.STARTING, DesiredStatus.DESTROYED),
    ],
)
def test_change_raises_generation(verb, desired, observed, after):
    assumed = apply_action(vm(desired, observed, generation=3, taken=3), verb, NOW)
    assert (assumed.status, assumed.generation, assumed.user_generation, assumed.changed_at) == (after, 4, 4, NOW)


@pytest.mark.parametrize(
    ("verb", "desired", "observed"),
    [
        ("start", DesiredStatus.RUNNING, ObservedStatus.RUNNING),
        ("start", DesiredStatus.RUNNING, ObservedStatus.STARTING),
        ("suspend", DesiredStatus.PAUSED, ObservedStatus.SUSPENDED),
        ("resume", DesiredStatus.RUNNING, ObservedStatus.RUNNING),
        ("shutdown", DesiredStatus.HALTED, ObservedStatus.HALTED),
        ("shutdown", DesiredStatus.HALTED, ObservedStatus.SAVING),
        ("destroy", DesiredStatus.DESTROYED, ObservedStatus.RUNNING),
    ],
)
def test_repeated_verb_changes_nothing(verb, desired, observed):
    subject = vm(desired, observed)
    assert apply_action(subject, verb, NOW) == subject.desired


@pytest.mark.parametrize("verb", ["suspend", "resume"])
@pytest.mark.parametrize("observed", [ObservedStatus.HALTED, ObservedStatus.FAILED_TO_START, ObservedStatus.SAVING])
def test_halted_vm_is_neither_suspended_nor_resumed(verb, observed):
    with pytest.raises(Conflict, match="is off"):
        apply_action(vm(DesiredStatus.HALTED, observed), verb, NOW)


@pytest.mark.parametrize("verb", sorted(set(VERBS) - {"destroy"}))
def test_vm_being_destroyed_stays_so(verb):
    with pytest.raises(Conflict, match="being destroyed"):
        apply_action(vm(DesiredStatus.DESTROYED), verb, NOW)


def test_change_gets_a_generation_above_the_workers():
    assert apply_action(vm(generation=2, taken=9), "shutdown", NOW).generation == 10


def test_modify_changes_settings_and_checks_the_version():
    subject = vm()
    assert apply_modify(subject, {"hda_save_to": str(SPEC.hda_save_to)}, NOW) == subject.desired
    changed = apply_modify(subject, {"hda_save_to": ""}, NOW, if_version=1)
    assert changed.spec == msgspec.structs.replace(SPEC, hda_save_to="")
    assert changed.generation == 2
    with pytest.raises(ChangedMeanwhile, match="its version is 1, not 7"):
        apply_modify(subject, {"hda_save_to": ""}, NOW, if_version=7)
    with pytest.raises(Conflict, match="no second disk"):
        apply_modify(subject, {"hdb_save_to": "file:/b"}, NOW)


STAYS = object()
FENCED = {
    DesiredStatus.RUNNING: {
        **dict.fromkeys(ObservedStatus, DesiredStatus.RUNNING),
        ObservedStatus.HALTED: DesiredStatus.HALTED,  # its guest shut it down, and all of it is saved
        ObservedStatus.SAVING: STAYS,
        ObservedStatus.FAILED_TO_SAVE: STAYS,
        ObservedStatus.MIGRATED: STAYS,  # it may run where it is now
    },
    DesiredStatus.PAUSED: {
        **dict.fromkeys(ObservedStatus, DesiredStatus.HALTED),
        ObservedStatus.MIGRATED: STAYS,
        ObservedStatus.SAVING: STAYS,
        ObservedStatus.FAILED_TO_SAVE: STAYS,
    },
    DesiredStatus.HALTED: {
        **dict.fromkeys(ObservedStatus, STAYS),
        ObservedStatus.UNREPORTED: DesiredStatus.HALTED,
        ObservedStatus.HALTED: DesiredStatus.HALTED,
    },
}


NEVER_OBSERVED_LAST = {ObservedStatus.UNREACHABLE, ObservedStatus.ABSENT}
"""A fence judges by the last report of the worker, which is neither."""


@pytest.mark.parametrize(
    ("desired", "observed", "after"),
    [(w, s, a) for w, row in FENCED.items() for s, a in row.items() if s not in NEVER_OBSERVED_LAST],
)
def test_fence_takes_vms_from_a_worker(desired, observed, after):
    """A VM that should run moves. An unsaved disk on the worker keeps a halted VM there."""
    taken = evacuate(vm(desired, observed, generation=3, taken=3), NOW)
    if after is STAYS:
        assert taken is None
    else:
        assert (taken.status, taken.worker, taken.generation, taken.user_generation) == (after, None, 4, 4)


def test_pinned_vm_stays_at_a_fence_unless_destroyed():
    assert evacuate(vm(pin="w1"), NOW) is None
    assert evacuate(vm(DesiredStatus.DESTROYED), NOW).destroyed_at == NOW


def test_worker_that_answers_is_not_off():
    with pytest.raises(Conflict, match="it is not off"):
        require_unreachable(vm().worker)
    require_unreachable(vm(observed=ObservedStatus.UNREACHABLE).worker)


DESIRED = {
    "suspend": DesiredStatus.PAUSED,
    "resume": DesiredStatus.RUNNING,
    "destroy": DesiredStatus.DESTROYED,
    "save_retry": DesiredStatus.HALTED,
}
"""The desired status after each blocking verb."""
DEAD = dict.fromkeys(
    (ObservedStatus.HALTED, ObservedStatus.CRASHED, ObservedStatus.FAILED_TO_START, ObservedStatus.FAILED_TO_SAVE),
    Outcome.FAILED,
)
COMES_TO = {
    "suspend": {**dict.fromkeys(ObservedStatus), **DEAD, ObservedStatus.SUSPENDED: Outcome.DONE},
    "resume": {
        **dict.fromkeys(ObservedStatus),
        **DEAD,
        ObservedStatus.RUNNING: Outcome.DONE,
        ObservedStatus.INSTALLING: Outcome.DONE,
    },
    "destroy": dict.fromkeys(ObservedStatus),  # also gone is not yet destroyed: the name is not free before
    "save_retry": {**dict.fromkeys(ObservedStatus), ObservedStatus.HALTED: Outcome.DONE},
}
"""verb -> observed status after its worker accepted it -> outcome, or None while it is unknown."""


@pytest.mark.parametrize(("verb", "observed"), [(verb, observed) for verb in COMES_TO for observed in ObservedStatus])
def test_blocking_verb_outcome_follows_from_observed(verb, observed):
    assert outcome_of(vm(DESIRED[verb], observed, generation=4, taken=4), verb) is COMES_TO[verb][observed]


@pytest.mark.parametrize("verb", ["suspend", "resume"])
@pytest.mark.parametrize("observed", list(REPORTS))
def test_report_from_before_acceptance_shows_no_effect(verb, observed):
    """Reported running, then suspended and resumed before the worker acted: it may be suspended by now."""
    assert outcome_of(vm(DESIRED[verb], observed, generation=4, taken=3), verb) is None


@pytest.mark.parametrize("verb", ["suspend", "resume", "destroy"])
def test_refusal_for_good_ends_the_wait(verb):
    push = DispatchState(
        user_generation=4, generation=4, sent_at=EARLIER, problem=VMProblem(code=Code.POLICY, message="no")
    )
    assert outcome_of(vm(DESIRED[verb], generation=4, taken=3, dispatch=push), verb) is Outcome.REFUSED
    passing = DispatchState(
        user_generation=4, generation=4, sent_at=EARLIER, problem=VMProblem(code=Code.CONFLICT, message="it starts")
    )
    assert outcome_of(vm(DESIRED[verb], generation=4, taken=3, dispatch=passing), verb) is None
    older = DispatchState(
        user_generation=3, generation=3, sent_at=EARLIER, problem=VMProblem(code=Code.POLICY, message="no")
    )
    assert outcome_of(vm(DESIRED[verb], generation=4, taken=3, dispatch=older), verb) is None


@pytest.mark.parametrize("verb", DESIRED)
@pytest.mark.parametrize("desired", list(DesiredStatus))
def test_newer_change_ends_the_wait(verb, desired):
    superseded = desired is DesiredStatus.DESTROYED if verb == "save_retry" else desired is not DESIRED[verb]
    other = outcome_of(vm(desired, ObservedStatus.STARTING, generation=4, taken=4), verb)
    assert (other is Outcome.SUPERSEDED) is (superseded and verb != "destroy")
    gone = outcome_of(vm(DesiredStatus.DESTROYED, ObservedStatus.GONE, destroyed_at=NOW), verb)
    assert gone is (Outcome.DONE if verb == "destroy" else Outcome.SUPERSEDED)


def test_destroyed_vm_ends_the_wait_for_destroy():
    assert outcome_of(vm(DesiredStatus.DESTROYED, destroyed_at=NOW), "destroy") is Outcome.DONE


def test_labels_change_without_a_command():
    changed = apply_modify(vm(), {}, NOW, labels={"role": "web"})
    assert (changed.labels, changed.generation, changed.changed_at) == ({"role": "web"}, vm().desired.generation, NOW)


def test_protection_needs_no_command_and_refuses_a_destroy():
    guarded = dataclasses.replace(vm(), desired=apply_modify(vm(), {}, NOW, protected=True))
    assert (guarded.desired.protected, guarded.desired.generation, guarded.desired.changed_at) == (True, 1, NOW)
    assert apply_modify(guarded, {}, NOW, protected=True) == guarded.desired
    assert apply_modify(guarded, {}, NOW) == guarded.desired
    with pytest.raises(Conflict, match="web01 is protected") as refused:
        apply_action(guarded, "destroy", NOW)
    assert refused.value.hint == "Lift that first: saltern unprotect web01."
    assert apply_action(guarded, "shutdown", NOW).status is DesiredStatus.HALTED
    freed = dataclasses.replace(vm(), desired=apply_modify(guarded, {}, NOW, protected=False))
    assert apply_action(freed, "destroy", NOW).status is DesiredStatus.DESTROYED
    # A destroy that was requested before goes on.
    ending = vm(DesiredStatus.DESTROYED, protected=True)
    assert apply_action(ending, "destroy", NOW) == ending.desired


def on_hypervisor(subject, **lacks):
    """The VM on a worker whose hypervisor lacks something."""
    drivers = {"kvm": Capabilities(**lacks)}
    return dataclasses.replace(
        subject,
        worker=dataclasses.replace(subject.worker, capacity=msgspec.structs.replace(CAPACITY, drivers=drivers)),
    )


CD = {"cd_image": "file:///c"}
NO_CHANGE = "web01 on w1: kvm cannot change the CD of a running VM. Shut it down, change it, and start the VM again."
NO_DRIVE = "web01: w1 offers no CD drive on kvm: leave out cd_image."
STARTS = DispatchState(user_generation=1, generation=1, verb="start", sent_at=EARLIER)


@pytest.mark.parametrize(
    ("settings", "subject", "lacks", "why"),
    [
        (CD, vm(), {"cd_change": False}, NO_CHANGE),
        (CD, vm(observed=ObservedStatus.STARTING), {"cd_change": False}, NO_CHANGE),
        (CD, vm(observed=ObservedStatus.CRASHED, taken=0, dispatch=STARTS), {"cd_change": False}, NO_CHANGE),
        (CD, vm(observed=ObservedStatus.CRASHED), {"cd_change": False}, ""),
        (CD, vm(DesiredStatus.HALTED, ObservedStatus.HALTED), {"cd_change": False}, ""),
        (CD, vm(observed=ObservedStatus.UNREPORTED, taken=0), {"cd_change": False}, ""),
        (CD, vm(DesiredStatus.HALTED, ObservedStatus.HALTED), {"cd": False}, NO_DRIVE),
        (CD, vm(), {"suspend": False}, ""),
        ({"cd_image": ""}, vm(), {"cd": False, "cd_change": False}, ""),  # there is none
        ({"cd_image": ""}, vm(spec=msgspec.structs.replace(SPEC, **CD)), {"cd": False, "cd_change": False}, NO_CHANGE),
        ({"hda_save_to": ""}, vm(), {"cd": False, "cd_change": False}, ""),
    ],
)
def test_cd_that_a_hypervisor_cannot_change(settings, subject, lacks, why):
    if not why:
        assert apply_modify(on_hypervisor(subject, **lacks), settings, NOW)
        return
    with pytest.raises(Refused) as refused:
        apply_modify(on_hypervisor(subject, **lacks), settings, NOW)
    assert (str(refused.value), refused.value.code) == (why, Code.UNSUPPORTED)
    assert apply_modify(subject, settings, NOW).spec.cd_image == settings["cd_image"]  # of an older worker


@pytest.mark.parametrize(
    ("verb", "subject", "can"),
    [
        ("suspend", vm(), False),
        ("resume", vm(), False),
        ("resume", vm(observed=ObservedStatus.SUSPENDED), True),  # somebody else paused it
    ],
)
def test_pause_that_a_hypervisor_cannot_make(verb, subject, can):
    assert apply_action(on_hypervisor(subject), verb, NOW)
    assert apply_action(subject, verb, NOW)
    if can:
        assert apply_action(on_hypervisor(subject, suspend=False), verb, NOW)
        return
    with pytest.raises(Refused) as refused:
        apply_action(on_hypervisor(subject, suspend=False), verb, NOW)
    why = "web01 on w1: kvm cannot pause a VM in memory. Shut it down instead."
    assert (str(refused.value), refused.value.code) == (why, Code.UNSUPPORTED)


def test_screen_that_a_hypervisor_does_not_show():
    require_can(vm(), "screen")
    require_can(on_hypervisor(vm(), console="screenshot"), "screen")
    with pytest.raises(Refused, match="web01 on w1: kvm shows no screen"):
        require_can(on_hypervisor(vm(), console=""), "screen")


def test_lacks_of_a_hypervisor_have_the_names_of_its_table():
    assert lacks_of(on_hypervisor(vm())) == lacks_of(vm()) == []
    assert lacks_of(on_hypervisor(vm(), suspend=False, console="", version="")) == ["console", "suspend"]


@pytest.mark.parametrize(
    ("subject", "kind"),
    [
        (on_hypervisor(vm()), "vnc"),
        (on_hypervisor(vm(), console="screenshot"), "screenshot"),
        (on_hypervisor(vm(observed=ObservedStatus.SUSPENDED), console="screenshot"), "screenshot"),
        (on_hypervisor(vm(observed=ObservedStatus.STARTING)), ""),
        (on_hypervisor(vm(DesiredStatus.HALTED, ObservedStatus.HALTED)), ""),
        (vm(), ""),  # an older worker
    ],
)
def test_kind_of_a_screen_is_known_while_a_vm_is_on(subject, kind):
    assert console_of(subject) == kind
    if kind:
        reported = msgspec.structs.replace(subject.observed.status, console="vnc")
        assert (
            console_of(dataclasses.replace(subject, observed=dataclasses.replace(subject.observed, status=reported)))
            == "vnc"
        )
