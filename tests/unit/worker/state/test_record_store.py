"""Records on disk: durable, with exclusive names, and locks that end with their owner."""

import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import pytest

from worker_service.contract import Code, Progress, Spec
from worker_service.core.errors import NotFound, Refused
from worker_service.fs import atomic_files
from worker_service.state.record import Phase, Record, new_uuid
from worker_service.state.record_store import RecordStore

REPO = Path(__file__).parents[4]
NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


@pytest.fixture
def store(tmp_path):
    made = RecordStore(tmp_path / "data")
    made.prepare()
    return made


def record(name="web01", **changes):
    spec = Spec(name=name, hda_image="file:///a")
    made = Record(uuid=new_uuid(), spec=spec, generation=1, phase=Phase.FETCHING, phase_since=NOW, created_at=NOW)
    return msgspec.structs.replace(made, **changes)


def bump(current):
    return msgspec.structs.replace(current, generation=current.generation + 1)


def test_record_is_found_by_uuid_and_by_name(store):
    made = record()
    assert store.create(made) is None
    assert store.find(uuid=made.uuid) == store.find(name="web01") == made
    assert list(store.all()) == [made]


def test_uuid_wins_where_both_are_given(store):
    first, second = record("a"), record("b")
    store.create(first)
    store.create(second)
    assert store.find(uuid=first.uuid, name="b") == first


def test_name_is_taken_once(store):
    first = record()
    store.create(first)
    assert store.create(record()) == first
    assert list(store.all()) == [first]


def test_uuid_is_taken_once_and_the_loser_leaves_no_name(store):
    first = record("a")
    store.create(first)
    assert store.create(record("b", uuid=first.uuid)) == first
    with pytest.raises(NotFound):
        store.find(name="b")


