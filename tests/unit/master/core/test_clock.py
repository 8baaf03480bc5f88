"""Jumps of the wall clock: each is reported once, a slow adjustment is none, and none delays a poll."""

import asyncio
import types
from datetime import UTC, datetime, timedelta

import pytest

from master_service.core.clock import Jumps
from master_service.reconciler.poller import Poller
from tests.scenarios import virtual_time
from tests.scenarios.virtual_time import VirtualLoop
from tests.unit.master.builders import SETTINGS


class Wall:
    """A wall clock beside the loop's."""

    def __init__(self):
        self.apart = timedelta()

    def __call__(self):
        passed = timedelta(seconds=asyncio.get_running_loop().time())
        return datetime(2026, 1, 1, tzinfo=UTC) + self.apart + passed


@pytest.mark.parametrize(
    ("actor", "observed"),
    [(0, 0), (0.4, 0), (-0.4, 0), (-1.5, -1.5), (86400, 86400), (-86400, -86400)],
)
def test_jump_is_reported_once(actor, observed):
    async def look():
        wall = Wall()
        jumps = Jumps(wall)
        found = [jumps.seconds()]
        await asyncio.sleep(300)
        wall.apart += timedelta(seconds=actor)
        found.append(jumps.seconds())
        await asyncio.sleep(300)
        return [*found, jumps.seconds()]

    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        assert runner.run(look()) == pytest.approx([0, observed, 0])


@pytest.mark.parametrize("stops", [(3, 0), (0, 3), (3, 3)], ids=["before", "after", "both"])
def test_process_that_is_stopped_while_it_looks_sees_no_jump(stops):
    async def look():
        loop, wall, stopped = asyncio.get_running_loop(), Wall(), [0, 0]

        def clock():
            loop.at += stopped[0]
            observed = wall()
            loop.at += stopped[1]
            return observed

        jumps, found = Jumps(clock), []
        for stopped[:] in ((0, 0), stops, (0, 0), stops):
            await asyncio.sleep(5)
            found.append(jumps.seconds())
        return found

    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        assert runner.run(look()) == [0, 0, 0, 0]


def test_small_steps_do_not_add_up():
    async def look():
        wall = Wall()
        jumps = Jumps(wall)
        found = []
        for _ in range(100):
            wall.apart += timedelta(milliseconds=100)
            await asyncio.sleep(5)
            found.append(jumps.seconds())
        return found

    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        assert set(runner.run(look())) == {0.0}


@pytest.mark.parametrize("days", [-1, 1, -40_000, 40_000])
def test_polls_go_on_as_often_as_before(monkeypatch, days):
    """APScheduler uses the wall clock: without a hint the next poll would be a day away."""
    virtual_time.install(monkeypatch)
    polls = []

    async def poll(_self):
        polls.append(asyncio.get_running_loop().time())

    monkeypatch.setattr(Poller, "_poll_and_log", poll)

    async def work():
        loop = asyncio.get_running_loop()
        poller = Poller(types.SimpleNamespace(settings=SETTINGS, clock=virtual_time.clock), None)
        working = asyncio.create_task(poller.run())
        await asyncio.sleep(700)
        loop.jumped += timedelta(days=days)
        await asyncio.sleep(1300)
        working.cancel()
        await asyncio.gather(working, return_exceptions=True)

    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        runner.run(work())
    first, _, _, hint, *after = polls
    assert first < 1
    assert 700 < hint < 710  # at once: every stored time may be wrong now
    assert [round(at - hint) for at in after] == [300, 600, 900, 1200]
