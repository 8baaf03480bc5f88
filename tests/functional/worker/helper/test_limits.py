"""Few slots for many VMs: helpers without a slot exit, and start again when one becomes free."""

import os
import signal

import pytest

from tests.lib.faults import standing
from tests.lib.support import a_site, eventually, helpers
from worker_service.core.failpoints import ENVIRONMENT
from worker_service.state.record import Phase

VMS = [f"seat-{number}" for number in range(14)]


@pytest.fixture(scope="module")
def site(libvirt):
    with a_site(max_parallel_jobs=1) as made:
        yield made


def test_helper_without_a_slot_exits_and_all_vms_start(site, bootchain, monkeypatch):
    image = bootchain("slots.raw", folder=site.images, variant="spin")

    def start(name):
        reply = site.start(name, image, mem_size=16)
        assert reply["success"], reply
        return reply["uuid"]

    def phases(uuids):
        return {site.worker.store.read(uuid).phase for uuid in uuids}

    with monkeypatch.context() as patch:
        patch.setenv(ENVIRONMENT, "boot.before=stop")
        first = start(VMS[0])
    (held,) = eventually(lambda: standing(site.settings, first))  # in the only slot for boots
    others = [start(name) for name in VMS[1:]]
    eventually(lambda: phases(others) == {Phase.BUILDING} and helpers(site.settings) == [held])
    os.kill(held, signal.SIGCONT)
    eventually(lambda: phases([first, *others]) == {Phase.UP})
    assert site.call("list")["success"]
