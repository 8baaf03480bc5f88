"""Sequences of requests, reports and refusals after which a disk would be lost, or not be found."""

import dataclasses

import msgspec
import pytest

from master_service.core.errors import Conflict
from master_service.planning.actions import boot_of, describe_end_of
from master_service.planning.disk_ends import describe_origin, starts_from_image
from master_service.planning.dry_run import plan_request, question_about_changes
from master_service.planning.observed import ObservedStatus, awaits_effect
from master_service.planning.planner import decide
from master_service.planning.saves import SavedDisk
from master_service.planning.user_actions import apply_action, apply_modify, evacuate, pending_settings, take_back
from master_service.planning.vm import DesiredStatus, DispatchState, VMProblem
from tests.unit.master.builders import NOW, SETTINGS, SPEC, vm
from worker_service.contract import KEEP_FEATURE, ORIGIN_FEATURE, Code, DiskReport

O = ObservedStatus  # noqa: E741 - short, as in a table

SAVE = SavedDisk("http://store/web.qcow2", "a" * 64)
LOCAL = SavedDisk("file:/saved/web.qcow2", "a" * 64)
KEPT = {"hda": DiskReport(kept="/d/hda.qcow2")}


def spec_with(**changes):
    return msgspec.structs.replace(SPEC, **changes)


def observing(subject, *, saves=None, **report):
    """The VM with other fields in its last report, or with other saves."""
    changed = msgspec.structs.replace(subject.observed.status, **report)
    known = subject.observed.saves if saves is None else saves
    return dataclasses.replace(subject, observed=dataclasses.replace(subject.observed, status=changed, saves=known))


def with_features(subject, *features):
    capacity = msgspec.structs.replace(subject.worker.capacity, features=features)
    return dataclasses.replace(subject, worker=dataclasses.replace(subject.worker, capacity=capacity))


def edited(subject, *edits):
    for edit in edits:
        subject = dataclasses.replace(subject, desired=edit(subject))
    return subject


def modify(target):
    return lambda subject: apply_modify(subject, {"hda_save_to": target}, NOW)


def saved():
    """A halted VM whose worker has saved its disk."""
    return observing(vm(DesiredStatus.HALTED, O.HALTED, generation=4, taken=4), saves={"hda": SAVE})


def start_from(*, image):
    return lambda subject: apply_action(subject, "start", NOW, from_image=image)


def shutdown(subject):
    return apply_action(subject, "shutdown", NOW)


@pytest.mark.parametrize("observed", [O.CRASHED, O.HALTED])
@pytest.mark.parametrize(
    "edits", [(modify("file:/etc/x"), shutdown), (shutdown, modify("file:/etc/x"))], ids=["m", "s"]
)
def test_kept_disk_whose_target_is_refused_is_not_discarded(observed, edits):
    """Its user requested a save and a shutdown. The worker refuses the place, and the former end was to discard it."""
    spec = spec_with(hda_save_to="")
    subject = vm(DesiredStatus.HALTED, observed, generation=4, taken=4, spec=spec, status_generation=0)
    subject = edited(with_features(observing(subject, spec=spec, disks=KEPT), KEEP_FEATURE), *edits)
    made = decide(subject, NOW, SETTINGS)
    assert made.command.verb == "modify"
    taken = edited(subject, take_back)
    assert taken.desired.spec.hda_save_to is None


def test_refused_change_of_kept_disks_alone_is_taken_back():
    spec = spec_with(hda_save_to="")
    subject = vm(DesiredStatus.HALTED, O.HALTED, generation=4, taken=4, spec=spec)
    subject = edited(observing(subject, spec=spec, disks=KEPT), modify("file:/etc/x"), take_back)
    assert subject.desired.spec.hda_save_to == ""


@pytest.mark.parametrize("desired", [DesiredStatus.RUNNING, DesiredStatus.HALTED])
def test_change_of_a_vm_that_failed_to_start_is_not_awaited(desired):
    """Its worker has no disks of it: the next start carries the change."""
    subject = vm(desired, O.FAILED_TO_START, generation=4, taken=4)
    assert pending_settings(edited(subject, modify("file:/other"))) == []


