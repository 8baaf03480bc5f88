"""Few helpers for many VMs: those without a seat wait in their records, and are called without anybody looking."""

import time

import pytest

from tests.support import a_site, helpers
from worker_service.record import Phase

VMS = [f"seat-{number}" for number in range(14)]


@pytest.fixture(scope="module")
def site(libvirt):
    with a_site(seats=1) as made:
        yield made


def test_all_come_up_though_only_few_helpers_live_at_once(site, bootchain):
    image = bootchain("seats.raw", folder=site.images, variant="spin")
    for name in VMS:
        assert site.start(name, image, mem_size=16)["success"]
    most, deadline = 0, time.monotonic() + 120
    while any(site.worker.store.find(name=name).phase is not Phase.UP for name in VMS):
        most = max(most, len(helpers(site.settings)))
        assert time.monotonic() < deadline, site.logs()
        time.sleep(0.05)
    # Two kinds of seats in a start, and some who found none and are just leaving.
    assert most < len(VMS) / 2
    assert site.call("list")["success"]
