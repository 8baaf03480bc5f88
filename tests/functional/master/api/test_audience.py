"""Who may not see the workers learns no numbers of theirs, from any answer; operators learn them from all."""

import asyncio
import json
import re

import msgspec
import pytest

from master_service.policy.permissions import Role
from tests.functional.master.conftest import SPEC
from tests.functional.master.databases import on_both
from tests.functional.master.fakes import ROOMY, FakeSalt, FakeWorker
from worker_service.contract import Code, Status

NUMBERS = re.compile(r"(?<![\w.-])(4321|8765|9999)(?![\w-])")
"""The room on the worker, its size, and what its refusals name; not these digits in a UUID or in a time."""
FULL = "'web01' needs 64 MiB of memory; 4321 of 8765 MiB are free here. Taken: on 2 (9999 processors, 1 MiB)."


@pytest.fixture
def salt():
    return FakeSalt(FakeWorker("w1", capacity=msgspec.structs.replace(ROOMY, mem_total=8765, mem_free=4321)))


async def answers(world, uuid, headers):
    """The text of every answer that one user may read about a VM."""
    paths = ["/vmachines", f"/vmachines/{uuid}", f"/vmachines/{uuid}/history", "/operations", "/audit", "/notices"]
    found = {path: (await world.http.get(path, headers=headers)).text for path in paths}
    body = SPEC | {"name": "more", "mem_size": 5000}
    found["dry run"] = (await world.http.post("/vmachines?dry_run=true", json=body, headers=headers)).text
    found["too large"] = (await world.http.post("/vmachines", json=body | {"mem_size": 8766}, headers=headers)).text
    verb = await world.http.post(f"/vmachines/{uuid}/suspend?timeout_s=0", headers=headers)
    return found | {"verb": verb.text}


@pytest.mark.parametrize(
    ("text", "is_a_number"),
    [
        (FULL, True),
        ('{"mem_total":8765,"mem_free":4321}', True),
        ('{"owner_id":"41724321b2b78765","created_at":"2026-11-30T11:07:08.199995Z"}', False),
        ('{"uuid":"846e8765-4321-4a80-9999-f70859999b8c"}', False),
    ],
)
def test_ids_and_times_are_no_numbers(text, is_a_number):
    assert bool(NUMBERS.search(text)) == is_a_number


def assert_hidden(found):
    assert {where: text for where, text in found.items() if NUMBERS.search(text)} == {}
    for text in found.values():
        assert not re.search("[\ue000-\ue002]|ue00[012]", text)


@on_both
async def test_numbers_of_a_vm_without_a_worker(world):
    await world.person("uma")
    await world.person("ola", Role.OPERATOR)
    await world.person("vic", Role.VIEWER)
    created = await world.http.post("/vmachines", json=SPEC | {"mem_size": 5000}, headers=world.of("uma"))
    pending = await world.until(lambda found: "no worker fits" in found["reason"])
    await world.quiet()
    assert "4321 of 8765 MiB memory free, 5000 are needed" in pending["reason"]
    found = await answers(world, pending["uuid"], world.of("uma"))
    assert_hidden(found | {"created": created.text})
    shown = json.loads(found[f"/vmachines/{pending['uuid']}"])
    needs = "no worker has room for it: it needs 5000 MiB of memory and 1 processor on one worker"
    assert shown["reason"] == shown["message"] == needs
    assert [(p["code"], p["message"]) for p in shown["problems"]] == [("no_room", needs)]
    assert json.loads(found["dry run"])["message"].endswith(needs)
    assert json.loads(found["too large"])["detail"].startswith("No worker has room for more")
    for name in ("ola", "vic"):
        found_by = (await world.http.get(f"/vmachines/{pending['uuid']}/history", headers=world.of(name))).text
        assert "4321 of 8765" in found_by
    assert "4321 of 8765" in (await answers(world, pending["uuid"], world.of("ola")))["dry run"]


@on_both
async def test_numbers_in_what_a_worker_refuses(world, monkeypatch):
    world.salt.workers["w1"].refusals["start"] = Code.NO_ROOM
    monkeypatch.setattr("tests.functional.master.fakes.REFUSAL", FULL)
    await world.person("uma")
    created = await world.http.post("/vmachines", json=SPEC | {"worker": "w1"}, headers=world.of("uma"))
    uuid = created.json()["uuid"]
    refused = await world.until(lambda found: found["problems"])
    await world.quiet()
    assert "4321" in refused["problems"][0]["message"]
    found = await answers(world, uuid, world.of("uma"))
    assert_hidden(found)
    assert "refused: no worker has room for it" in found[f"/vmachines/{uuid}/history"]
    operator = (await world.http.get("/operations")).text + (await world.http.get("/audit")).text
    assert operator.count("4321 of 8765") >= 2


@on_both
async def test_numbers_in_the_report_of_a_failed_start(world):
    """The helper compares the disk again once it knows the size of an image."""
    await world.person("uma")
    created = await world.http.post("/vmachines", json=SPEC, headers=world.of("uma"))
    uuid = created.json()["uuid"]
    await world.status("running")
    worker = world.salt.workers["w1"]
    report = worker.status
    text = "'web01' needs 9 MiB for its images, and 4321 MiB are free in /srv beside the reserve of 8765 MiB"
    worker.status = lambda each: msgspec.structs.replace(report(each), message=text, problem=text)
    worker.turn(uuid, Status.FAILED_TO_START)
    world.salt.report("w1", uuid)
    failed = await world.status("failed")
    assert (failed["message"], failed["problems"][0]["message"]) == (text, text)
    await world.quiet()
    found = await answers(world, uuid, world.of("uma"))
    assert_hidden(found)
    assert json.loads(found["/notices"])[0]["kind"] == "failed_to_start"


async def test_numbers_in_the_event_stream(served):
    """Events are JSON of another writer, which escapes what is not ASCII."""
    world = served
    await world.person("uma")
    found_by, opened = {}, asyncio.Semaphore(0)

    async def read(name, headers):
        async with world.http.stream("GET", "/events", headers=headers) as stream:
            found_by[name] = ""
            opened.release()
            async for line in stream.aiter_lines():
                found_by[name] += line
                if "no_room" in line:
                    return

    readers = [asyncio.create_task(read("uma", world.of("uma"))), asyncio.create_task(read("admin", {}))]
    async with asyncio.timeout(30):
        for _ in readers:
            await opened.acquire()
        await world.http.post("/vmachines", json=SPEC | {"mem_size": 5000}, headers=world.of("uma"))
        await asyncio.gather(*readers)
    assert_hidden({"events": found_by["uma"]})
    assert "4321 of 8765" in found_by["admin"]


async def test_stored_answer_is_picked_for_each_reader(world):
    """An answer that is given again, by `Idempotency-Key`."""
    await world.person("uma")
    headers = world.of("uma") | {"Idempotency-Key": "k"}
    await world.http.post("/vmachines", json=SPEC | {"mem_size": 5000}, headers=world.of("uma"))
    await world.until(lambda found: found["problems"])
    body = {"labels": {"a": "b"}}
    first, again = [await world.http.post("/vmachines/web01/modify", json=body, headers=headers) for _ in range(2)]
    assert "Idempotency-Replayed" in again.headers
    assert_hidden({"first": first.text, "again": again.text})
    assert first.json()["problems"] == again.json()["problems"] != []
