"""The history of VMs, the plan, and an event stream that continues where a reader stopped."""

import asyncio
import json
from datetime import timedelta

import httpx2

from tests.functional.master.conftest import eventually
from tests.functional.master.databases import on_both
from worker_service.contract import Code

pytestmark = on_both


async def history(world, vm="web01", **query):
    answer = await world.http.get(f"/vmachines/{vm}/history", params=query)
    assert answer.status_code == 200, answer.text
    return answer


def shortly(entries):
    return [(e["fact"], e["actor"], e["before"], e["after"], e["message"]) for e in reversed(entries)]


async def test_history_names_actor_and_time(world):
    vm = await world.create()
    await world.status("running")
    await world.ask("destroy")
    await world.quiet()
    entries = (await history(world, vm["uuid"])).json()
    short = shortly(entries)
    # A worker's reply and its events come by the same bus, in either order.
    assert [entry for entry in short if entry[0] != "dispatch"] == [
        ("desired", "admin", "", "running", "create"),
        ("observed", "w1", "", "starting", "It is starting."),
        ("observed", "w1", "starting", "running", "It is running."),
        ("desired", "admin", "running", "destroyed", "destroy"),
        ("observed", "w1", "running", "destroyed", ""),
        ("desired", "saltern", "destroyed", "destroyed", "destroyed"),
    ]
    assert [entry for entry in short if entry[0] == "dispatch"][:2] == [
        ("dispatch", "w1", "", "start", "sent, try 1"),
        ("dispatch", "w1", "", "start", "accepted"),
    ]
    assert entries == sorted(entries, key=lambda entry: -entry["id"])
    assert all(entry["at"].endswith("Z") for entry in entries)


async def test_history_comes_in_pages_the_newest_first(world):
    await world.create(run_policy="manual")
    for n in range(4):
        await world.ask("modify", json={"hda_save_to": f"file:/srv/{n}"})
    whole = (await history(world)).json()
    assert len(whole) == 5
    page, joined = await history(world, limit=2), []
    while True:
        joined += page.json()
        if "X-Next-Cursor" not in page.headers:
            break
        page = await history(world, limit=2, before=page.headers["X-Next-Cursor"])
    assert joined == whole


async def test_refusals_and_waiting_are_in_the_history_once(world):
    world.salt.workers["w1"].refusals["start"] = Code.POLICY
    await world.create()
    await world.status("failed")
    await world.http.post("/workers/w1/drain")
    await world.create(name="web02")
    assert ("dispatch", "w1", "", "start", "refused: start is refused") in shortly((await history(world)).json())
    for _ in range(3):
        await world.poll()
    unplaced = [entry for entry in shortly((await history(world, "web02")).json()) if "w1 is drained" in entry[4]]
    assert len(unplaced) == 1


async def test_poll_notes_changes_only(world):
    world.salt.lose_events = True
    await world.create()
    await eventually(lambda: bool(world.salt.jobs))
    for _ in range(3):
        await world.poll()
    real = [entry for entry in shortly((await history(world)).json()) if entry[0] == "observed"]
    assert real == [("observed", "w1", "", "running", "It is running.")]


async def test_history_is_bounded_in_time_and_number(settings, salt):
    from tests.functional.master.conftest import running_world

    async with running_world(settings.model_copy(update={"history_per_vm": 10, "history_days": 2}), salt) as world:
        await world.create(run_policy="manual")
        for n in range(20):
            await world.ask("modify", json={"hda_save_to": f"file:/srv/{n}"})
        assert await world.master.retention.clean() == 11
        assert len((await history(world)).json()) == 10
        clock = world.master.context.clock
        object.__setattr__(world.master.context, "clock", lambda: clock() + timedelta(days=3))
        assert await world.master.retention.clean() == 10


async def test_plan_shows_action_and_reason(world):
    assert (await world.http.get("/plan")).json() == []
    world.salt.lose_jobs = True
    await world.create()
    await world.until(lambda found: found["worker"])
    await world.http.post("/workers/w1/drain")
    await world.create(name="web02")
    await world.create(name="web03", run_policy="manual")
    await world.quiet()
    found = {entry["name"]: entry for entry in (await world.http.get("/plan")).json()}
    assert set(found) == {"web01", "web02"}
    assert (found["web01"]["kind"], found["web01"]["worker"]) == ("wait", "w1")
    assert found["web01"]["reason"] == "start was sent to w1, no effect observed yet"
    assert (found["web02"]["kind"], found["web02"]["worker"]) == ("wait", None)
    assert "w1 is drained" in found["web02"]["reason"]


async def read(world, until, headers=None):
    """Return (names of the events' VMs or the kind of another event, the last id)."""
    names = []
    async with world.http.stream("GET", "/events", headers=headers or {}) as response:
        assert response.status_code == 200
        async for event in httpx2.EventSource(response):
            if event.event == "change":
                continue
            names.append(json.loads(event.data).get("name", event.event))
            if names[-1] == until:
                return names, event.id
    raise AssertionError(names)


async def test_reader_goes_on_where_it_stopped(served):
    world = served
    for n in range(60):
        await world.create(name=f"a{n}", run_policy="manual")
    newest = await world.master.context.store.history.last()
    await world.create(name="web01", run_policy="manual")
    names, last = await read(world, "web01", {"Last-Event-ID": str(newest)})
    assert int(last) > newest
    assert names.count("web01") == 1
    names, _ = await read(world, "reset", {"Last-Event-ID": str(newest + 1000)})
    assert names == ["reset"]
    odd = await world.http.get("/events", headers={"Last-Event-ID": "x"})
    assert (odd.status_code, odd.json()["code"]) == (400, "bad_request")


async def changes(world, count, **headers):
    """Return the first entries of the event stream, and the last id."""
    found = []
    async with world.http.stream("GET", "/events", headers=headers) as response:
        async for event in httpx2.EventSource(response):
            if event.event == "change":
                found.append(json.loads(event.data))
                assert event.id == str(found[-1]["id"])
            if len(found) == count:
                return found, event.id
    raise AssertionError(found)


async def test_each_entry_is_streamed_once_over_a_break(served):
    """SQLite writes one transaction at a time. PostgreSQL may send some again, with the same id."""
    world = served
    await world.create(name="earlier", run_policy="manual")
    reading = asyncio.create_task(changes(world, 2))
    await eventually(lambda: bool(world.master.context.changes._subscribers))
    await world.create(run_policy="manual", labels={"role": "db"})
    await world.ask("modify", json={"hda_save_to": "file:///srv/a"})
    before, last = await reading
    for letter in "bcd":
        await world.ask("modify", json={"hda_save_to": f"file:///srv/{letter}"})
    streamed = [entry["id"] for entry in before]
    after: list[dict] = []
    count = 3
    while len(after) < 3:
        entries, _ = await changes(world, count, **{"Last-Event-ID": last})
        after = [entry for entry in entries if entry["id"] not in streamed and entry["name"] == "web01"]
        assert len(entries) == 3 or world.master.context.store.database.conninfo
        count += 1
    stored = (await history(world)).json()[::-1]
    assert [{name: entry[name] for name in stored[0]} for entry in (*before, *after)] == stored
    assert {entry["status"] for entry in stored} == {"halted"}
    assert (before[0]["sentence"], before[0]["labels"]) == (
        "admin created it; its desired state is halted",
        {"role": "db"},
    )
