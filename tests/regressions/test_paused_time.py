"""Regression: paused time counted as lack of progress, after a full disk and between a resume and its record."""

import msgspec
import pytest

from tests.lib.support import Site
from worker_service.helper import launcher
from worker_service.hypervisor.base import DomainState, Power
from worker_service.state.record import Phase


class Driver:
    """A hypervisor whose only domain is stopped. It keeps the record of the moment of a resume."""

    def __init__(self, site, paused):
        self.site, self.paused, self.resumed = site, paused, []

    def state(self, uuid):
        return self.paused

    def states(self, _own):
        return {self.site.uuid: self.paused}

    def resume(self, uuid):
        self.resumed.append(self.site.worker.store.read(uuid).resumed_at)


@pytest.fixture
def site(tmp_path, monkeypatch):
    made = Site(tmp_path, libvirt_uri="test:///default")
    monkeypatch.setattr(launcher, "start_helper", lambda *_: True)
    made.uuid = made.call("start", name="a", hda_image="blank:1M", mem_size=32, run_agent=True)["uuid"]
    made.worker.store.update(made.uuid, lambda record: msgspec.structs.replace(record, phase=Phase.UP))
    return made


FULL = DomainState(Power.PAUSED, problem="The data root is full.", short_of_space=True)


@pytest.mark.parametrize(
    ("paused", "act"),
    [
        (FULL, lambda site: site.watcher.look()),
        (DomainState(Power.PAUSED), lambda site: site.call("resume", uuid=site.uuid)),
    ],
)
def test_paused_time_is_recorded_before_the_guest_runs_on(site, monkeypatch, paused, act):
    driver = Driver(site, paused)
    monkeypatch.setattr(site.worker, "hypervisors", {"kvm": driver})
    before = site.worker.now()
    act(site)
    (noted,) = driver.resumed
    assert noted is not None
    assert noted >= before
