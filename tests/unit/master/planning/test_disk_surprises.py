"""Sequences of requests, reports and refusals after which a disk would be lost, or not be found."""

import dataclasses

import msgspec
import pytest

from master_service.planning.observed import ObservedStatus
from master_service.planning.planner import decide
from master_service.planning.saves import SavedDisk
from master_service.planning.user_actions import apply_action, apply_modify, pending_settings, take_back
from master_service.planning.vm import DesiredStatus, DispatchState, VMProblem
from tests.unit.master.builders import NOW, SETTINGS, SPEC, vm
from worker_service.contract import KEEP_FEATURE, Code, DiskReport

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
