"""Slots limit parallel jobs. Each kind of job has its own slots, and no helper blocks on one."""

import os

import pytest

from worker_service.helper.limits import JOB_KIND, JobLimits, acquire
from worker_service.state.lifecycle import Step


def slots(folder, count=1, inherited=None):
    return JobLimits(folder, count, inherited)


def test_parallel_jobs_never_exceed_the_slots(tmp_path):
    first, second, third = (slots(tmp_path, 2) for _ in range(3))
    with first.slot(Step.BOOT) as one, second.slot(Step.BUILD) as two, third.slot(Step.BOOT) as three:
        assert (one, two, three) == (True, True, False)
        assert third.is_exhausted(Step.BOOT)
    with third.slot(Step.BOOT) as free_again:
        assert free_again
    assert not third.is_exhausted(Step.BOOT)


def test_downloads_do_not_keep_a_save_waiting(tmp_path):
    mine = slots(tmp_path)
    with mine.slot(Step.FETCH) as fetch, mine.slot(Step.SAVE) as save, mine.slot(Step.BOOT) as boot:
        assert (fetch, save, boot) == (True, True, True)


@pytest.mark.parametrize("step", [Step.DESTROY, Step.NOTE_HALT, Step.CLEAN])
def test_cleanup_steps_never_wait_for_a_slot(tmp_path, step):
    assert step not in JOB_KIND
    with slots(tmp_path, 0).slot(step) as seated:
        assert seated
    assert not slots(tmp_path, 0).is_exhausted(step)


def test_inherited_slot_is_used_first(tmp_path):
    fd = acquire(tmp_path, "boot", 1)
    started = slots(tmp_path, 1, ("boot", fd))
    with started.slot(Step.BOOT) as seated:
        assert seated
    assert not started.is_exhausted(Step.BOOT)


@pytest.mark.parametrize("leave", [lambda mine: mine.release(), lambda mine: mine.slot(Step.CLEAN).__enter__()])
def test_unneeded_slot_is_released(tmp_path, leave):
    mine = slots(tmp_path, 1, ("fetch", acquire(tmp_path, "fetch", 1)))
    assert mine.is_exhausted(Step.FETCH)
    leave(mine)
    assert not mine.is_exhausted(Step.FETCH)


def test_dead_process_releases_its_slot(tmp_path):
    child = os.fork()
    if child == 0:
        acquire(tmp_path, "save", 1)
        os._exit(0)
    os.waitpid(child, 0)
    assert not slots(tmp_path).is_exhausted(Step.SAVE)
