"""Batches of commands that do not fit into one request to Salt."""

import asyncio
import json

import pytest

from master_service.core.errors import SaltRequestTooLarge
from tests.functional.master.conftest import eventually
from tests.functional.master.fakes import FakeSalt, FakeWorker

LIMIT = 1500
"""Bytes of a request. A few plain VMs fit."""
HELD = [f"vm{number}" for number in range(6)]


class NarrowSalt(FakeSalt):
    """A Salt that takes only small requests."""

    refused = 0

    async def publish(self, workers, fun, kwarg, nonce):
        size = len(json.dumps(kwarg))
        if size > LIMIT:
            self.refused += 1
            raise SaltRequestTooLarge(f"A request of {size} bytes is more than salt-api takes.")
        return await super().publish(workers, fun, kwarg, nonce)


@pytest.fixture
def salt():
    return NarrowSalt(FakeWorker("w1"))


async def test_batch_is_cut_and_the_vm_that_is_too_large_is_named(world):
    gate = world.salt.gates["w1"] = asyncio.Event()
    await world.create(name="first")  # its job holds the others back, so that they go together
    for name in (*HELD, "large"):
        await world.create(name=name, soft_list=[f"package-{n}" for n in range(100)] if name == "large" else [])
    await eventually(lambda: len(world.master.pusher._backoff._states["w1"].held) == len(HELD) + 1)
    gate.set()
    for name in ("first", *HELD):
        await world.status("running", name)
    large = await world.until(lambda vm: "does not fit" in vm["reason"], "large")
    assert "The start of large does not fit into a request to Salt. A request of" in large["reason"]
    assert "max_request_body_size" in large["reason"]
    assert world.salt.refused > 1
    assert max(len(json.dumps({"actions": actions})) for _, actions in world.salt.jobs) <= LIMIT
    assert max(len(actions) for _, actions in world.salt.jobs) > 1
    refused = world.salt.refused
    await world.poll()
    assert world.salt.refused == refused, "it is not sent again until somebody changes it"
    (operation,) = (await world.http.get("/operations?vm=large")).json()
    assert (operation["outcome"], "does not fit" in operation["detail"]) == ("refused", True)
    await world.http.delete("/vmachines/large")
    await eventually(lambda: not world.salt.workers["w1"].vms.get(large["uuid"]))
