"""A helper in a burst of starts: requests are answered before a VM boots, with a bounded delay."""

import os
import time
from types import SimpleNamespace

import pytest

from worker_service.helper import step_loop

MINE = SimpleNamespace(name="mine")


@pytest.fixture
def world(tmp_path, monkeypatch):
    """The names of a worker, with a clock that only sleep moves. The burst of requests ends at `calm_at`."""
    made = SimpleNamespace(names=tmp_path, clock=0.0, calm_at=float("inf"))

    def sleep(seconds):
        made.clock += seconds
        if made.clock >= made.calm_at:
            os.utime(tmp_path, (0, time.time() - 60))

    clock = SimpleNamespace(monotonic=lambda: made.clock, sleep=sleep, time=time.time)
    monkeypatch.setattr(step_loop, "time", clock)  # not that of the whole process, which other threads use
    (tmp_path / "mine").symlink_to("uuid")
    os.utime(tmp_path / "mine", (0, time.time() - 120), follow_symlinks=False)
    os.utime(tmp_path, (0, time.time() - 120))
    return made


def waited_s(world):
    step_loop._yield_to_request_burst(SimpleNamespace(store=world), MINE)
    return world.clock


def test_alone_it_begins_at_once(world):
    assert waited_s(world) == 0


def test_step_begins_after_a_moment_without_requests(world):
    os.utime(world.names, (0, time.time() + 3600))
    world.calm_at = 0.2
    assert waited_s(world) == pytest.approx(0.2, abs=0.05)


def test_endless_burst_keeps_it_for_half_a_second(world):
    os.utime(world.names, (0, time.time() + 3600))
    assert waited_s(world) == pytest.approx(0.5, abs=0.1)


def test_removed_vm_delays_no_step(world):
    (world.names / "mine").unlink()
    assert waited_s(world) == 0
