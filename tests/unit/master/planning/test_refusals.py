"""Requests that are refused leave nothing behind that fires later: every verb, in every state."""

import dataclasses
from datetime import timedelta

import msgspec
import pytest

from master_service.core.errors import Conflict
from master_service.planning.decision import DecisionKind
from master_service.planning.observed import ObservedStatus, awaits_effect
from master_service.planning.planner import decide
from master_service.planning.status import MasterStatus, display_status, master_status
from master_service.planning.user_actions import (
    VERBS,
    apply_action,
    apply_modify,
    can_confirm_soon,
    pending_settings,
    take_back,
)
from master_service.planning.vm import DesiredStatus, DispatchState, VMProblem
from tests.unit.master.builders import NOW, REPORTS, SETTINGS, SPEC, vm
from worker_service.contract import KEEP_FEATURE, Code, DiskReport

O = ObservedStatus  # noqa: E741 - the key of a large table
OFF = {O.SAVING, O.HALTED, O.CRASHED, O.FAILED_TO_START, O.FAILED_TO_SAVE, O.GONE}
REFUSED = {
    "start": {O.FAILED_TO_SAVE},
    "suspend": OFF,
    "resume": OFF,
    "shutdown": set(),
    "destroy": set(),
}
"""verb -> reports after which it is refused at once. Suspend and resume are refused for each VM that shall be off."""
PLACES = (*REPORTS, O.UNREPORTED, O.GONE)
CELLS = [(verb, desired, observed) for verb in VERBS for desired in DesiredStatus for observed in PLACES]


def is_refused(verb, desired, observed):
    if desired is DesiredStatus.DESTROYED:
        return verb != "destroy"
    return observed in REFUSED[verb] or (verb in ("suspend", "resume") and desired is DesiredStatus.HALTED)


@pytest.mark.parametrize(("verb", "desired", "observed"), CELLS)
def test_verb_is_refused_at_once_or_carried_out(verb, desired, observed):
    subject = vm(desired, observed, generation=3, taken=3)
    if is_refused(verb, desired, observed):
        with pytest.raises(Conflict):
            apply_action(subject, verb, NOW)
        return
    after = dataclasses.replace(subject, desired=apply_action(subject, verb, NOW))
    if after == subject:
        return
    made = decide(after, NOW, SETTINGS)
    # Something is sent or awaited, or the desired state follows: no request lies there until something else happens.
    passive = (DecisionKind.NOTHING, DecisionKind.REPORT)
    assert made.kind not in passive or (verb, observed) in SETTLED_AT_ONCE, (made, after.desired)


SETTLED_AT_ONCE = {
    # A shutdown of what is off for good has nothing to do.
    ("shutdown", O.UNREPORTED),
    ("shutdown", O.FAILED_TO_START),
    ("shutdown", O.GONE),
    # A pause waits for the start that failed; a user has to start it again.
    ("suspend", O.UNREPORTED),
}


def refused_for_good(desired, observed, *, verb="start", delivered=False, code=Code.POLICY):
    dispatch = DispatchState(
        user_generation=3, generation=3, verb=verb, sent_at=NOW, attempts=1, problem=VMProblem(code=code, message="no")
    )
    generation = 0 if delivered else 3
    return vm(desired, observed, generation=3, taken=2, dispatch=dispatch, status_generation=generation)


@pytest.mark.parametrize(
    ("observed", "kind"),
    [
        (O.HALTED, DecisionKind.GIVE_UP),
        (O.CRASHED, DecisionKind.GIVE_UP),
        (O.FAILED_TO_START, DecisionKind.GIVE_UP),
        (O.GONE, DecisionKind.REPORT),
        # A VM that never ran stays `failed`, with the refusal as its reason.
        (O.UNREPORTED, DecisionKind.REPORT),
    ],
)
def test_refused_start_of_an_ended_vm_is_given_up(observed, kind):
    made = decide(refused_for_good(DesiredStatus.RUNNING, observed), NOW, SETTINGS)
    assert made.kind is kind
    assert "refuses to start it: no" in made.reason


def test_start_that_is_only_refused_for_now_stays_desired():
    made = decide(refused_for_good(DesiredStatus.RUNNING, O.HALTED, code=Code.NO_ROOM), NOW, SETTINGS)
    assert made.kind is DecisionKind.SEND


