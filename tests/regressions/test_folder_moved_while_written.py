"""Regression: a second destroy met the end of the first, and was told that the worker's disk had failed."""

import threading
from concurrent.futures import ThreadPoolExecutor

import msgspec
import pytest

from tests.unit.worker.state.test_record_store import NOW, bump, record
from worker_service.core.errors import NotFound
from worker_service.state.record_store import RecordStore

MOVES = {
    "removed": lambda store, made: store.remove(made),
    "moved to failed_to_save": lambda store, made: store.folders.move_to_failed(made, NOW),
    "moved back": lambda store, made: store.folders.restore_from_failed(made.uuid),
    "destroyed there": lambda store, made: store.remove(made),
}
ON_FAILED = ("moved back", "destroyed there")


@pytest.fixture
def store(tmp_path):
    made = RecordStore(tmp_path / "data")
    made.prepare()
    return made


def begun(store, move):
    made = record()
    store.create(made)
    if move in ON_FAILED:
        store.folders.move_to_failed(made, NOW)
    return made


@pytest.mark.parametrize("move", MOVES)
def test_folder_stays_until_its_record_is_written(store, move):
    made = begun(store, move)
    with ThreadPoolExecutor() as pool:
        moves = []

        def change(current):
            moves.append(pool.submit(MOVES[move], store, made))
            threading.Event().wait(0.05)  # without a lock, the folder is gone by now
            assert not moves[0].done()
            return bump(current)

        assert store.update(made.uuid, change).generation == 2
        moves[0].result()
    left = [found for _, found in store.destroyed_unsaved()] or list(store.all())
    assert left == ([] if move == "removed" else [msgspec.structs.replace(made, generation=2)])


@pytest.mark.parametrize("move", MOVES)
def test_folder_moved_before_its_lock_is_found_again(store, monkeypatch, move):
    made = begun(store, move)
    there = store.folder(made.uuid)
    MOVES[move](store, made)
    found = [there]
    monkeypatch.setattr(store, "folder", lambda uuid: found.pop() if found else store.folders.find(uuid))
    if move in ("removed", "destroyed there"):
        with pytest.raises(NotFound):
            store.update(made.uuid, bump)
    else:
        assert store.update(made.uuid, bump).generation == 2
    assert [path for path in store.vms.iterdir() if not path.is_dir()] == []
