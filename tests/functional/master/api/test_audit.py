"""The audit: its entries, their outcomes, and who may read them."""

from types import SimpleNamespace

from master_service.policy.permissions import Role
from master_service.saltapi.client import Event
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


async def test_external_job_on_the_bus_is_audited(world):
    job = {"jid": "20260101000000000001", "fun": "vmachines.destroy", "user": "root", "tgt": "w1"}
    arguments = [{"__kwarg__": True, "name": "web01", "vnc_password": "hush"}]
    await world.master.listener.handle(Event(tag="salt/job/20260101000000000001/new", data=job | {"arg": arguments}))
    for fun, user in (("vmachines.list", "root"), ("test.ping", "root"), ("vmachines.apply", "saltern-master")):
        data = job | {"fun": fun, "user": user, "arg": []}
        await world.master.listener.handle(Event(tag="salt/job/20260101000000000001/new", data=data))
    (line,) = await lines(world, interface="salt")
    assert (line["actor"], line["verb"], line["name"], line["jid"]) == ("root", "destroy", "web01", job["jid"])
    assert "hush" not in str(line)


async def returns(world, minion, fun, answer, jid="20260101000000000001", actor=None):
    data = {"jid": jid, "id": actor or minion, "fun": fun, "fun_args": [], "return": answer}
    await world.master.listener.handle(Event(tag=f"salt/job/{jid}/ret/{minion}", data=data))


async def test_external_job_gets_its_outcome(world):
    """Each minion of a job reports its own result, and no other minion's."""
    job = {"jid": "20260101000000000001", "fun": ["vmachines.suspend", "vmachines.resume"], "user": "root", "tgt": "*"}
    job |= {"arg": [["name=web01"], [{"__kwarg__": True, "name": "web02"}]], "minions": ["w1", "w2"]}
    await world.master.listener.handle(Event(tag=f"salt/job/{job['jid']}/new", data=job))

    async def shown_outcomes():
        found = await lines(world, interface="salt")
        return {(line["verb"], line["name"], line["outcome"], line["detail"]) for line in found}

    sent = {
        (*what, "sent", f"on {minion}")
        for what in (("suspend", "web01"), ("resume", "web02"))
        for minion in ("w1", "w2")
    }
    assert await shown_outcomes() == sent
    good, bad = {"success": True, "message": "ok"}, {"success": False, "message": "There is no VM named 'web02'."}
    both = {"vmachines.suspend": good, "vmachines.resume": bad}
    await returns(world, "w3", job["fun"], both)
    await returns(world, "w2", job["fun"], both, actor="w3")
    await returns(world, "w2", job["fun"], both, jid="20260101000000000002")
    assert await shown_outcomes() == sent
    for _ in range(2):
        await returns(world, "w1", job["fun"], both)
    await returns(world, "w2", job["fun"], "Traceback\nMemoryError")
    assert await shown_outcomes() == {
        ("suspend", "web01", "done", "on w1"),
        ("resume", "web02", "refused", "on w1: There is no VM named 'web02'."),
        ("suspend", "web01", "refused", "on w2: answers: None"),
        ("resume", "web02", "refused", "on w2: answers: None"),
    }


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
