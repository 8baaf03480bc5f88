"""Regression: a target set during a fetch was compared with the content of the old target: a needless conflict."""

import pytest

from tests.lib.support import Site
from worker_service.helper import launcher
from worker_service.state.context import Superseded
from worker_service.state.record import Phase
from worker_service.steps import registry


@pytest.mark.parametrize("generation", [None, 2])
def test_new_target_is_looked_at(tmp_path, monkeypatch, generation):
    site = Site(tmp_path, libvirt_uri="test:///default")
    monkeypatch.setattr(launcher, "start_helper", lambda *_: True)
    old, new = site.saved / "old.qcow2", site.saved / "new.qcow2"
    site.put_saved(new)
    given = {"hda_image": f"file://{new}", "hda_save_to": f"file://{old}", "mem_size": 32}
    uuid = site.call("start", name="a", **given)["uuid"]
    begun = site.worker.store.read(uuid)
    assert site.call("modify", uuid=uuid, hda_save_to=f"file://{new}", generation=generation)["success"]
    with pytest.raises(Superseded):  # the fetch that was under way
        registry.fetch(site.worker, begun)
    registry.fetch(site.worker, site.worker.store.read(uuid))
    record = site.worker.store.read(uuid)
    assert record.phase is Phase.BUILDING
    assert record.disks["hda"].target_version is not None
