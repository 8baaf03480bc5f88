"""Regression: an unexpected exception in a step killed its helper, and the next helper, without end."""

import pytest

from tests.lib.support import Site
from worker_service.contract import TRIES
from worker_service.helper import launcher, step_loop
from worker_service.state.lifecycle import Step
from worker_service.state.record import Phase
from worker_service.steps import registry


@pytest.mark.parametrize("error", [KeyError("hdb"), AssertionError("no transition"), RecursionError()])
def test_bug_in_a_step_counts_as_a_try(tmp_path, monkeypatch, caplog, error):
    def broken(_worker, _record):
        raise error

    site = Site(tmp_path, libvirt_uri="test:///default")
    monkeypatch.setattr(launcher, "start_helper", lambda *_: True)
    uuid = site.call("start", name="a", hda_image="blank:1M", mem_size=32)["uuid"]
    monkeypatch.setitem(registry.STEPS, Step.FETCH, broken)
    for number in range(1, TRIES):
        step_loop._do(site.worker, uuid, Step.FETCH)
        record = site.worker.store.read(uuid)
        assert (record.phase, record.tries) == (Phase.FETCHING, number)
        assert type(error).__name__ in record.problem
        assert record.next_try_at > record.phase_since
    step_loop._do(site.worker, uuid, Step.FETCH)
    record = site.worker.store.read(uuid)
    assert record.phase is Phase.START_FAILED
    assert "helper.log" in record.message
    assert caplog.text.count("Traceback") == TRIES
