"""Long requests of one user: so many at a time, and a place is free again when one ends."""

import asyncio
from contextlib import AsyncExitStack

import pytest

from master_service.policy.permissions import Role
from tests.functional.master.conftest import LIMIT_S, eventually
from tests.functional.master.databases import on_both


@pytest.fixture
def settings(settings):
    return settings.model_copy(update={"streams_per_user": 2, "waits_per_user": 2})


async def test_user_reads_so_many_streams(served):
    await served.person("vera", Role.VIEWER)
    await served.person("vito", Role.VIEWER)

    def stream(name):
        return served.http.stream("GET", "/events", headers=served.of(name))

    async with AsyncExitStack() as held:
        for _ in range(2):
            assert (await held.enter_async_context(stream("vera"))).status_code == 200
        async with stream("vera") as third:
            assert third.status_code == 429
            assert (await third.aread()).startswith(b'{"type"')
        async with stream("vito") as other:
            assert other.status_code == 200
    await eventually(lambda: not served.master.streams._taken)
    async with stream("vera") as again:
        assert again.status_code == 200


@on_both
async def test_user_waits_for_so_many_verbs(world):
    await world.person("uma")
    for name in ("a", "b", "c", "d"):
        answer = await world.http.post(
            "/vmachines", json={"name": name, "hda_image": "file:/a", "mem_size": 4}, headers=world.of("uma")
        )
        assert answer.status_code == 201
        await world.status("running", name)
    world.salt.gates["w1"] = gate = asyncio.Event()  # from now on nothing has an effect

    def destroy(name, who, **query):
        return world.http.post(f"/vmachines/{name}/destroy", params=query, headers=world.of(who))

    waiting = [asyncio.create_task(destroy(name, "uma", timeout_s=LIMIT_S)) for name in ("a", "b")]
    await eventually(lambda: world.master.waits._taken["uma"] == 2)
    refused = await destroy("c", "uma")
    assert (refused.status_code, refused.json()["code"]) == (429, "too_many")
    assert (await world.show("c"))["desired"] == "running"  # nothing was changed
    assert (await destroy("c", "uma", timeout_s=0)).status_code == 202  # who does not wait takes no place
    await world.person("otto", Role.OPERATOR)
    other = asyncio.create_task(destroy("d", "otto", timeout_s=LIMIT_S))
    await eventually(lambda: world.master.waits._taken["otto"] == 1)
    gate.set()
    assert [(await each).status_code for each in (*waiting, other)] == [200] * 3
    assert not world.master.waits._taken
