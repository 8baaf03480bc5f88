"""Answers of VirtualBox hold until the process, the settings or the log of the machine changes."""

import os
import time

import pytest

from worker_service.hypervisor.base import DomainState, Power
from worker_service.hypervisor.vbox import events
from worker_service.hypervisor.vbox.unchanged import Unchanged

UUID = "aaaaaaaa-0000-4000-8000-000000000001"
ON, OFF = DomainState(Power.RUNNING), DomainState(Power.OFF)
NOW = time.time()
LONG_AGO = NOW - 60


class Stand:
    """A machine's files, and its process."""

    def __init__(self, folder, monkeypatch):
        self.process = 7
        self.settings, self.log = folder / "web01.vbox", folder / "VBox.log"
        self.info = {"CfgFile": str(self.settings), "LogFldr": str(folder)}
        for path in (self.settings, self.log):
            self.write(path, LONG_AGO)
        monkeypatch.setattr(events, "by_machine", lambda: {UUID: self.process} if self.process else {})
        self.machines = Unchanged()

    def write(self, path, at):
        path.write_text(f"{at}")
        os.utime(path, (at, at))

    def note(self, state):
        self.machines.note(UUID, self.info, state, NOW)


@pytest.fixture
def stand(tmp_path, monkeypatch):
    return Stand(tmp_path, monkeypatch)


def test_answer_holds_while_nothing_happens(stand):
    assert stand.machines.known(UUID) is None
    stand.note(ON)
    known = stand.machines.known(UUID)
    assert (known.state, known.info) == (ON, stand.info)
    stand.machines.keep([UUID])
    assert stand.machines.known(UUID)
    stand.machines.keep([])
    assert stand.machines.known(UUID) is None


@pytest.mark.parametrize("what", ["settings", "log", "process", "gone"])
def test_answer_ends_with_any_change(stand, what):
    stand.note(ON)
    if what == "process":
        stand.process = None
    elif what == "gone":
        stand.log.unlink()
    else:
        stand.write(getattr(stand, what), LONG_AGO + 1)
    assert stand.machines.known(UUID, registered=True) is None


def test_answer_about_one_that_is_off_needs_its_registration(stand):
    stand.process = None
    stand.note(OFF)
    assert stand.machines.known(UUID) is None
    assert stand.machines.known(UUID, registered=True).state == OFF


@pytest.mark.parametrize("age_s", [0, events.SETTLED_S - 1])
def test_answer_close_to_a_change_is_not_kept(stand, age_s):
    """VirtualBox may not have known of it yet."""
    stand.write(stand.log, NOW - age_s)
    stand.note(ON)
    assert stand.machines.known(UUID) is None


def test_answer_without_its_process_is_not_kept(stand):
    stand.process = None
    stand.note(ON)
    assert stand.machines.known(UUID, registered=True) is None


def test_end_of_a_process_is_known(stand):
    assert not stand.machines.has_ended(UUID)
    stand.note(ON)
    assert not stand.machines.has_ended(UUID)
    stand.process = None
    assert stand.machines.has_ended(UUID)
