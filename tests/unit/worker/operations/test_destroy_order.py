"""The crash safety of destroy: first the tombstone is durable, then the record, and only then is a disk removed."""

import errno
from types import SimpleNamespace

import msgspec
import pytest

from tests.unit.worker.state.test_record_store import NOW, record
from worker_service.core.errors import Refused
from worker_service.hypervisor.base import ABSENT
from worker_service.operations import verbs
from worker_service.state.record import Phase
from worker_service.state.record_store import RecordStore


@pytest.fixture
def effects(tmp_path, monkeypatch):
    """A worker with one VM, whose writes and calls are listed in their order."""
    store, done = RecordStore(tmp_path), []
    store.prepare()
    made = record()
    store.create(made)
    write = store.reserve.write

    def note_write(path, data):
        done.append(path.parent.name if path.parent == store.tombstones.folder else path.name)
        write(path, data)

    monkeypatch.setattr(store.reserve, "write", note_write)
    monkeypatch.setattr(verbs, "start_helper_and_notify", lambda *_: done.append("helper"))
    monkeypatch.setattr(verbs, "_is_gone", lambda *_: True)
    driver = SimpleNamespace(power_off=lambda _: done.append("power off"))
    worker = SimpleNamespace(store=store, now=lambda: NOW, hypervisor=lambda _: driver, domain=lambda _: ABSENT)
    return SimpleNamespace(worker=worker, store=store, uuid=made.uuid, done=done)


def test_destroy_writes_tombstone_then_record_then_the_rest(effects):
    assert verbs.destroy(effects.worker, uuid=effects.uuid, generation=7)["success"]
    assert effects.done == ["tombstones", "record.json", "power off", "helper"]
    assert effects.store.tombstones.generation(effects.uuid) == 7
    assert effects.store.read(effects.uuid).phase is Phase.DESTROYING


@pytest.mark.parametrize(("failing", "tombstone"), [("tombstones", None), ("record.json", 7)])
def test_write_that_fails_leaves_the_vm_as_it_is(effects, monkeypatch, failing, tombstone):
    write = effects.store.reserve.write

    def fail(path, data):
        if failing in (path.name, path.parent.name):
            raise OSError(errno.ENOSPC, "full")
        write(path, data)

    monkeypatch.setattr(effects.store.reserve, "write", fail)
    with pytest.raises(OSError, match="full"):
        verbs.destroy(effects.worker, uuid=effects.uuid, generation=7)
    assert effects.store.tombstones.generation(effects.uuid) == tombstone
    assert effects.store.read(effects.uuid).phase is Phase.FETCHING
    assert "power off" not in effects.done


def test_refused_command_leaves_no_tombstone(effects):
    effects.store.update(effects.uuid, lambda known: msgspec.structs.replace(known, generation=9))
    effects.done.clear()
    with pytest.raises(Refused):
        verbs.destroy(effects.worker, uuid=effects.uuid, generation=7)
    assert effects.done == []
