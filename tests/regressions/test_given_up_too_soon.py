"""Regression: a guest was given up while it made progress, or only in part, and a guest in a loop never."""

import os
import time
from datetime import timedelta

import msgspec
import pytest

from tests.lib.support import Site
from worker_service.contract import HaltCause
from worker_service.core.failpoints import ENVIRONMENT
from worker_service.guest_agent.readiness import State
from worker_service.helper import launcher
from worker_service.hypervisor.base import ABSENT, DomainState, Power
from worker_service.state.lifecycle import Step, next_step
from worker_service.state.observation import read_readiness
from worker_service.state.record import Phase
from worker_service.steps import install as agent_steps
from worker_service.steps import registry, seed_files

DONE = b'{"event": "up"}\n{"event": "installed", "name": "git"}\n{"event": "done"}\n'


class Driver:
    """A hypervisor with one running domain. The guest writes `at_the_end` when it is destroyed."""

    def __init__(self, log):
        self.domain, self.log, self.at_the_end = DomainState(Power.RUNNING), log, b""

    def state(self, uuid):
        return self.domain

    def guest_agent_answers(self, uuid):
        return False

    def logged_end(self, uuid, name):
        return None

    def power_off(self, uuid):
        with self.log.open("ab") as log:
            log.write(self.at_the_end)
        if self.domain.power is Power.RUNNING:
            self.domain = DomainState(Power.OFF, cause=HaltCause.KILLED)

    def forget(self, uuid):
        self.domain = ABSENT


@pytest.fixture
def site(tmp_path, monkeypatch):
    """A worker with a VM that has been silent for longer than allowed."""
    made = Site(tmp_path, libvirt_uri="test:///default", install_limit_s=10.0)
    monkeypatch.setattr(launcher, "start_helper", lambda *_: True)
    monkeypatch.setattr("worker_service.core.failpoints._passed", {})
    made.uuid = made.call("start", name="a", hda_image="blank:1M", mem_size=32, soft_list="git")["uuid"]
    folder = made.worker.store.folder(made.uuid)
    made.disk, log = folder / "hda.qcow2", folder / seed_files.LOG
    made.disk.write_text("what the guest wrote")
    log.write_bytes(b'{"event": "up"}\n')
    long_ago = time.time() - 1000
    os.utime(log, (long_ago, long_ago))
    since = made.worker.now().replace(year=2020)
    made.worker.store.update(made.uuid, lambda r: msgspec.structs.replace(r, phase=Phase.UP, phase_since=since))
    made.driver = Driver(log)
    monkeypatch.setattr(made.worker, "hypervisors", {"kvm": made.driver})
    return made


def record(site):
    return site.worker.store.read(site.uuid)


def pending(site):
    domain = site.worker.domain(record(site))
    return next_step(record(site), domain, read_readiness(site.worker, record(site), domain))


def test_silent_guest_is_given_up(site):
    assert pending(site) is Step.GIVE_UP
    agent_steps.give_up(site.worker, record(site))
    assert record(site).phase is Phase.START_FAILED
    assert "no progress for 10 s" in record(site).message
    assert not site.disk.exists()
    assert site.driver.domain is ABSENT


def test_line_that_came_after_the_decision_counts(site):
    known = record(site)
    with site.driver.log.open("ab") as log:
        log.write(DONE)
    agent_steps.give_up(site.worker, known)
    assert site.driver.domain.power is Power.RUNNING
    assert pending(site) is Step.NOTE_READY


def test_line_that_came_with_the_end_keeps_the_disk(site):
    site.driver.at_the_end = DONE
    agent_steps.give_up(site.worker, record(site))
    assert pending(site) is Step.NOTE_HALT
    registry.note_halt(site.worker, record(site))
    assert record(site).phase is Phase.KEPT
    assert site.disk.exists()


@pytest.mark.parametrize("point", ["give_up.off", "not_ready.removed", "not_ready.noted"])
def test_dying_helper_leaves_no_vm_without_disks(site, monkeypatch, point):
    """Its domain was forgotten first: it counted as undefined from outside, and its removed disks as kept."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(ENVIRONMENT, f"{point}=eio")
        with pytest.raises(OSError, match=point):
            agent_steps.give_up(site.worker, record(site))
    while (step := pending(site)) is not None:
        assert read_readiness(site.worker, record(site), site.worker.domain(record(site))).state is State.FAILED
        registry.STEPS[step](site.worker, record(site))
    assert record(site).phase is Phase.START_FAILED
    assert not site.disk.exists()


@pytest.mark.parametrize(
    ("line", "state"),
    [
        (b'{"event": "up"}\n', State.FAILED),  # it boots in a loop
        (b"rubbish\n", State.FAILED),
        (b'{"event": "working", "beat": 1}\n', State.AWAITED),  # one package that takes longer than the limit
        (b'{"event": "installing", "name": "git"}\n', State.AWAITED),
    ],
)
def test_writing_is_not_progress(site, monkeypatch, line, state):
    """Every byte counted as progress: a guest that boots in a loop was installing for ever."""
    now = site.worker.now()
    monkeypatch.setattr(site.worker, "now", lambda: now)
    os.utime(site.driver.log, (now.timestamp(), now.timestamp()))
    (site.disk.parent / "agent.progress.json").unlink(missing_ok=True)
    assert pending(site) is None
    monkeypatch.setattr(site.worker, "now", lambda: now + timedelta(seconds=20))
    with site.driver.log.open("ab") as log:
        log.write(line)
    os.utime(site.driver.log, (now.timestamp() + 19, now.timestamp() + 19))
    assert read_readiness(site.worker, record(site), site.worker.domain(record(site))).state is state
