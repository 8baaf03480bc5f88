"""Old files that no other part removes go by their age. Files that are still needed stay."""

import os
import threading
import time

import pytest

from worker_service.core.errors import Refused
from worker_service.fs import locks
from worker_service.state.record_store import RecordStore
from worker_service.watcher.gc import sweep

NOW = time.time()
HOUR, DAY = 3600, 86_400
UUID = "6d6c7f0e-0000-4000-8000-000000000000"


@pytest.fixture
def root(tmp_path):
    RecordStore(tmp_path).prepare()
    for folder in ("images/by-uri", "images/sha256", "images/prefetch", f"vms/{UUID}"):
        (tmp_path / folder).mkdir(parents=True)
    return tmp_path


def put(path, age_s):
    path.write_text("7")
    os.utime(path, (NOW - age_s, NOW - age_s))
    return path


@pytest.mark.parametrize(
    ("name", "age_s", "stays"),
    [
        ("images/by-uri/a.lock", 2 * DAY, False),
        ("images/prefetch/a.lock", 2 * DAY, False),
        ("images/by-uri/a.lock", DAY / 2, True),
        ("images/lock", 99 * DAY, True),
        (f"vms/{UUID}/lock", 99 * DAY, True),
        ("images/by-uri/a.json", 99 * DAY, True),
        ("images/by-uri/a.part", 99 * DAY, True),
        (f"tombstones/{UUID}", 31 * DAY, False),
        (f"tombstones/{UUID}", 29 * DAY, True),
        (".acceleration.json.part", 2 * HOUR, False),
        (f"tombstones/.{UUID}.part", 2 * HOUR, False),
        ("images/by-uri/.a.json.part", 2 * HOUR, False),
        ("images/sha256/.abc.json.part", 2 * HOUR, False),
        (f"vms/{UUID}/.record.json.part", 2 * HOUR, False),
        ("images/by-uri/.a.json.part", HOUR / 2, True),
        (f"vms/{UUID}/hda.sealed.part", 99 * DAY, True),
        (f"vms/{UUID}/.progress.part", 2 * HOUR, False),
    ],
)
def test_old_files_are_removed(root, name, age_s, stays):
    path = put(root / name, age_s)
    sweep(root, NOW)
    assert path.exists() is stays


def test_lock_that_is_held_stays(root):
    path = put(root / "images/by-uri/a.lock", 2 * DAY)
    with locks.locked(path):
        sweep(root, NOW)
        assert path.exists()
    sweep(root, NOW)
    assert not path.exists()


def test_late_command_is_refused_for_a_month(root):
    store = RecordStore(root)
    store.tombstones.write(UUID, 3)
    os.utime(root / "tombstones" / UUID, (NOW - 29 * DAY,) * 2)
    sweep(root, NOW)
    with pytest.raises(Refused, match="was destroyed here"):
        store.tombstones.refuse_late(UUID, 3)


def test_removed_lock_is_held_by_no_process(root):
    """The file is removed between another process's open and lock, which would then hold a lock alone."""
    path = root / "images/by-uri/a.lock"
    inside, most, errors = 0, 0, []
    guard, ends = threading.Lock(), time.monotonic() + 1.5

    def hold():
        nonlocal inside, most
        try:
            while time.monotonic() < ends:
                with locks.locked(path):
                    with guard:
                        inside += 1
                        most = max(most, inside)
                    time.sleep(0)
                    with guard:
                        inside -= 1
        except OSError as err:
            errors.append(err)

    def remove():
        while time.monotonic() < ends:
            locks.remove_lock(path)

    threads = [threading.Thread(target=each) for each in (hold, hold, hold, remove)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (most, errors) == (1, [])
