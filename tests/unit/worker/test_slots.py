"""Seats bound how many helpers work at once; each kind of work has its own, and nobody sits and waits for one."""

import os

import pytest

from worker_service.helper.limits import KIND, Seats, take
from worker_service.state.lifecycle import Step


def seats(folder, count=1, inherited=None):
    return Seats(folder, count, inherited)


def test_no_more_at_once_than_there_are_seats(tmp_path):
    first, second, third = (seats(tmp_path, 2) for _ in range(3))
    with first.seat(Step.BOOT) as one, second.seat(Step.BUILD) as two, third.seat(Step.BOOT) as three:
        assert (one, two, three) == (True, True, False)
        assert third.are_taken(Step.BOOT)
    with third.seat(Step.BOOT) as free_again:
        assert free_again
    assert not third.are_taken(Step.BOOT)


def test_downloads_do_not_keep_a_save_waiting(tmp_path):
    mine = seats(tmp_path)
    with mine.seat(Step.FETCH) as fetch, mine.seat(Step.SAVE) as save, mine.seat(Step.BOOT) as boot:
        assert (fetch, save, boot) == (True, True, True)


@pytest.mark.parametrize("step", [Step.DESTROY, Step.NOTE_HALT, Step.CLEAN])
def test_what_frees_things_never_waits(tmp_path, step):
    assert step not in KIND
    with seats(tmp_path, 0).seat(step) as seated:
        assert seated
    assert not seats(tmp_path, 0).are_taken(step)


def test_a_seat_that_a_helper_is_born_with_is_used_first(tmp_path):
    fd = take(tmp_path, "boot", 1)
    born = seats(tmp_path, 1, ("boot", fd))
    with born.seat(Step.BOOT) as seated:
        assert seated
    assert not born.are_taken(Step.BOOT)


@pytest.mark.parametrize("leave", [lambda mine: mine.leave(), lambda mine: mine.seat(Step.CLEAN).__enter__()])
def test_a_seat_that_is_not_needed_is_given_up(tmp_path, leave):
    mine = seats(tmp_path, 1, ("fetch", take(tmp_path, "fetch", 1)))
    assert mine.are_taken(Step.FETCH)
    leave(mine)
    assert not mine.are_taken(Step.FETCH)


def test_the_dead_leave_theirs(tmp_path):
    child = os.fork()
    if child == 0:
        take(tmp_path, "save", 1)
        os._exit(0)
    os.waitpid(child, 0)
    assert not seats(tmp_path).are_taken(Step.SAVE)
