"""Regression: a start repeated during a phase change was answered as if a new life had begun."""

from tests.lib.support import Site
from worker_service.helper import launcher
from worker_service.state.record import Phase


def test_start_during_a_phase_change_finds_the_vm(tmp_path, monkeypatch):
    site = Site(tmp_path, libvirt_uri="test:///default")
    monkeypatch.setattr(launcher, "start_helper", lambda *_: True)
    given = {"name": "a", "hda_image": "blank:1M", "mem_size": 16}
    uuid = site.call("start", **given)["uuid"]
    store, admission = site.worker.store, site.worker.store.admission

    def move_on():
        site.worker.advance(store.read(uuid), Phase.BUILDING)
        return admission()

    monkeypatch.setattr(store, "admission", move_on)
    assert site.call("start", **given)["message"] == "It is here already."
    assert store.read(uuid).phase is Phase.BUILDING
