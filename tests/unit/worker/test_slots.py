"""Seats bound how many helpers work at once; each kind of work has its own, and the dead leave theirs."""

import threading
import time

import pytest

from worker_service.lifecycle import Step
from worker_service.slots import KIND, seat


class NoLongerWanted(Exception):
    pass


def leave():
    raise NoLongerWanted


def test_no_more_work_at_once_than_there_are_seats(tmp_path):
    now, most, guard = 0, 0, threading.Lock()

    def work():
        nonlocal now, most
        with seat(tmp_path, Step.BOOT, 3, lambda: None):
            with guard:
                now += 1
                most = max(most, now)
            time.sleep(0.02)
            with guard:
                now -= 1

    threads = [threading.Thread(target=work) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (now, most) == (0, 3)


def test_downloads_do_not_keep_a_save_waiting(tmp_path):
    with seat(tmp_path, Step.FETCH, 1, leave), seat(tmp_path, Step.SAVE, 1, leave), seat(tmp_path, Step.BOOT, 1, leave):
        pass


def test_who_is_no_longer_wanted_leaves_the_queue(tmp_path):
    with seat(tmp_path, Step.FETCH, 1, leave), pytest.raises(NoLongerWanted), seat(tmp_path, Step.FETCH, 1, leave):
        pass
    with seat(tmp_path, Step.FETCH, 1, leave):  # the seat is free again
        pass


@pytest.mark.parametrize("step", [Step.DESTROY, Step.NOTE_HALT, Step.CLEAN])
def test_what_frees_things_never_waits(tmp_path, step):
    assert step not in KIND
    with seat(tmp_path, step, 0, leave):
        pass
