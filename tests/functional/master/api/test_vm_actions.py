"""Blocking verbs: they report what was observed, and nothing else."""

import asyncio

import pytest

from master_service.policy.permissions import Role
from tests.functional.master.conftest import running_world
from tests.functional.master.databases import on_both
from worker_service.contract import Code


async def request(world, verb, **query):
    """(status code, whether it is done, outcome, message) of a verb."""
    answer = await world.http.post(f"/vmachines/web01/{verb}", params=query)
    message = answer.json()
    return answer.status_code, message["done"], message["outcome"], message["message"]


async def test_status_from_before_the_command_is_not_its_effect(world):
    """It may be suspended by now: the worker got the first command, or will."""
    await world.create()
    await world.status("running")
    world.salt.lose_jobs = True
    assert (await request(world, "suspend", timeout_s=0.01))[:3] == (202, False, None)
    assert (await request(world, "resume", timeout_s=0.01))[:3] == (202, False, None)
    assert (await request(world, "resume", timeout_s=0.01))[:3] == (202, False, None)


async def test_unseen_resume_keeps_suspend_pending(world):
    await world.create()
    await world.status("running")
    await world.ask("suspend")
    world.salt.lose_jobs = True
    for verb in ("resume", "suspend", "suspend"):
        assert (await request(world, verb, timeout_s=0.01))[:3] == (202, False, None)


async def test_last_report_of_a_silent_worker_is_not_news(world):
    await world.create()
    await world.status("running")
    assert (await request(world, "resume"))[:3] == (200, True, "done")
    world.salt.silent.add("w1")
    await world.poll()
    code, done, _, message = await request(world, "resume", timeout_s=0.01)
    assert (code, done, "w1 is unreachable since" in message) == (202, False, True)


async def test_permanent_refusal_is_reported_at_once(world):
    await world.create()
    await world.status("running")
    world.salt.workers["w1"].refusals["suspend"] = Code.POLICY
    code, done, outcome, message = await request(world, "suspend", timeout_s=3600)
    assert (code, done, outcome) == (200, False, "refused")
    assert message == "suspend of web01: w1 refuses it: suspend is refused. It is running."


@on_both
async def test_refused_destroy_is_sent_again_and_says_so(impatient, salt):
    async with running_world(impatient, salt) as world:
        await world.create()
        await world.status("running")
        uuid = (await world.show())["uuid"]
        salt.workers["w1"].refusals["destroy"] = Code.POLICY
        code, done, outcome, message = await request(world, "destroy", timeout_s=3600)
        assert (code, done, outcome) == (200, False, "refused")
        assert message == (
            "destroy of web01: w1 refuses it: destroy is refused. It is destroying. "
            "The command is sent again until the VM is gone."
        )
        salt.workers["w1"].refusals.clear()
        await world.status("destroyed", uuid)


async def test_change_by_another_user_ends_the_wait(world):
    await world.create()
    await world.status("running")
    gate = world.salt.gates["w1"] = asyncio.Event()
    waiting = asyncio.create_task(request(world, "suspend", timeout_s=3600))
    await world.until(lambda vm: vm["desired"] == "paused")
    await world.ask("shutdown")
    code, done, outcome, message = await waiting
    assert (code, done, outcome) == (200, False, "superseded")
    assert message == "suspend of web01: superseded: its desired state is now halted. It is running."
    gate.set()


@pytest.mark.parametrize("verb", ["suspend", "destroy", "start", "shutdown"])
async def test_unfinished_verb_names_its_operation(world, verb):
    await world.create()
    await world.status("running")
    world.salt.lose_jobs = True
    query = {} if verb in ("start", "shutdown") else {"timeout_s": 0}
    key = {"Idempotency-Key": "k1"}
    answer = await world.http.post(f"/vmachines/web01/{verb}", params=query, headers=key)
    assert answer.status_code == 202
    place = answer.headers["Location"]
    assert place.startswith("/api/v1/operations/")
    operation = (await world.http.get(f"http://master{place}")).json()
    assert (operation["verb"], operation["name"], operation["actor"]) == (verb, "web01", "admin")
    # A start of what runs already is nothing new.
    assert operation["in_progress"] is (verb != "start")
    again = await world.http.post(f"/vmachines/web01/{verb}", params=query, headers=key)
    assert (again.headers["Idempotency-Replayed"], again.headers["Location"]) == ("true", place)


async def test_finished_verb_names_no_operation(world):
    await world.create()
    await world.status("running")
    answer = await world.http.post("/vmachines/web01/suspend")
    assert (answer.status_code, "Location" in answer.headers) == (200, False)


@on_both
async def test_parallel_callers_get_their_own_operations(world):
    for name in ("uma", "otto"):
        await world.person(name, Role.OPERATOR)
    await world.create()
    await world.status("running")
    world.salt.lose_jobs = True

    async def ask(name, verb):
        answer = await world.http.post(f"/vmachines/web01/{verb}", headers=world.of(name))
        operation = (await world.http.get(f"http://master{answer.headers['Location']}")).json()
        return operation["actor"], operation["verb"]

    commands = [(name, verb) for name in ("uma", "otto") for verb in ("shutdown", "start")]
    assert await asyncio.gather(*(ask(*command) for command in commands)) == commands