def test_parallel_creates_make_one_record(store):
    results = []
    threads = [threading.Thread(target=lambda: results.append(store.create(record()))) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    winner = list(store.all())
    assert len(winner) == 1
    assert results.count(None) == 1
    assert all(result == winner[0] for result in results if result is not None)


def test_name_that_a_crash_left_behind_is_free_again(store, monkeypatch):
    monkeypatch.setattr("worker_service.state.record_store._CREATION_S", 0.05)
    (store.names / "web01").symlink_to(new_uuid())
    made = record()
    assert store.create(made) is None
    assert store.find(name="web01") == made


def test_refused_admission_leaves_nothing(store):
    def full():
        raise Refused("no room", code=Code.NO_ROOM)

    with pytest.raises(Refused):
        store.create(record(), full)
    assert list(store.all()) == []
    assert store.create(record()) is None


def test_admissions_come_one_after_the_other(store):
    most, now = 0, 0

    def admit():
        nonlocal most, now
        now += 1
        most = max(most, now)
        sum(1 for _ in store.all())
        now -= 1

    threads = [threading.Thread(target=store.create, args=(record(f"vm-{n}"), admit)) for n in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (most, len(list(store.all()))) == (1, 20)


def test_record_changed_by_another_process_is_read_again(store):
    """Parsed records are remembered: also those of one size that follow each other faster than a file's clock ticks."""
    made = record()
    store.create(made)
    other = RecordStore(store.root)
    path = store.folder(made.uuid) / "record.json"
    for number in range(2, 9):
        assert store.read(made.uuid).generation == next(iter(store.all())).generation == number - 1
        other.update(made.uuid, bump)
    old = time.time() - 10
    os.utime(path, (old, old))  # now it is remembered
    assert store.read(made.uuid) == store.read(made.uuid)
    other.update(made.uuid, bump)
    assert store.read(made.uuid).generation == next(iter(store.all())).generation == 9


def test_updates_of_many_processes_are_not_lost(store):
    made = record()
    store.create(made)
    code = (
        "import sys, msgspec; from pathlib import Path; from worker_service.state.record_store import RecordStore\n"
        "store = RecordStore(Path(sys.argv[1]))\n"
        "for _ in range(25):\n"
        "    store.update(sys.argv[2], lambda r: msgspec.structs.replace(r, generation=r.generation + 1))\n"
    )
    argv = [sys.executable, "-c", code, str(store.root), made.uuid]
    processes = [subprocess.Popen(argv) for _ in range(4)]
    assert [process.wait() for process in processes] == [0] * 4
    assert store.read(made.uuid).generation == 101


def test_fields_of_a_newer_version_survive_an_update(store):
    made = record()
    store.create(made)
    path = store.folder(made.uuid) / "record.json"
    raw = msgspec.json.decode(path.read_bytes())
    atomic_files.write(path, msgspec.json.encode({**raw, "from_the_future": {"x": 1}}))
    store.update(made.uuid, bump)
    assert msgspec.json.decode(path.read_bytes())["from_the_future"] == {"x": 1}
    assert store.read(made.uuid).generation == 2


def test_refusal_inside_an_update_changes_nothing(store):
    made = record()
    store.create(made)

    def refuse(_current):
        raise Refused("no")

    with pytest.raises(Refused):
        store.update(made.uuid, refuse)
    assert store.read(made.uuid) == made


def test_work_lock_is_held_by_one_and_freed_by_death(store):
    made = record()
    store.create(made)
    with store.work_lock(made.uuid) as mine:
        assert mine
        assert store.lock_for_helper(made.uuid) is None
    code = (
        "import sys, time; from pathlib import Path; from worker_service.state.record_store import RecordStore\n"
        "with RecordStore(Path(sys.argv[1])).work_lock(sys.argv[2]) as mine:\n"
        "    print(mine, flush=True); time.sleep(60)\n"
    )
    argv = [sys.executable, "-c", code, str(store.root), made.uuid]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout.readline().strip() == "True"
        assert store.lock_for_helper(made.uuid) is None
        holder.kill()
        holder.wait()
    assert store.lock_for_helper(made.uuid) is not None


def test_before_write_sees_the_old_record_still_in_place(store):
    made, observed = record(), []
    store.create(made)
    store.update(
        made.uuid,
        bump,
        before_write=lambda *pair: observed.append([*(r.generation for r in pair), store.read(made.uuid)]),
    )
    assert observed == [[1, 2, made]]

    def refuse(_before, _after):
        raise Refused("No.")

    with pytest.raises(Refused):
        store.update(made.uuid, bump, before_write=refuse)
    assert store.read(made.uuid).generation == 2
    store.update(made.uuid, lambda known: known, before_write=refuse)  # nothing changes, so nothing is written


def test_tombstone_refuses_equal_and_older_generations(store):
    store.tombstones.write("u", 3)
    for late in (None, 1, 3):
        with pytest.raises(Refused) as refused:
            store.tombstones.refuse_late("u", late)
        assert refused.value.code is Code.DESTROYED
    store.tombstones.refuse_late("u", 4)
    assert store.tombstones.recent() == {"u": 3}


def test_removal_takes_the_folder_and_the_name(store):
    made = record()
    store.create(made)
    (store.folder(made.uuid) / "hda.qcow2").write_text("x")
    store.remove(made)
    assert list(store.vms.iterdir()) == []
    assert list(store.names.iterdir()) == []
    store.remove(made)  # again: this is no change


def test_failed_to_save_folder_belongs_to_the_vm_and_stays(store):
    made = record()
    store.create(made)
    (store.folder(made.uuid) / "hda.flat.qcow2").write_text("precious")
    moved = store.folders.move_to_failed(made, NOW)
    assert moved.name == f"web01-{made.uuid}-20260102T030405Z"
    assert store.find(name="web01") == made
    store.update(made.uuid, bump)
    assert store.folders.move_to_failed(made, NOW) == moved  # again: it is there
    store.remove(made)
    assert (moved / "hda.flat.qcow2").read_text() == "precious"
    assert list(store.all()) == []


def test_folder_comes_back_when_its_disks_are_saved_after_all(store):
    made = record()
    store.create(made)
    store.folders.move_to_failed(made, NOW)
    store.folders.restore_from_failed(made.uuid)
    assert store.folder(made.uuid) == store.vms / made.uuid


def test_progress_is_shown_and_withdrawn(store):
    made = record()
    store.create(made)
    assert store.progress(made.uuid) is None
    store.report(made.uuid, Progress(phase="fetch hda", done=1, total=2))
    assert store.progress(made.uuid) == Progress(phase="fetch hda", done=1, total=2)
    store.report(made.uuid, None)
    assert store.progress(made.uuid) is None
    store.report("gone", Progress(phase="fetch hda"))  # its VM was destroyed meanwhile, which is no error


def test_full_disk_leaves_the_old_content(store, monkeypatch, tmp_path):
    path = tmp_path / "file"
    atomic_files.write(path, b"old")
    monkeypatch.setenv("SALTERN_FAILPOINT", "files.before_rename=enospc")
    monkeypatch.setattr("worker_service.core.failpoints._passed", {})
    with pytest.raises(OSError, match="No space"):
        atomic_files.write(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.glob(".*part")) == []


def test_leftover_of_a_crash_is_removed_by_the_next_write(tmp_path):
    path = tmp_path / "file"
    code = (
        "import sys, pathlib; from worker_service.fs import atomic_files\n"
        "atomic_files.write(pathlib.Path(sys.argv[1]), b'half')"
    )
    for _ in range(2):
        environment = {**os.environ, "SALTERN_FAILPOINT": "files.before_rename=kill"}
        argv = [sys.executable, "-c", code, str(path)]
        assert subprocess.run(argv, check=False, cwd=REPO, env=environment, capture_output=True).returncode == -9
        assert [each.name for each in tmp_path.iterdir()] == [".file.part"]
    atomic_files.write(path, b"whole")
    assert [each.name for each in tmp_path.iterdir()] == ["file"]
    assert path.read_bytes() == b"whole"


def test_planted_link_is_not_written_through(tmp_path):
    (tmp_path / "victim").write_bytes(b"precious")
    (tmp_path / ".file.part").hardlink_to(tmp_path / "victim")
    atomic_files.write(tmp_path / "file", b"new")
    (tmp_path / ".file.part").symlink_to(tmp_path / "victim")
    with pytest.raises(OSError, match="symbolic"):
        atomic_files.write(tmp_path / "file", b"newer")
    assert (tmp_path / "victim").read_bytes() == b"precious"
    assert (tmp_path / "file").read_bytes() == b"new"


def test_parallel_writes_leave_whole_content(tmp_path):
    """Each content is whole at any moment, and no file of another process counts as a leftover."""
    path, whole = tmp_path / "file", {bytes([65 + n]) * 10_000 for n in range(8)}
    with ThreadPoolExecutor(8) as pool:
        writing = [pool.submit(atomic_files.write, path, data) for data in sorted(whole) * 20]
        while not all(each.done() for each in writing):
            if path.exists():
                assert path.read_bytes() in whole
        assert [each.exception() for each in writing] == [None] * len(writing)
    assert [each.name for each in tmp_path.iterdir()] == ["file"]


def test_rename_new_never_replaces(tmp_path):
    (tmp_path / "a").write_text("a")
    (tmp_path / "b").write_text("b")
    with pytest.raises(FileExistsError):
        atomic_files.rename_new(tmp_path / "a", tmp_path / "b")
    atomic_files.rename_new(tmp_path / "a", tmp_path / "c")
    assert (tmp_path / "c").read_text() == "a"