def test_refused_restart_of_a_crashed_vm_is_reported():
    """Its user wants it to run, and did not ask for this start."""
    made = decide(refused_for_good(DesiredStatus.RUNNING, O.CRASHED, delivered=True), NOW, SETTINGS)
    assert made.kind is DecisionKind.REPORT


def given_up(observed):
    """A VM after its start was given up."""
    subject = refused_for_good(DesiredStatus.RUNNING, observed)
    desired = dataclasses.replace(subject.desired, status=DesiredStatus.HALTED, status_generation=0)
    return dataclasses.replace(subject, desired=desired)


@pytest.mark.parametrize("observed", [O.HALTED, O.CRASHED, O.FAILED_TO_START])
def test_given_up_start_sends_nothing_later(observed):
    """No shutdown either: that would end the kept disks of a crashed VM."""
    subject = given_up(observed)
    made = decide(subject, NOW, SETTINGS)
    assert (made.kind, made.reason) == (DecisionKind.NOTHING, "w1 refused to start it: no")
    assert display_status(subject, NOW, SETTINGS).refused
    changed = dataclasses.replace(subject, desired=apply_modify(subject, {"hda_save_to": "file:/other"}, NOW))
    made = decide(changed, NOW, SETTINGS)
    assert made.command is None or made.command.verb == "modify"


@pytest.mark.parametrize("delivered", [True, False])
def test_start_waits_for_a_save_and_ends_with_its_failure(delivered):
    saving = vm(DesiredStatus.RUNNING, O.SAVING, generation=5, taken=5 if delivered else 4)
    assert decide(saving, NOW, SETTINGS).kind is (DecisionKind.FOLLOW if delivered else DecisionKind.WAIT)
    unsaved = vm(DesiredStatus.RUNNING, O.FAILED_TO_SAVE, generation=5, taken=5 if delivered else 4)
    made = decide(unsaved, NOW, SETTINGS)
    assert (made.kind, made.command) == (DecisionKind.FOLLOW, None)


def test_change_in_flight_does_not_start_a_guest_that_shut_down():
    """The modification raised the generation, but nobody asked for a start since the guest's own shutdown."""
    subject = vm(DesiredStatus.RUNNING, O.RUNNING, generation=4, taken=4)
    changed = apply_modify(subject, {"hda_save_to": "file:/other"}, NOW)
    for observed in (O.SAVING, O.HALTED):
        halted = dataclasses.replace(vm(DesiredStatus.RUNNING, observed, generation=4, taken=4), desired=changed)
        assert decide(halted, NOW, SETTINGS).kind is DecisionKind.FOLLOW


@pytest.mark.parametrize(("policy", "observed"), [("always", O.HALTED), ("on_failure", O.CRASHED)])
def test_restart_in_flight_is_not_sent_twice(policy, observed):
    """The pusher sent it with a generation of its own: its user asked for nothing since."""
    spec = msgspec.structs.replace(SPEC, run_policy=policy)
    sent = DispatchState(
        user_generation=1, generation=5, verb="start", sent_at=NOW, attempts=1, next_at=NOW + timedelta(seconds=9)
    )
    fields = {"spec": spec, "dispatch": sent, "user_generation": 1, "status_generation": 1}
    subject = vm(DesiredStatus.RUNNING, observed, generation=5, taken=4, **fields)
    assert decide(subject, NOW, SETTINGS).kind is DecisionKind.WAIT
    assert master_status(subject) is MasterStatus.PENDING
    assert apply_action(subject, "start", NOW) == subject.desired


def with_capacity(subject, *features):
    capacity = msgspec.structs.replace(subject.worker.capacity, features=features)
    return dataclasses.replace(subject, worker=dataclasses.replace(subject.worker, capacity=capacity))


def test_shutdown_waits_until_the_worker_knows_the_target():
    subject = vm(DesiredStatus.RUNNING, O.RUNNING, generation=4, taken=4)
    for verb, settings in (("modify", {"hda_save_to": "file:/other"}), ("shutdown", {})):
        edited = apply_modify(subject, settings, NOW) if settings else apply_action(subject, verb, NOW)
        subject = dataclasses.replace(subject, desired=edited)
    made = decide(subject, NOW, SETTINGS)
    assert (made.kind, made.command.verb) == (DecisionKind.SEND, "modify")


