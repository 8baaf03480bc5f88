"""The state of a machine of VirtualBox: its words, how its last run ended, and the files of its disks."""

import pytest

from worker_service.contract import HaltCause
from worker_service.hypervisor.base import Power
from worker_service.hypervisor.vbox import state
from worker_service.images import vdi
from worker_service.images.overlay import Layer

STARTING = b"00:00:00.392 Console: Machine state changed to 'Starting'\n"
RUNNING = b"00:00:01.725 Changing the VM state from 'POWERING_ON' to 'RUNNING'\n"
RUNNING += b"00:00:01.725 Console: Machine state changed to 'Running'\n"
REQUEST = b"00:00:32.363 Console: Machine state changed to 'Stopping'\n"
REQUEST += b"00:00:32.419 Console::powerDown(): A request to power off the VM has been issued\n"
ENDING = b"00:00:32.503 Changing the VM state from 'RUNNING' to 'POWERING_OFF'\n"
OFF = b"00:01:24.661 Changing the VM state from 'DESTROYING' to 'TERMINATED'\n"
OFF += b"00:01:24.686 Console: Machine state changed to 'PoweredOff'\n"
STUCK = b"00:00:06.777 Console: Machine state changed to 'Stuck'\n"
ORPHANED = b"00:00:15.257 VBoxHeadless: VBoxSVC became unavailable, exiting.\n"
PAUSED = b"00:00:17.555 Console: Machine state changed to 'Paused'\n"
SAVED = b"00:00:07.020 Console: Machine state changed to 'Saved'\n"
FULL = b"00:00:09.1 VM: Raising runtime error 'DrvVD_DISKFULL' (fFlags=0x6)\n"


@pytest.mark.parametrize(
    ("log", "cause"),
    [
        (b"", None),
        (STARTING, None),
        (STARTING + OFF, None),  # it did not start
        (STARTING + RUNNING, None),  # the host lost power
        (STARTING + RUNNING + PAUSED, None),
        (STARTING + RUNNING + ENDING + OFF, HaltCause.GUEST),
        (STARTING + RUNNING + ENDING + REQUEST + OFF, HaltCause.GUEST),
        (STARTING + RUNNING + REQUEST + ENDING + OFF, HaltCause.KILLED),
        (STARTING + RUNNING + STUCK + REQUEST + OFF, HaltCause.CRASHED),
        (STARTING + RUNNING + STUCK, None),
        (STARTING + RUNNING + ORPHANED + REQUEST + ENDING, HaltCause.CRASHED),
        (STARTING + RUNNING + ORPHANED, HaltCause.CRASHED),
        (STARTING + RUNNING + PAUSED + REQUEST + SAVED, HaltCause.SAVED),
    ],
)
def test_log_says_how_a_run_ended(log, cause):
    assert state.end_in(log) is cause


def info(tmp_path, word, log=b"", **more):
    (tmp_path / "VBox.log").write_bytes(log)
    return {"name": "web01", "VMState": word, "LogFldr": str(tmp_path), **more}


@pytest.mark.parametrize(
    ("word", "power", "job"),
    [
        ("running", Power.RUNNING, ""),
        ("starting", Power.RUNNING, ""),
        ("gurumeditation", Power.RUNNING, ""),
        ("paused", Power.PAUSED, ""),
        ("saving", Power.PAUSED, "save"),
        ("livesnapshotting", Power.RUNNING, "snapshot"),
        ("teleporting", Power.RUNNING, "migration"),
    ],
)
def test_words_of_a_machine_that_is_on(tmp_path, word, power, job):
    found = state.of(info(tmp_path, word))
    assert (found.power, found.job, found.name, found.cause) == (power, job, "web01", None)


@pytest.mark.parametrize(
    ("word", "log", "cause", "saved"),
    [
        ("poweroff", STARTING + RUNNING + OFF, HaltCause.GUEST, False),
        ("poweroff", b"", None, False),
        ("aborted", STARTING + RUNNING, HaltCause.CRASHED, False),
        ("saved", STARTING + RUNNING + SAVED, HaltCause.SAVED, True),
        ("aborted-saved", STARTING, HaltCause.SAVED, True),
    ],
)
def test_words_of_a_machine_that_is_off(tmp_path, word, log, cause, saved):
    found = state.of(info(tmp_path, word, log))
    assert (found.power, found.cause, found.saved_memory) == (Power.OFF, cause, saved)


def test_machine_without_a_log_has_not_run(tmp_path):
    assert state.of({"name": "web01", "VMState": "poweroff", "LogFldr": str(tmp_path)}).cause is None


@pytest.mark.parametrize(
    ("log", "full", "words"),
    [
        (RUNNING + PAUSED, False, ""),
        (RUNNING + FULL + PAUSED, True, "the data root is full"),
        (FULL + PAUSED + RUNNING + PAUSED, False, ""),
        (RUNNING + b"runtime error 'DrvVD_DISKIOERR'" + PAUSED, False, "an I/O error"),
    ],
)
def test_pause_by_an_error_has_a_problem(tmp_path, log, full, words):
    found = state.of(info(tmp_path, "paused", log))
    assert found.short_of_space is full
    assert words in (found.problem or "")
    assert bool(words) is bool(found.problem)


def write(path, parent=None, comment=""):
    path.write_bytes(vdi.new(1 << 20, parent, comment))
    with path.open("rb") as file:
        return vdi.read(file.fileno())


def test_disks_are_read_down_to_their_base(tmp_path):
    base = write(tmp_path / "base")
    own = write(tmp_path / "hda.vdi", base, "ab" * 32)
    first = write(tmp_path / "{1}.vdi", own)
    write(tmp_path / "{2}.vdi", first)
    write(tmp_path / "hdb.vdi")
    pairs = {"drives-0-0": str(tmp_path / "{2}.vdi"), "drives-0-1": str(tmp_path / "hdb.vdi")}
    assert state.disks_of(pairs) == {
        "hda": (
            *(Layer(str(tmp_path / name), "vdi") for name in ("{2}.vdi", "{1}.vdi", "hda.vdi")),
            Layer("ab" * 32, ""),
        ),
        "hdb": (Layer(str(tmp_path / "hdb.vdi"), "vdi"),),
    }


def test_disk_that_cannot_be_read_ends_the_chain(tmp_path):
    (tmp_path / "hda.vdi").write_bytes(b"nothing")
    found = state.disks_of({"drives-0-0": str(tmp_path / "hda.vdi"), "drives-0-1": "none"})
    assert found == {"hda": (Layer(str(tmp_path / "hda.vdi"), "vdi"),)}