@pytest.mark.parametrize(
    ("save", "from_image", "moves"), [(SAVE, False, True), (LOCAL, False, False), (LOCAL, True, True)]
)
def test_vm_does_not_leave_the_worker_with_its_last_save(save, from_image, moves):
    """Another worker does not have that file, and the VM would stay there."""
    full = DispatchState(
        user_generation=5, generation=5, verb="start", sent_at=NOW, attempts=1, next_at=NOW, rejected_by=("w1",),
        problem=VMProblem(code=Code.NO_ROOM, message="full"),
    )  # fmt: skip
    subject = vm(DesiredStatus.RUNNING, O.HALTED, generation=5, taken=4, dispatch=full, from_image=from_image)
    made = decide(observing(subject, saves={"hda": save}), NOW, SETTINGS)
    assert made.command.elsewhere is moves


@pytest.mark.parametrize("missed_polls", [0, 3])
@pytest.mark.parametrize(("from_image", "saves"), [(False, {"hda": SAVE}), (True, {"hda": SAVE}), (False, {})])
def test_kept_disks_start_with_the_image_of_their_worker(from_image, saves, missed_polls):
    """A worker of 0.2 got a save as the image, and refuses any other one for the disks that it keeps."""
    subject = vm(DesiredStatus.RUNNING, O.CRASHED, from_image=from_image, missed_polls=missed_polls)
    subject = observing(subject, saves=saves, spec=spec_with(hda_image="http://store/older.qcow2"), disks=KEPT)
    image = SPEC.hda_image if missed_polls else "http://store/older.qcow2"
    origin = {} if from_image else {disk: save.origin for disk, save in saves.items()}
    spec, sent = boot_of(with_features(subject, ORIGIN_FEATURE))
    assert (spec.hda_image, sent) == (image, origin)
    spec, sent = boot_of(subject)
    assert (spec.hda_image, sent) == (origin.get("hda", image) if missed_polls else image, {})
    assert boot_of(observing(subject, spec=None))[0].name == SPEC.name


def test_start_from_the_image_is_for_one_life():
    """What that life has saved is newer: an automatic start goes on from there."""
    subject = vm(DesiredStatus.HALTED, O.HALTED, generation=4, taken=4, spec=spec_with(run_policy="always"))
    subject = edited(observing(subject, saves={"hda": LOCAL}), start_from(image=True))
    assert boot_of(with_features(subject, ORIGIN_FEATURE))[1] == {}
    saved = {"hda": DiskReport(saved_to=SAVE.uri, sha256=SAVE.sha256)}
    report = msgspec.structs.replace(subject.observed.status, generation=5, disks=saved, since="2026-11-23T11:30:00")
    subject = dataclasses.replace(subject, observed=subject.observed.reported(report, NOW))
    subject = with_features(subject, ORIGIN_FEATURE)
    assert decide(subject, NOW, SETTINGS).command.verb == "start"
    assert boot_of(subject)[1] == {"hda": SAVE.origin}
    assert describe_origin(subject) == f"It goes on from its last save, {SAVE.uri}."


@pytest.mark.parametrize("before", [True, False])
def test_last_of_two_starts_says_from_what(before):
    subject = edited(saved(), start_from(image=before))
    again = edited(subject, start_from(image=not before))
    assert again.desired.from_image is not before
    assert again.desired.generation > subject.desired.generation
    assert edited(again, start_from(image=not before)) == again


def test_start_on_its_way_begins_with_what_was_sent():
    """The worker may have it already, and goes on with the first one."""
    subject = edited(saved(), start_from(image=False))
    sent = DispatchState(user_generation=5, generation=5, verb="start", sent_at=NOW, attempts=1)
    sent_from_save = dataclasses.replace(subject, dispatch=sent)
    with pytest.raises(Conflict, match="is being started from its last save"):
        apply_action(sent_from_save, "start", NOW, from_image=True)
    assert edited(sent_from_save, start_from(image=False)) == sent_from_save
    sent_from_image = edited(saved(), start_from(image=True))
    sent_from_image = dataclasses.replace(sent_from_image, dispatch=sent)
    assert edited(sent_from_image, start_from(image=False)) == sent_from_image