def test_older_worker_gets_no_shutdown_that_discards():
    spec = msgspec.structs.replace(SPEC, hda_save_to=None)
    subject = vm(DesiredStatus.HALTED, O.RUNNING, generation=5, taken=4, spec=spec)
    made = decide(subject, NOW, SETTINGS)
    assert made.kind is DecisionKind.REPORT
    assert "would discard hda when it halts" in made.reason
    # A newer one first gets the target that its own report does not have.
    made = decide(with_capacity(subject, KEEP_FEATURE), NOW, SETTINGS)
    assert made.command.verb == "modify"


def kept(spec, taken=5):
    subject = with_capacity(vm(DesiredStatus.HALTED, O.HALTED, generation=5, taken=taken, spec=spec), KEEP_FEATURE)
    report = msgspec.structs.replace(subject.observed.status, disks={"hda": DiskReport(kept="/d/hda.qcow2")}, spec=SPEC)
    return dataclasses.replace(subject, observed=dataclasses.replace(subject.observed, status=report))


@pytest.mark.parametrize(
    ("spec", "taken", "verb"),
    [
        (SPEC, 5, None),
        (SPEC, 4, "shutdown"),
        (msgspec.structs.replace(SPEC, hda_save_to="file:/other"), 5, "modify"),
        (msgspec.structs.replace(SPEC, hda_save_to="file:/other"), 4, "modify"),
    ],
)
def test_kept_disk_gets_its_target_before_a_shutdown_ends_it(spec, taken, verb):
    made = decide(kept(spec, taken), NOW, SETTINGS)
    assert (made.command.verb if made.command else None) == verb


def accepted_modify(generation, user_generation):
    return DispatchState(
        user_generation=user_generation, generation=generation, verb="modify", sent_at=NOW, attempts=1,
        accepted=generation,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("status_generation", "verb"),
    [(5, "shutdown"), (0, None)],
    ids=["shutdown-requested", "change-requested"],
)
def test_shutdown_follows_the_target_only_if_requested(status_generation, verb):
    """The worker has accepted the target, and reported that."""
    subject = kept(msgspec.structs.replace(SPEC, hda_save_to="file:/other"), taken=5)
    desired = dataclasses.replace(subject.desired, status_generation=status_generation)
    subject = dataclasses.replace(subject, desired=desired, dispatch=accepted_modify(5, 5))
    made = decide(subject, NOW, SETTINGS)
    assert (made.command.verb if made.command else None) == verb


def test_shutdown_of_a_running_vm_follows_its_target():
    spec = msgspec.structs.replace(SPEC, hda_save_to="file:/other")
    subject = vm(DesiredStatus.HALTED, O.RUNNING, generation=5, taken=4, spec=spec, dispatch=accepted_modify(5, 5))
    stale = dataclasses.replace(subject.observed, status=msgspec.structs.replace(subject.observed.status, spec=SPEC))
    made = decide(dataclasses.replace(subject, observed=stale), NOW, SETTINGS)
    assert (made.command.verb, made.command.generation) == ("shutdown", 6)


def test_shutdown_of_kept_disks_with_a_target_is_a_new_request():
    assert apply_action(kept(SPEC), "shutdown", NOW).generation == 6
    stays = kept(msgspec.structs.replace(SPEC, hda_save_to=None))
    assert apply_action(stays, "shutdown", NOW) == stays.desired


FROM_IMAGE = {
    O.UNREPORTED: None, O.STARTING: "only a VM that is off", O.INSTALLING: "only a VM that is off",
    O.RUNNING: "only a VM that is off", O.SUSPENDED: "only a VM that is off", O.SAVING: "keeps the disks",
    O.HALTED: None, O.CRASHED: "keeps the disks", O.FAILED_TO_START: None,
    O.FAILED_TO_SAVE: "could not be saved", O.GONE: None,
}  # fmt: skip


@pytest.mark.parametrize(("observed", "why"), FROM_IMAGE.items())
def test_start_from_the_image_drops_no_disk(observed, why):
    subject = vm(DesiredStatus.HALTED, observed, generation=3, taken=3)
    if why:
        with pytest.raises(Conflict, match=why):
            apply_action(subject, "start", NOW, from_image=True)
        return
    assert apply_action(subject, "start", NOW, from_image=True).from_image
    assert not apply_action(dataclasses.replace(subject), "start", NOW).from_image


