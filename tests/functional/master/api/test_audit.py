"""The audit: its entries, their outcomes, and who may read them."""

from types import SimpleNamespace

from master_service.policy.permissions import Role
from tests.functional.master.conftest import eventually
from tests.functional.master.databases import on_both
from worker_service.contract import Code, Status, audit_tag

pytestmark = on_both


async def lines(world, **query):
    answer = await world.http.get("/audit", params=query)
    assert answer.status_code == 200, answer.text
    return answer.json()


async def test_audit_entry_is_followed_to_its_outcome(world):
    vm = await world.create()
    await world.status("running")
    await world.quiet()
    (line,) = await lines(world, vm=vm["uuid"], verb="create")
    assert (line["actor"], line["interface"], line["name"], line["outcome"]) == ("admin", "api", "web01", "done")
    assert line["jid"]
    assert line["request_id"]
    assert line["address"] == "127.0.0.1"
    world.salt.workers["w1"].refusals["shutdown"] = Code.POLICY
    await world.http.post("/vmachines/web01/shutdown", headers={"User-Agent": "saltern-cli"})
    await world.until(lambda observed: bool(observed["problems"]))
    (line,) = await lines(world, verb="shutdown")
    assert (line["interface"], line["outcome"], line["detail"]) == ("cli", "refused", "shutdown is refused")


async def test_outcome_follows_from_observed_status(world):
    """Accepted is not done: a start or a save may fail, and the next poll brings what a worker did not report."""
    worker = world.salt.workers["w1"]
    world.salt.by_itself = False
    vm = await world.create()
    await world.until(lambda observed: observed["status"] == "preparing")

    async def taken():
        return [(line["verb"], line["outcome"]) for line in await lines(world, vm=vm["uuid"])] == [
            ("create", "accepted")
        ]

    await eventually(taken)  # the worker's events and its reply come in any order
    worker.turn(vm["uuid"], Status.FAILED_TO_START)
    await world.poll()
    ((_, outcome, detail),) = [(x["verb"], x["outcome"], x["detail"]) for x in await lines(world, vm=vm["uuid"])]
    assert outcome == "failed"
    assert detail
    world.salt.by_itself = True
    await world.ask("start")
    await world.status("running")
    await world.ask("suspend")
    await world.ask("destroy")
    found = {line["verb"]: line["outcome"] for line in await lines(world, vm=vm["uuid"])}
    assert found == {"create": "failed", "start": "done", "suspend": "done", "destroy": "done", "destroyed": "done"}


async def test_superseded_command_was_never_sent(world):
    world.salt.down = True
    await world.create(run_policy="manual")
    await world.ask("start")
    await world.ask("shutdown")
    assert [(line["verb"], line["outcome"]) for line in await lines(world, vm="web01")][:2] == [
        ("shutdown", "queued"),
        ("start", "superseded"),
    ]


EVENT = {
    "at": "2026-01-01T00:00:00+00:00",
    "interface": "worker-api",
    "actor": "ops",
    "verb": "suspend",
    "success": True,
}


async def test_call_on_a_worker_is_audited(world):
    vm = await world.create()
    await world.status("running")
    reported = [
        EVENT | {"uuid": vm["uuid"], "name": "web01", "address": "10.0.0.7"},
        EVENT
        | {
            "interface": "salt-call",
            "actor": "sudo_alice",
            "verb": "destroy",
            "name": "x",
            "success": False,
            "code": "not_found",
        },
        EVENT | {"interface": "salt", "actor": "root", "verb": "suspend", "name": "web01", "uuid": vm["uuid"]},
    ]
    for event in reported:
        world.salt.fire("w1", audit_tag("w1"), event)

    async def are_reported():
        return len([line for line in await lines(world) if line["actor"].endswith("@w1")]) == len(reported)

    await eventually(are_reported)
    (worker_api,), (call,) = await lines(world, interface="worker-api"), await lines(world, interface="salt-call")
    assert [worker_api[key] for key in ("actor", "verb", "name", "uuid", "outcome", "address")] == [
        "ops@w1", "suspend", "web01", vm["uuid"], "done", "10.0.0.7",
    ]  # fmt: skip
    assert [call[key] for key in ("actor", "verb", "name", "outcome")] == ["sudo_alice@w1", "destroy", "x", "refused"]
    assert call["detail"].endswith(": not_found")
    (job,) = await lines(world, interface="salt")
    assert [job[key] for key in ("actor", "verb", "name", "outcome")] == ["root@w1", "suspend", "web01", "done"]
    operations = (await world.http.get("/operations")).json()
    assert [one["verb"] for one in operations] == ["create"]  # this master got no request


async def test_worker_events_are_limited_to_its_own_vms(world, monkeypatch):
    monkeypatch.setattr("master_service.reconciler.event_listener._MOST_AUDIT_EVENTS", 3)
    monkeypatch.setattr(
        "master_service.reconciler.event_listener.time", SimpleNamespace(monotonic=lambda: 0.0)
    )  # all in one minute
    vm = await world.create()
    await world.status("running")
    shown_outcomes = EVENT | {"uuid": vm["uuid"], "actor": "admin"}
    world.salt.fire("w2", audit_tag("w2"), shown_outcomes)  # another's VM
    world.salt.fire("w2", audit_tag("w1"), shown_outcomes)  # in another's name
    for odd in (
        None,
        [],
        {},
        shown_outcomes | {"interface": "cli"},
        shown_outcomes | {"actor": 7},
        shown_outcomes | {"verb": "list"},
        shown_outcomes | {"success": "x"},
    ):
        world.salt.fire("w1", audit_tag("w1"), odd)
    for _ in range(5):
        world.salt.fire("w1", audit_tag("w1"), shown_outcomes)
    await world.quiet()
    assert [line["actor"] for line in await lines(world, interface="worker-api")] == ["admin@w1"] * 3
    assert {line["interface"] for line in await lines(world, actor="admin")} == {"api"}


async def test_audit_has_pages_and_filters(world):
    for n in range(5):
        await world.create(name=f"vm{n}", mem_size=4, run_policy="manual")
    observed, before = [], None
    while True:
        query = {"verb": "create", "kind": "vm", "limit": 2} | ({"before": before} if before else {})
        answer = await world.http.get("/audit", params=query)
        observed += [line["name"] for line in answer.json()]
        before = answer.headers.get("X-Next-Cursor")
        if before is None:
            break
    assert observed == [f"vm{n}" for n in reversed(range(5))]
    assert [line["name"] for line in await lines(world, vm="vm3", kind="vm")] == ["vm3"]
    assert await lines(world, since="2099-01-01T00:00:00Z") == []
    for bad in ({"since": "yesterday"}, {"since": "2026-01-01T00:00:00"}, {"limit": 0}, {"outcome": "x"}):
        assert (await world.http.get("/audit", params=bad)).status_code == 400


async def test_users_see_their_entries_and_operators_see_all(world):
    for name, role in (("uma", Role.USER), ("oscar", Role.OPERATOR), ("vera", Role.VIEWER)):
        await world.person(name, role)
    await world.create(run_policy="manual")
    await world.http.get("/workers", headers=world.of("uma"))

    async def who(name):
        return {line["actor"] for line in (await world.http.get("/audit", headers=world.of(name))).json()}

    assert await who("uma") == {"uma"}
    assert await who("vera") == set()
    assert await who("oscar") >= {"uma", "admin", "saltern"}
