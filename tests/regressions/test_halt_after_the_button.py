"""Regression: the halt of a guest right after its power button was pressed was recorded at the next press only."""

import msgspec
import pytest

from tests.lib.support import Site, a_site
from worker_service.contract import TRIES, HaltCause
from worker_service.core.errors import HypervisorError
from worker_service.helper import launcher, step_loop
from worker_service.hypervisor.base import DomainState, Power
from worker_service.state.lifecycle import Step, next_step, wait_s
from worker_service.state.record import Phase
from worker_service.steps import registry

ON, OFF = DomainState(Power.RUNNING), DomainState(Power.OFF, cause=HaltCause.GUEST)
AN_HOUR_S = 3600.0


class Driver:
    """A hypervisor with one domain, which has a power button."""

    def __init__(self):
        self.domain, self.pressed = ON, 0

    def state(self, uuid):
        return self.domain

    def shutdown(self, uuid):
        self.pressed += 1


@pytest.fixture
def site(tmp_path, monkeypatch):
    """A worker with a running VM that is to be shut down. It waits for an hour between tries."""
    made = Site(tmp_path, libvirt_uri="test:///default", retry_delay_s=AN_HOUR_S)
    monkeypatch.setattr(launcher, "start_helper", lambda *_: True)
    made.uuid = made.start("a", tmp_path / "none", hda_image="blank:1M")["uuid"]
    made.worker.store.update(made.uuid, lambda record: msgspec.structs.replace(record, phase=Phase.UP))
    made.driver = Driver()
    monkeypatch.setattr(made.worker, "hypervisors", {"kvm": made.driver})
    assert made.call("shutdown", uuid=made.uuid)["success"]
    return made


def record(site):
    return site.worker.store.read(site.uuid)


def pending(site):
    """Return the next step and its delay."""
    step = next_step(record(site), site.driver.domain)
    return step, wait_s(record(site), step, site.worker.now())


def test_pressing_holds_up_the_next_press_alone(site):
    step_loop._do(site.worker, site.uuid, Step.ASK_SHUTDOWN)
    step, wait = pending(site)
    assert (step, site.driver.pressed) == (Step.ASK_SHUTDOWN, 1)
    assert wait > 0
    site.driver.domain = OFF
    assert pending(site) == (Step.NOTE_HALT, 0)
    step_loop._do(site.worker, site.uuid, Step.NOTE_HALT)
    assert record(site).phase is Phase.FLATTENING


def fail(*_):
    raise HypervisorError("It does not answer.")


def test_press_that_failed_does_not_hold_it_up_either(site, monkeypatch):
    monkeypatch.setattr(site.driver, "shutdown", fail)
    step_loop._do(site.worker, site.uuid, Step.ASK_SHUTDOWN)
    assert pending(site)[1] > 0
    site.driver.domain = OFF
    assert pending(site) == (Step.NOTE_HALT, 0)


def test_step_that_failed_waits_before_it_is_tried_again(site, monkeypatch):
    monkeypatch.setitem(registry.STEPS, Step.NOTE_HALT, fail)
    site.driver.domain = OFF
    step_loop._do(site.worker, site.uuid, Step.NOTE_HALT)
    step, wait = pending(site)
    assert step is Step.NOTE_HALT
    assert wait > 0


def test_given_up_save_moves_to_failed_to_save_at_once(site, monkeypatch):
    """It waited for another try that did not exist."""
    monkeypatch.setitem(registry.STEPS, Step.SAVE, fail)
    site.driver.domain = OFF
    site.worker.store.update(site.uuid, lambda old: msgspec.structs.replace(old, phase=Phase.SAVING, tries=TRIES - 2))
    step_loop._do(site.worker, site.uuid, Step.SAVE)
    step, wait = pending(site)
    assert step is Step.SAVE
    assert wait > 0
    step_loop._do(site.worker, site.uuid, Step.SAVE)
    assert pending(site) == (Step.MOVE_TO_FAILED, 0)


def test_wait_that_an_older_version_noted_is_for_any_step(site):
    later = site.worker.now().replace(year=2996)
    site.worker.store.update(site.uuid, lambda old: msgspec.structs.replace(old, next_try_at=later))
    for domain in (ON, OFF):
        site.driver.domain = domain
        assert pending(site)[1] > 0


def test_halt_of_a_real_guest_is_recorded_at_once(libvirt, bootchain):
    """It ignores the button, goes off by itself, and the test does not wait for an hour."""
    with a_site(retry_delay_s=AN_HOUR_S) as site:
        uuid = site.start("a", bootchain("a.raw", folder=site.images, variant="key"))["uuid"]
        site.wait("a", "running")
        assert site.call("shutdown", uuid=uuid)["success"]
        site.end("a")
        reply = site.wait("a", "halted")
        assert reply["halt_cause"] == HaltCause.OPERATOR
