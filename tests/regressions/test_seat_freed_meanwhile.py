"""A seat that was freed just while somebody looked for one for a VM went to nobody before the watcher's next tick."""

from tests.support import Site
from worker_service.slots import take


def test_there_is_one_more_look(tmp_path, monkeypatch):
    site = Site(tmp_path, libvirt_uri="test:///default", seats=1)
    with monkeypatch.context() as patch:
        patch.setattr(site.worker, "fork_helper", lambda uuid, kind=None: True)
        uuid = site.call("start", name="a", hda_image="blank:1M", mem_size=16)["uuid"]
    born, looks = [], []
    monkeypatch.setattr("worker_service.nursery.ask", lambda root, uuid, *_: born.append(uuid) or True)

    def taken_once(*where):
        """Whoever had it frees it now, and finds the VM's lock held: it seems that somebody is at it."""
        looks.append(where)
        return take(*where) if len(looks) > 1 else None

    monkeypatch.setattr("worker_service.worker.take", taken_once)
    assert site.worker.fork_helper(uuid, "fetch")
    assert born == [uuid]


def test_where_all_are_taken_nobody_is_born(tmp_path, monkeypatch):
    site = Site(tmp_path, libvirt_uri="test:///default", seats=0)
    born = []
    monkeypatch.setattr("worker_service.nursery.ask", lambda root, uuid, *_: born.append(uuid) or True)
    uuid = site.call("start", name="a", hda_image="blank:1M", mem_size=16)["uuid"]
    assert not site.worker.fork_helper(uuid, "fetch")
    assert born == []