def test_failed_start_leaves_the_choice_to_the_next_one():
    failed = vm(DesiredStatus.RUNNING, O.FAILED_TO_START, generation=5, taken=5, from_image=True)
    failed = observing(failed, saves={"hda": SAVE})
    again = edited(failed, start_from(image=False))
    assert describe_origin(failed) == describe_origin(again) == f"It goes on from its last save, {SAVE.uri}."
    assert describe_origin(edited(failed, start_from(image=True))).startswith("It starts from its images.")


@pytest.mark.parametrize("verb", ["suspend", "fence"])
def test_later_requests_do_not_bring_the_image_back(verb):
    """This life began with the image, and goes on from what it has saved since."""
    subject = vm(DesiredStatus.RUNNING, O.RUNNING, generation=5, taken=5, from_image=True)
    subject = observing(subject, saves={"hda": SAVE._replace(generation=5)})
    assert not starts_from_image(subject)
    after = evacuate(subject, NOW) if verb == "fence" else apply_action(subject, verb, NOW)
    assert not starts_from_image(dataclasses.replace(subject, desired=after))
    unsaved = observing(subject, saves={"hda": SAVE})
    assert evacuate(unsaved, NOW).from_image


def test_end_on_an_older_worker_is_no_promise():
    subject = vm(spec=spec_with(hda_save_to=None))
    assert describe_end_of(subject) == (
        "w1 has a version of Saltern that discards hda when its guest shuts down. Upgrade that worker, or say where to "
        "save the disk: saltern modify web01 --hda-save-to URI."
    )
    assert describe_end_of(with_features(subject, KEEP_FEATURE)) == "Its disk will be kept on its worker when it halts."


@pytest.mark.parametrize(
    ("observed", "disks"), [(O.RUNNING, {}), (O.SUSPENDED, {}), (O.CRASHED, KEPT), (O.HALTED, KEPT)]
)
def test_shutdown_that_would_discard_is_refused_at_once(observed, disks):
    """It is not carried out later either, when the worker has been upgraded."""
    subject = observing(vm(observed=observed, spec=spec_with(hda_save_to=None)), disks=disks)
    with pytest.raises(Conflict, match="would discard hda of web01"):
        shutdown(subject)
    assert shutdown(with_features(subject, KEEP_FEATURE)).status is DesiredStatus.HALTED


def test_older_worker_with_nothing_to_discard_gets_the_shutdown():
    subject = vm(observed=O.HALTED, spec=spec_with(hda_save_to=None))
    assert shutdown(subject).status is DesiredStatus.HALTED


@pytest.mark.parametrize(
    ("fields", "missed_polls", "awaited"),
    [
        ({}, 0, True),
        ({"accepted": 1}, 0, True),
        # Its worker does not have it.
        ({}, 1, False),
        ({"problem": VMProblem(code=Code.POLICY, message="no")}, 0, False),
        ({"verb": "modify"}, 0, False),
        ({"sent_at": None}, 0, False),
    ],
)
def test_shutdown_waits_for_a_start_that_is_on_its_way(fields, missed_polls, awaited):
    """It comes up yet, and is then shut down: it is not halted before."""
    sent = DispatchState(**({"user_generation": 1, "generation": 1, "verb": "start", "sent_at": NOW} | fields))
    subject = vm(observed=O.UNREPORTED, dispatch=sent, taken=0)
    subject = dataclasses.replace(subject, observed=dataclasses.replace(subject.observed, missed_polls=missed_polls))
    assert awaits_effect(edited(subject, shutdown)) is awaited


@pytest.mark.parametrize(("observed", "disks"), [(O.RUNNING, {}), (O.HALTED, KEPT)])
def test_question_about_a_target_is_about_nothing_else(observed, disks):
    """A worker that can no longer fetch the last save accepts another place all the same."""
    before = observing(vm(observed=observed), saves={"hda": SAVE}, disks=disks)
    question = question_about_changes(before, edited(before, modify("file:/other")))
    request = plan_request(with_features(question, ORIGIN_FEATURE))
    assert (request.origin, request.hda_image, request.hda_save_to) == ({}, "blank:1M", "file:/other")
