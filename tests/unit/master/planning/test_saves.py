"""The last saves of a VM, from the reports of its worker."""

import pytest

from master_service.planning.observed import ObservedStatus
from master_service.planning.saves import SavedDisk, saves_after
from tests.unit.master.builders import status
from worker_service.contract import DiskReport

DIGEST, OTHER = "a" * 64, "b" * 64
BEFORE = {"hda": SavedDisk("file:/saved/old.qcow2", OTHER)}
SAVED = DiskReport(saved_to="file:/saved/a.qcow2", sha256=DIGEST)
NEW = {"hda": SavedDisk("file:/saved/a.qcow2", DIGEST, 1)}


@pytest.mark.parametrize("observed", [ObservedStatus.SAVING, ObservedStatus.RUNNING, ObservedStatus.FAILED_TO_SAVE])
def test_vm_that_is_not_halted_has_no_new_save(observed):
    """While it is saving, the first of two disks may be saved and the other not."""
    assert saves_after(BEFORE, status(observed, disks={"hda": SAVED})) == BEFORE


@pytest.mark.parametrize(
    ("disks", "after"),
    [
        ({"hda": SAVED}, NEW),
        ({"hda": SAVED, "hdb": SAVED}, NEW | {"hdb": NEW["hda"]}),
        ({"hda": SAVED, "hdb": DiskReport()}, NEW),
        ({"hda": SAVED, "hdc": SAVED}, NEW),
        ({"hda": DiskReport()}, BEFORE),
        ({}, BEFORE),
        ({"hda": DiskReport(saved_to="file:/saved/a.qcow2")}, BEFORE),
        ({"hda": DiskReport(saved_to="file:/saved/a.qcow2", sha256="A" * 64)}, BEFORE),
        ({"hda": DiskReport(saved_to="no uri", sha256=DIGEST)}, BEFORE),
        ({"hda": DiskReport(saved_to=f"file:/a#sha256={OTHER}", sha256=DIGEST)}, BEFORE),
    ],
    ids=str,
)
def test_halted_vm_has_the_saves_that_its_worker_names(disks, after):
    assert saves_after(BEFORE, status(ObservedStatus.HALTED, disks=disks)) == after


@pytest.mark.parametrize(
    ("origin", "after"),
    [
        ({"hda": BEFORE["hda"].origin, "hdb": BEFORE["hda"].origin}, NEW | {"hdb": BEFORE["hda"]}),
        # A life that began with the images mixes no disk of a former life with its own.
        ({}, NEW),
        ({"hdb": "file:/saved/b.qcow2"}, NEW),
    ],
)
def test_disk_that_was_not_saved_goes_on_from_its_origin(origin, after):
    disks = {"hda": SAVED, "hdb": DiskReport()}
    before = BEFORE | {"hdb": SavedDisk("file:/saved/former.qcow2", OTHER)}
    assert saves_after(before, status(ObservedStatus.HALTED, disks=disks, origin=origin)) == after


def test_start_from_a_save_takes_exactly_its_bytes():
    assert NEW["hda"].origin == f"file:/saved/a.qcow2#sha256={DIGEST}"


FROM = {"hda": SavedDisk("file:/saved/from.qcow2", OTHER), "hdb": SavedDisk("file:/saved/b.qcow2", OTHER)}
ORIGIN = {disk: save.origin for disk, save in FROM.items()} | {"hdc": "blank:1G"}


@pytest.mark.parametrize("observed", [ObservedStatus.RUNNING, ObservedStatus.SAVING, ObservedStatus.HALTED])
def test_vm_without_a_known_save_has_those_that_it_started_from(observed):
    assert saves_after({}, status(observed, origin=ORIGIN)) == FROM
    assert saves_after(BEFORE, status(observed, origin=ORIGIN)) == BEFORE
    assert saves_after({}, status(observed, origin={"hda": "file:/a", "hdb": "no uri#sha256=1"})) == {}


def test_save_keeps_the_command_at_which_it_was_reported_first():
    again = status(ObservedStatus.HALTED, disks={"hda": SAVED}, generation=7)
    assert saves_after(NEW, again) == NEW
    assert saves_after(BEFORE, again)["hda"].generation == 7
