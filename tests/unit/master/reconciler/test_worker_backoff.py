"""The back-off of each worker: which commands it defers, for how long, and what resets it."""

import math

import pytest

from master_service.planning.decision import backoff as retry_after
from master_service.reconciler.worker_backoff import WorkerBackoff
from tests.unit.master.builders import SETTINGS

GATHER = SETTINGS.retry_base_s / 2


class Clock:
    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def backoff(clock):
    return WorkerBackoff(SETTINGS, clock)


def step(n, worker="w1"):
    return retry_after(n, worker, SETTINGS).total_seconds()


def send(backoff, *uuids, failed=False, worker="w1", repeated=False):
    """Send one job. Deferred commands have to be released first."""
    assert backoff.defer(worker, uuids, repeated=repeated)[0] == set()
    backoff.sending(worker)
    return backoff.sent(worker, failed=failed)


def test_steps_grow_up_to_a_bound_and_differ_between_workers():
    steps = [step(n) for n in range(12)]
    assert steps == sorted(steps)
    assert (steps[0], max(steps)) == (0, SETTINGS.retry_cap_s)
    assert len({step(1, f"w{n}") for n in range(20)}) > 10


def test_unknown_worker_gets_its_command_at_once(backoff):
    for uuid in "abc":
        send(backoff, uuid)
    assert not backoff.is_failing("w1")


def test_repeated_commands_wait_for_each_other_and_go_together(backoff, clock):
    send(backoff, "a", "b", "c")
    backoff.reset("w1")  # it has refused them, say
    clock.now += 10
    assert backoff.defer("w1", ["a"], repeated=True) == ({"a"}, clock.now + GATHER)
    clock.now += GATHER / 2
    assert backoff.defer("w1", ["b"], repeated=True) == ({"a", "b"}, clock.now + GATHER / 2)
    assert backoff.reset("w1") == set()  # its silence deferred no command
    clock.now += GATHER / 2
    send(backoff, "a", "b", "c", repeated=True)
    assert not backoff.is_failing("w1")


@pytest.mark.parametrize("failed", [True, False], ids=["Salt takes no job", "nothing is heard"])
def test_jobs_of_a_failing_worker_are_ever_further_apart(backoff, clock, failed):
    send(backoff, "a", "b", failed=failed)
    last = clock.now
    for failures in range(1, 9):
        clock.now = last + step(failures) - 1
        held, due = backoff.defer("w1", ["a"], repeated=True)
        assert (held, due) == ({"a"}, max(last + step(failures), clock.now + GATHER))
        clock.now = due
        send(backoff, "a", "b", failed=failed, repeated=True)
        last = due
    assert backoff.is_failing("w1")
    # Others know nothing of it.
    assert not backoff.is_failing("w2")
    send(backoff, "c", worker="w2")


def test_one_silence_is_one_failure_for_many_commands(backoff, clock):
    send(backoff, *"abcdef")
    clock.now += 10
    dues = {backoff.defer("w1", [uuid], repeated=True)[1] for uuid in "abcdef"}
    assert dues == {max(1000 + step(1), clock.now + GATHER)}


def test_new_command_waits_one_step_and_takes_others_along(backoff, clock):
    send(backoff, "a", "b")
    for failures in range(1, 6):
        clock.now += step(failures) + GATHER
        backoff.defer("w1", ["a", "b"], repeated=True)
        clock.now += GATHER
        send(backoff, "a", "b", repeated=True)
    last = clock.now
    clock.now += step(1) - 1
    assert backoff.defer("w1", ["a"], repeated=True)[1] > last + step(4)
    assert backoff.defer("w1", ["new"], repeated=False) == ({"a", "new"}, last + step(1))
    # Due: a command for another reason does not leave them behind.
    clock.now += 1
    assert backoff.defer("w1", ["newer"], repeated=False) == ({"a", "new", "newer"}, clock.now)
    send(backoff, "a", "new", "newer")
    # A later change, long after the last job, goes at once.
    clock.now += step(1)
    send(backoff, "newest")


def test_whatever_is_heard_ends_it(backoff, clock):
    send(backoff, "a", failed=True)
    clock.now += 1
    assert backoff.defer("w1", ["a", "b"], repeated=False)[0] == {"a", "b"}
    assert backoff.reset("w1") == {"a", "b"}
    assert not backoff.is_failing("w1")
    send(backoff, "a", "b")
    assert backoff.reset("w1") == set()
    assert backoff.reset("unknown") == set()


def test_one_job_at_a_time_is_handed_to_salt_for_a_worker(backoff):
    backoff.defer("w1", ["a"], repeated=False)
    backoff.sending("w1")
    assert backoff.defer("w1", ["b"], repeated=False) == ({"b"}, math.inf)
    assert backoff.defer("w1", ["c"], repeated=True) == ({"b", "c"}, math.inf)
    assert backoff.reset("w1") == set()
    send(backoff, "d", worker="w2")
    assert backoff.sent("w1", failed=False) == {"b", "c"}
    send(backoff, "b", "c")
