"""Folders moved to failed_to_save and back: whole, also to another filesystem."""

import shutil
import tempfile
import threading
import time
from pathlib import Path

import msgspec
import pytest

from tests.unit.worker.state.test_record_store import NOW, bump, record
from worker_service.fs import locks
from worker_service.state.record_store import RecordStore


@pytest.fixture
def far(tmp_path):
    """A store whose failed_to_save is on another filesystem."""
    (tmp_path / "data").mkdir()
    with tempfile.TemporaryDirectory(dir="/dev/shm") as memory:
        (tmp_path / "data/failed_to_save").symlink_to(memory)
        made = RecordStore(tmp_path / "data")
        made.prepare()
        assert made.failed.stat().st_dev != made.vms.stat().st_dev
        yield made


DISK = b"precious" + bytes(3 << 20) + b"end"


def unsaved(store):
    made = record()
    store.create(made)
    folder = store.folder(made.uuid)
    (folder / "hda.flat.qcow2").write_bytes(DISK)
    (folder / "hda.flat.qcow2").chmod(0o400)
    (folder / "screen").mkdir()
    return made, folder


def files(base):
    return sorted(str(path.relative_to(base)) for path in base.rglob("*") if path.is_file())


def test_folder_is_copied_whole_to_another_filesystem(far):
    made, folder = unsaved(far)
    moved = far.folders.move_to_failed(made, NOW)
    assert not folder.exists()
    disk = moved / "hda.flat.qcow2"
    assert (disk.read_bytes(), disk.stat().st_mode & 0o777) == (DISK, 0o400)
    assert disk.stat().st_blocks * 512 < len(DISK) // 2  # its holes are holes
    assert list(far.all()) == [made]
    far.update(made.uuid, bump)
    assert far.folders.restore_from_failed(made.uuid) == folder
    assert (folder / "hda.flat.qcow2").read_bytes() == DISK
    assert far.read(made.uuid).generation == 2
    assert files(far.failed) == []
    assert [path.name for path in far.vms.iterdir()] == [made.uuid]


def test_copy_that_reads_back_differently_is_none(far, monkeypatch):
    made, folder = unsaved(far)
    monkeypatch.setattr("worker_service.fs.verify.digest_on_disk", lambda fd, expected: "another")
    with pytest.raises(OSError, match="reads back differently"):
        far.folders.move_to_failed(made, NOW)
    assert (folder / "hda.flat.qcow2").read_bytes() == DISK
    assert files(far.failed) == []


@pytest.mark.parametrize("ending", ["moved again", "brought back", "removed"])
def test_move_that_was_cut_off_leaves_one_vm(far, monkeypatch, ending):
    made, folder = unsaved(far)
    monkeypatch.setattr("worker_service.core.failpoints._passed", {})
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SALTERN_FAILPOINT", "failed.copied=eio")  # as good as a kill: nothing is done after it
        with pytest.raises(OSError, match=r"failed\.copied"):
            far.folders.move_to_failed(made, NOW)
    assert list(far.all()) == [made]
    assert far.folder(made.uuid) == folder
    if ending == "moved again":
        moved = far.folders.move_to_failed(made, NOW)
        assert {Path(name).parent.name for name in files(far.failed)} == {moved.name}
        assert (moved / "hda.flat.qcow2").read_bytes() == DISK
        assert not folder.exists()
    elif ending == "brought back":
        assert far.folders.restore_from_failed(made.uuid) == folder
        assert files(far.failed) == []
    else:
        far.remove(made)
        assert (files(far.failed), files(far.vms)) == ([], [])


def test_update_waits_for_a_record_that_moves(far):
    made, folder = unsaved(far)
    with locks.locked_folder(folder):
        thread = threading.Thread(target=far.update, args=(made.uuid, bump))
        thread.start()
        time.sleep(0.2)
        moved = far.failed / f"web01-{made.uuid}-later"
        shutil.copytree(folder, moved)
        folder.rename(folder.with_name(".gone"))
    thread.join()
    assert far.read(made.uuid).generation == 2
    assert msgspec.json.decode((moved / "record.json").read_bytes())["generation"] == 2


def test_remains_of_a_destroyed_vm_are_reported(far):
    made, _ = unsaved(far)
    moved = far.folders.move_to_failed(made, NOW)
    assert list(far.destroyed_unsaved()) == []
    far.remove(made)
    assert list(far.destroyed_unsaved()) == [(moved, made)]
