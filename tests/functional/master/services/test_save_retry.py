"""A repeated save: the worker gets one command, the audit follows that job, and the caller gets the outcome."""

import asyncio

import pytest

from tests.functional.master.api.test_audit import lines
from tests.functional.master.conftest import LIMIT_S, eventually
from tests.functional.master.databases import on_both
from worker_service.contract import Code, HaltCause, Status


@pytest.fixture
async def unsaved(world):
    """A VM that failed to save. Workers continue on request only."""
    vm = await world.create()
    await world.status("running")
    await world.ask("shutdown")
    await world.status("halted")
    world.salt.by_itself = False
    fail(world, vm["uuid"])
    await world.status("failed")
    return vm


def fail(world, uuid):
    world.salt.workers["w1"].turn(uuid, Status.FAILED_TO_SAVE, HaltCause.OPERATOR)
    world.salt.report("w1", uuid)


async def retry(world, timeout_s=0.0):
    async with asyncio.timeout(LIMIT_S):
        return await world.http.post("/vmachines/web01/save_retry", params={"timeout_s": timeout_s})


async def outcome(world, number=0):
    line = (await lines(world, verb="save_retry"))[number]
    return line["outcome"], line["detail"]


async def comes_to(world, *expected):
    async def is_so():
        return await outcome(world) == expected

    await eventually(is_so)


async def test_save_retry_is_followed_until_saved(world, unsaved):
    world.salt.lose_returns = True
    assert (await retry(world)).status_code == 202
    (line,) = await lines(world, verb="save_retry")
    assert (line["actor"], line["uuid"], line["outcome"]) == ("admin", unsaved["uuid"], "sent")
    await world.poll()  # it is under way
    assert await outcome(world) == ("sent", "")
    world.salt.settle()
    await comes_to(world, "done", "")


async def test_earlier_failure_is_not_that_of_the_retry(world, unsaved):
    world.salt.lose_jobs = True
    await retry(world)
    for _ in range(2):
        await world.poll()
        world.salt.report("w1", unsaved["uuid"])
    world.salt.heartbeat("w1")
    await world.quiet()
    assert await outcome(world) == ("sent", "")


async def test_save_retry_is_accepted_and_fails_again(world, unsaved):
    await retry(world)
    await comes_to(world, "accepted", "")
    fail(world, unsaved["uuid"])
    await comes_to(world, "failed", "It is failed to save.")
    await retry(world)
    await comes_to(world, "accepted", "")
    assert await outcome(world, 1) == ("failed", "It is failed to save.")


async def test_retry_failure_is_known_by_its_end_alone(world, unsaved):
    """No report said `saving`: the time that the worker gives tells this failure from the last one."""
    world.salt.lose_events = True
    await retry(world)
    await world.poll()
    world.salt.workers["w1"].turn(unsaved["uuid"], Status.FAILED_TO_SAVE, HaltCause.OPERATOR)
    await world.poll()
    assert await outcome(world) == ("failed", "It is failed to save.")


async def test_refusal_of_save_retry_reaches_the_caller(world, unsaved):
    world.salt.workers["w1"].refusals["save_retry"] = Code.NO_ROOM
    answer = await retry(world, timeout_s=3600)
    assert (answer.status_code, answer.json()["code"]) == (409, "conflict")
    assert "w1" in answer.json()["detail"]
    assert "save_retry is refused" in answer.json()["detail"]
    assert answer.json()["hint"]
    assert await outcome(world) == ("refused", "save_retry is refused")
    # A refusal of last time is not one of this time.
    del world.salt.workers["w1"].refusals["save_retry"]
    world.salt.by_itself = True
    answer = await retry(world, timeout_s=3600)
    assert (answer.status_code, answer.json()["done"]) == (200, True)


async def test_waiting_caller_sees_the_second_failure(world, unsaved):
    world.salt.by_itself = False
    call = world.salt.call

    async def and_fail(workers, fun, *more):
        answers = await call(workers, fun, *more)
        if fun == "vmachines.apply":
            fail(world, unsaved["uuid"])
        return answers

    world.salt.call = and_fail
    answer = await retry(world, timeout_s=3600)
    assert (answer.status_code, "It is failed to save." in answer.json()["detail"]) == (409, True)


@on_both
async def test_salt_that_does_not_take_it(world, unsaved):
    world.salt.down = True
    assert (await retry(world)).status_code == 503
    assert await outcome(world) == ("refused", "salt-api does not answer.")
    world.salt.down = False
    await retry(world)
    await comes_to(world, "accepted", "")


@on_both
async def test_job_that_failed_as_a_whole(world, unsaved, monkeypatch):
    monkeypatch.setattr(type(world.salt.workers["w1"]), "apply", lambda *_: "Traceback\nKeyError: 'x'")
    answer = await retry(world, timeout_s=3600)
    assert (answer.status_code, "KeyError: 'x'" in answer.json()["detail"]) == (409, True)


async def test_dry_run_and_master_refusal_ask_no_worker(world, unsaved):
    jobs = len(world.salt.jobs)
    assert (await world.http.post("/vmachines/web01/save_retry", params={"dry_run": 1})).status_code == 200
    world.salt.settle()
    await world.create(name="other", mem_size=64)
    assert (await world.http.post("/vmachines/other/save_retry")).status_code == 409
    assert await lines(world, verb="save_retry") == []
    await world.quiet()
    assert [actions[0]["verb"] for _, actions in world.salt.jobs[jobs:]] == ["start"]
