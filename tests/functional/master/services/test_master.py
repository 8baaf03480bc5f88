"""A daemon of the master that ends: it gives up the lease, all daemons start again, and `/readyz` reports it."""

import asyncio

import pytest
from sqlalchemy.exc import OperationalError

from master_service.reconciler.pusher import Pusher
from master_service.store.queries import VmQueries
from tests.functional.master.conftest import eventually, running_world
from tests.functional.master.databases import on_both

pytestmark = on_both

BROKEN = OperationalError("SELECT", {}, Exception("disk I/O error"))


@pytest.fixture(autouse=True)
def pause(monkeypatch):
    monkeypatch.setattr("master_service.services.master._AGAIN_S", 0.01)


async def daemons(world):
    answer = await world.http.get("http://master/readyz")
    return answer.status_code, answer.json()["checks"]["daemons"]


def breaks_once(monkeypatch, error):
    """The first run of the pusher ends without any work, once the gate opens."""
    gate, work, runs = asyncio.Event(), Pusher.run, []

    async def run(pusher):
        runs.append(pusher)
        if len(runs) > 1:
            await work(pusher)
            return
        await gate.wait()
        if error is not None:
            raise error

    monkeypatch.setattr(Pusher, "run", run)
    return gate


@pytest.mark.parametrize("error", [BROKEN, None], ids=["by an error", "without one"])
async def test_daemon_that_ends_is_started_again_with_the_others(settings, salt, monkeypatch, error):
    gate = breaks_once(monkeypatch, error)
    async with running_world(settings, salt) as world:
        assert await daemons(world) == (200, {"ok": True, "message": "work"})
        await world.create()
        acquire, again = world.master.lease.acquire, asyncio.Event()

        async def acquire_once():
            await again.wait()
            await acquire()

        monkeypatch.setattr(world.master.lease, "acquire", acquire_once)
        gate.set()
        await eventually(lambda: bool(world.master.fault) and not world.master.lease.held)
        status, checks = await daemons(world)
        assert (status, checks["ok"]) == (503, False)
        assert "Pusher has ended" in checks["message"]
        again.set()
        await world.status("running")
        assert await daemons(world) == (200, {"ok": True, "message": "work"})


async def test_database_failure_after_the_lease_is_outlasted(settings, salt, monkeypatch):
    """Regression: the pusher sent nothing until the master was restarted."""
    vms, failures = VmQueries.vms, []

    async def failing(self, uuids=None):
        if uuids is None and not failures:
            failures.append(BROKEN)
            raise BROKEN
        return await vms(self, uuids)

    monkeypatch.setattr(VmQueries, "vms", failing)
    async with running_world(settings, salt) as world:
        await world.create()
        await world.status("running")
    assert failures == [BROKEN]
