"""Regression: a second shutdown did not press the power button of a deaf guest again, but claimed so."""

import msgspec
import pytest

from tests.lib.support import Site
from worker_service.helper import launcher
from worker_service.hypervisor.base import DomainState, Power
from worker_service.state.lifecycle import SHUTDOWN_TRIES, Step, next_step, wait_s
from worker_service.state.record import Phase


@pytest.mark.parametrize("phase", [Phase.UP, Phase.BOOTING])
def test_repeated_shutdown_presses_the_button_again(tmp_path, monkeypatch, phase):
    site = Site(tmp_path, libvirt_uri="test:///default")
    monkeypatch.setattr(launcher, "start_helper", lambda *_: True)
    uuid = site.call("start", name="a", hda_image="blank:1M", mem_size=32)["uuid"]
    later = site.worker.now().replace(year=2996)
    worn = {"shutdown_asked": True, "tries": SHUTDOWN_TRIES, "next_try_at": later, "problem": "Asked 6 times."}
    site.worker.store.update(uuid, lambda record: msgspec.structs.replace(record, phase=phase, **worn))
    assert site.call("shutdown", uuid=uuid)["success"]
    record = site.worker.store.read(uuid)
    if phase is Phase.BOOTING:  # those are tries of its boot
        assert (record.tries, record.next_try_at) == (SHUTDOWN_TRIES, later)
        return
    assert next_step(record, DomainState(Power.RUNNING)) is Step.ASK_SHUTDOWN
    assert wait_s(record, Step.ASK_SHUTDOWN, site.worker.now()) == 0
    assert record.problem is None
