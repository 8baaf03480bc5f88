"""What becomes of disks at a halt, what a start goes on from, and the words for both."""

import dataclasses

import msgspec
import pytest

from master_service.planning.actions import (
    action_of,
    boot_of,
    changed_settings,
    has_changed_targets,
    lost_on_old_worker,
)
from master_service.planning.disk_ends import (
    describe_origin,
    has_disks_to_end,
    origin_as_cause,
    stored_target,
)
from master_service.planning.observed import ObservedStatus
from master_service.planning.saves import SavedDisk
from master_service.planning.vm import Command, DesiredStatus
from tests.unit.master.builders import CAPACITY, EARLIER, SPEC, status, vm
from worker_service.contract import KEEP, KEEP_FEATURE, ORIGIN_FEATURE, Changes, DiskReport

SAVE = SavedDisk("file:/saved/web.qcow2", "a" * 64)
KEPT = {"hda": DiskReport(kept="/data/vms/x/hda.qcow2")}


def spec_with(**changes):
    return msgspec.structs.replace(SPEC, **changes)


def with_features(subject, *features):
    capacity = msgspec.structs.replace(CAPACITY, features=features)
    return dataclasses.replace(subject, worker=dataclasses.replace(subject.worker, capacity=capacity))


def with_saves(subject, **saves):
    return dataclasses.replace(subject, observed=dataclasses.replace(subject.observed, saves=saves))


def kept(desired=DesiredStatus.HALTED, **more):
    subject = vm(desired, ObservedStatus.HALTED, **more)
    report = msgspec.structs.replace(subject.observed.status, disks=KEPT)
    return dataclasses.replace(subject, observed=dataclasses.replace(subject.observed, status=report))


@pytest.mark.parametrize(("value", "stored"), [(KEEP, None), ("", ""), ("file:/a", "file:/a")])
def test_keep_is_stored_as_absent(value, stored):
    assert stored_target(value) == stored


@pytest.mark.parametrize(
    ("subject", "sentence"),
    [
        (vm(), ""),
        (with_saves(vm(), hda=SAVE), ""),
        (vm(DesiredStatus.HALTED, ObservedStatus.HALTED), ""),
        (with_saves(vm(DesiredStatus.DESTROYED, ObservedStatus.HALTED, destroyed_at=EARLIER), hda=SAVE), ""),
        (
            with_saves(vm(DesiredStatus.HALTED, ObservedStatus.HALTED), hda=SAVE, hdb=SAVE),
            "It goes on from its last save, file:/saved/web.qcow2 and file:/saved/web.qcow2.",
        ),
        (
            with_saves(vm(DesiredStatus.RUNNING, ObservedStatus.HALTED, from_image=True), hda=SAVE),
            "It starts from its images. Its last save, file:/saved/web.qcow2, stays as it is.",
        ),
        (
            with_saves(vm(DesiredStatus.HALTED, ObservedStatus.HALTED, from_image=True), hda=SAVE),
            "It goes on from its last save, file:/saved/web.qcow2.",
        ),
        (with_saves(kept(), hda=SAVE), "It goes on from its own disks, which w1 keeps."),
        (vm(observed=ObservedStatus.CRASHED), "It goes on from its own disks, which w1 keeps."),
        (
            with_saves(vm(observed=ObservedStatus.FAILED_TO_START), hda=SAVE),
            "It goes on from its last save, file:/saved/web.qcow2.",
        ),
    ],
)
def test_origin_of_a_start_is_described(subject, sentence):
    assert describe_origin(subject) == sentence
    assert origin_as_cause(subject) == sentence.replace("It ", "it ", 1).removesuffix(".")


@pytest.mark.parametrize(
    ("features", "from_image", "image", "origin"),
    [
        ((ORIGIN_FEATURE,), False, SPEC.hda_image, {"hda": SAVE.origin}),
        ((ORIGIN_FEATURE,), True, SPEC.hda_image, {}),
        ((), False, SAVE.origin, {}),
        ((), True, SPEC.hda_image, {}),
    ],
)
def test_start_carries_its_origin(features, from_image, image, origin):
    """A worker that knows no origin gets the save as the image."""
    subject = vm(observed=ObservedStatus.HALTED, from_image=from_image)
    subject = with_features(with_saves(subject, hda=SAVE), *features)
    action = action_of(subject, Command(verb="start", generation=2))
    assert (action.params.hda_image, action.origin) == (image, origin)
    assert boot_of(dataclasses.replace(subject, worker=None))[1] == {}


@pytest.mark.parametrize(
    ("desired", "observed", "keeps", "change"),
    [
        (None, None, True, None),
        (None, None, False, None),
        ("", None, True, ""),
        (None, "", True, KEEP),
        # An older worker discards both.
        ("", None, False, None),
        (None, "", False, None),
        ("file:/a", None, True, "file:/a"),
        (None, "file:/a", True, KEEP),
        (None, "file:/a", False, ""),
        ("", "file:/a", True, ""),
        ("file:/a", "file:/a", True, None),
    ],
)
def test_targets_have_three_values(desired, observed, keeps, change):
    subject = vm(spec=spec_with(hda_save_to=desired))
    report = status(spec=spec_with(hda_save_to=observed))
    subject = dataclasses.replace(subject, observed=dataclasses.replace(subject.observed, status=report))
    subject = with_features(subject, *[KEEP_FEATURE] if keeps else [])
    assert changed_settings(subject) == Changes(hda_save_to=change)
    assert has_changed_targets(subject) is (change is not None)


@pytest.mark.parametrize(
    ("changes", "features", "lost"),
    [
        ({"hda_save_to": None}, (), "hda"),
        ({"hda_save_to": None, "hdb_image": "blank:1G"}, (), "hda and hdb"),
        ({"hda_save_to": None}, (KEEP_FEATURE,), ""),
        ({"hda_save_to": ""}, (), ""),
        ({}, (), ""),
    ],
)
def test_older_worker_would_lose_disks_without_a_target(changes, features, lost):
    assert lost_on_old_worker(with_features(vm(spec=spec_with(**changes)), *features)) == lost


def test_unknown_worker_loses_nothing():
    subject = vm(spec=spec_with(hda_save_to=None))
    unknown = dataclasses.replace(subject, worker=dataclasses.replace(subject.worker, capacity=None))
    assert lost_on_old_worker(unknown) == lost_on_old_worker(dataclasses.replace(subject, worker=None)) == ""


@pytest.mark.parametrize(
    ("subject", "to_end"),
    [
        (kept(), True),
        (kept(spec=spec_with(hda_save_to="")), True),
        (kept(spec=spec_with(hda_save_to=None)), False),
        (vm(DesiredStatus.HALTED, ObservedStatus.HALTED), False),
        (vm(DesiredStatus.HALTED, ObservedStatus.SAVING), False),
    ],
)
def test_shutdown_ends_kept_disks_that_have_a_target(subject, to_end):
    assert has_disks_to_end(subject) is to_end