def test_other_verbs_keep_the_choice_of_the_start():
    subject = vm(DesiredStatus.RUNNING, O.RUNNING, from_image=True)
    assert apply_action(subject, "shutdown", NOW).from_image
    assert apply_modify(subject, {"hda_save_to": "keep"}, NOW).spec.hda_save_to is None


CHANGE = {"hda_save_to": "file:/other", "cd_image": "file:/cd.iso"}


@pytest.mark.parametrize(
    ("desired", "observed", "after"),
    [
        (DesiredStatus.RUNNING, O.RUNNING, SPEC.hda_save_to),
        # A shutdown waits for the change: the disk stays, because its user wanted another end than the former one.
        (DesiredStatus.HALTED, O.RUNNING, None),
        # The halt has begun, with the former target.
        (DesiredStatus.HALTED, O.SAVING, SPEC.hda_save_to),
    ],
)
def test_refused_change_is_taken_back(desired, observed, after):
    subject = vm(desired, observed, generation=4, taken=4)
    changed = dataclasses.replace(subject, desired=apply_modify(subject, CHANGE, NOW))
    taken = take_back(changed)
    assert (taken.spec.hda_save_to, taken.generation, taken.user_generation, taken.version) == (after, 6, 5, 2)
    assert taken.spec.cd_image == (SPEC.cd_image if observed is O.RUNNING else CHANGE["cd_image"])


def test_nothing_is_taken_back_where_nothing_differs():
    subject = vm()
    assert take_back(subject) == subject.desired
    unknown = vm(DesiredStatus.RUNNING, O.UNREPORTED)
    assert take_back(unknown) == unknown.desired


@pytest.mark.parametrize(
    ("subject", "pending"),
    [
        (vm(DesiredStatus.RUNNING, O.RUNNING), ["hda_save_to", "cd_image"]),
        (vm(DesiredStatus.RUNNING, O.STARTING), ["hda_save_to"]),
        (vm(DesiredStatus.RUNNING, O.UNREACHABLE), ["hda_save_to", "cd_image"]),
        (vm(DesiredStatus.HALTED, O.HALTED), []),
        (vm(DesiredStatus.HALTED, O.CRASHED), ["hda_save_to"]),
    ],
)
def test_change_is_pending_until_the_worker_accepts_it(subject, pending):
    changed = dataclasses.replace(subject, desired=apply_modify(subject, CHANGE, NOW))
    assert pending_settings(changed) == pending
    unreachable = subject.worker.unreachable_since is not None
    assert can_confirm_soon(changed) is (bool(pending) and not unreachable)
    accepted = DispatchState(accepted=changed.desired.generation)
    assert pending_settings(dataclasses.replace(changed, dispatch=accepted)) == []
    destroyed = dataclasses.replace(changed.desired, status=DesiredStatus.DESTROYED)
    assert pending_settings(dataclasses.replace(changed, desired=destroyed)) == []


@pytest.mark.parametrize(("verb", "for_good"), [("modify", True), ("start", False)])
def test_change_that_comes_too_late_is_refused_for_good(verb, for_good):
    late = VMProblem(code=Code.CONFLICT, message="it is saving")
    assert DispatchState(verb=verb, problem=late).refused_for_good is for_good


@pytest.mark.parametrize(
    ("subject", "awaited"),
    [
        (vm(DesiredStatus.HALTED, O.HALTED, generation=5, taken=5), False),
        (vm(DesiredStatus.HALTED, O.HALTED, generation=5, taken=4), True),
        (vm(DesiredStatus.HALTED, O.HALTED, generation=5, taken=4, status_generation=4), False),
        (vm(DesiredStatus.HALTED, O.HALTED, generation=6, taken=5, dispatch=DispatchState(accepted=6)), True),
        (vm(DesiredStatus.HALTED, O.UNREPORTED, generation=5), False),
    ],
)
def test_effect_is_awaited_until_a_report_is_newer(subject, awaited):
    assert awaits_effect(subject) is awaited


def test_accepted_shutdown_of_kept_disks_waits_for_its_report():
    subject = dataclasses.replace(kept(SPEC, taken=5), dispatch=accepted_modify(6, 6))
    made = decide(subject, NOW, SETTINGS)
    assert (made.kind, made.reason) == (
        DecisionKind.WAIT, "w1 accepted the last command and has not reported its effect yet"
    )  # fmt: skip
