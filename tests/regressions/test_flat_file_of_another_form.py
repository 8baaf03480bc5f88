"""A flat file of another form was removed while the record still named it: a change back to that form found no file."""

import msgspec
import pytest

from tests.lib.support import Site
from worker_service.contract.uri import Form
from worker_service.core.errors import TransferFailed
from worker_service.helper import launcher
from worker_service.images import flatten
from worker_service.state.record import Disk, Phase
from worker_service.steps import halt

FLAT = Disk(flat_file="hda.flat.raw", flat_sha256="0" * 64, flat_size=1, flat_form=Form(format="raw"))


@pytest.fixture
def site(tmp_path, monkeypatch):
    """A VM whose disk is flattened to raw, and whose target asks for qcow2 now."""
    made = Site(tmp_path, libvirt_uri="test:///default")
    monkeypatch.setattr(launcher, "start_helper", lambda *_: True)
    save_to = f"file://{made.saved}/a.qcow2"
    made.uuid = made.call("start", name="a", hda_image="blank:1M", hda_save_to=save_to, mem_size=16)["uuid"]
    made.worker.store.update(
        made.uuid, lambda record: msgspec.structs.replace(record, phase=Phase.FLATTENING, disks={"hda": FLAT})
    )
    (made.worker.store.folder(made.uuid) / FLAT.flat_file).write_bytes(b"x")
    return made


def test_interrupted_flatten_forgets_the_removed_file(site, monkeypatch):
    def interrupted(*_):
        raise TransferFailed("The step is no longer desired.")

    monkeypatch.setattr(flatten, "flatten", interrupted)
    worker = site.worker
    with pytest.raises(TransferFailed):
        halt.flatten_disks(worker, worker.store.read(site.uuid))
    disk = worker.store.read(site.uuid).disks["hda"]
    assert (disk.flat_file, disk.flat_sha256) == ("", None)
    assert not (worker.store.folder(site.uuid) / FLAT.flat_file).exists()
