"""Requests that the API refuses, and its messages."""

import asyncio
import itertools
import json

import httpx2
import pytest

from tests.functional.master.conftest import SPEC, eventually
from tests.functional.master.databases import on_both
from worker_service.contract import PROTOCOL
from worker_service.contract.words import HOW


async def test_request_without_a_good_token_is_refused(world):
    del world.http.headers["Authorization"]
    headers = [
        ({}, "has none"),
        ({"Authorization": "Bearer wrong"}, "The token is unknown"),
        ({"Authorization": "Basic dTpw"}, "has none"),
    ]
    for path, (header, message) in itertools.product(["/vmachines", "/vmachines/x", "/workers", "/events"], headers):
        answer = await world.http.get(path, headers=header)
        assert answer.status_code == 401
        assert answer.headers["WWW-Authenticate"].startswith("Bearer")
        assert answer.headers["Content-Type"] == "application/problem+json"
        problem = answer.json()
        assert (problem["status"], problem["code"]) == (401, "unauthorised")
        assert message in problem["detail"]
        assert "Authorization: Bearer" in problem["hint"]


BAD = [
    ({"name": "-rf"}, "name", "1 to 63"),
    ({"hypervisor": "vmware"}, "hypervisor", "'kvm', 'xen' or 'vbox'"),
    ({"sys_arch": "arm64"}, "sys_arch", "'x86_64' or 'i386'"),
    ({"cpu_count": 0}, "cpu_count", "greater than or equal to 1 (given: 0)"),
    ({"cpu_count": "2"}, "cpu_count", "valid integer (given: '2')"),
    ({"mem_size": 10**9}, "mem_size", "less than or equal"),
    ({"hda_image": "ftp://host/a"}, "hda_image", "known are file, http, https, s3, salt, sftp, blank"),
    ({"hda_save_to": "salt://a/b"}, "hda_save_to", "known are file, http, https, s3, sftp"),
    ({"cd_image": "blank:1G"}, "cd_image", "cannot be blank"),
    ({"soft_list": ["nginx", "a b"]}, "soft_list.1", "no name of a package"),
    ({"network": "host"}, "network", "network=NAME"),
    ({"run_policy": "never"}, "run_policy", "'on_failure'"),
    ({"colour": "red"}, "colour", "is not a parameter"),
    ({"hdb_save_to": "file:/b"}, "body", "without hdb_image"),
    ({"hda_image": None}, "hda_image", "valid string"),
    ({"worker": "w1\x1b[2J"}, "worker", "printable characters only"),
    ({"labels": {"role": "\u202eweb"}}, "labels", "not printable"),
    ({"labels": {"role\n": "web"}}, "labels", "no name of a label"),
    ({"name": "web01\n"}, "name", "1 to 63"),
    ({"network": "bridge=br0\n"}, "network", "network=NAME"),
    ({"name": "11111111-2222-4333-8444-555555555555"}, "name", "like the uuid"),
    ({"name": "0042"}, "name", f"The name '0042' reads as a number. {HOW}"),
    ({"name": "on"}, "name", f"The name 'on' reads as a boolean. {HOW}"),
    ({"name": 42}, "name", f"it is the number 42, not a word. {HOW}".removesuffix(".")),
    ({"name": True}, "name", "the boolean true"),
    ({"hda_save_to": 1.5}, "hda_save_to", "the number 1.5"),
    ({"worker": 7}, "worker", "the number 7"),
    ({"labels": {"tier": 3}}, "labels.tier", "the number 3"),
    ({"soft_list": ["nginx", 5]}, "soft_list.1", "the number 5"),
]


async def test_bad_parameter_is_named_with_a_valid_one(world):
    for wrong, field, message in BAD:
        answer = await world.http.post("/vmachines", json=SPEC | wrong)
        assert answer.status_code == 400, wrong
        problem = answer.json()
        assert problem["code"] == "bad_request"
        assert problem["hint"]
        (error,) = problem["errors"]
        assert error["field"] == field
        assert message in error["message"]
    assert (await world.http.get("/vmachines")).json() == []
    assert world.salt.jobs == []


async def test_every_place_that_workers_know_is_accepted(world):
    """The worker decides about the image: its own settings say which stores it knows."""
    places = {"hda_image": "s3://images/a.qcow2", "hdb_image": "sftp://store.test/b.qcow2", "cd_image": "salt://iso/c"}
    saved = {"hda_save_to": "s3://saved/a.qcow2", "hdb_save_to": "sftp://store.test/saved/b.qcow2"}
    await world.create(**places, **saved)
    spec = world.salt.workers["w1"].vms[(await world.status("running"))["uuid"]].spec
    assert {name: getattr(spec, name) for name in (*places, *saved)} == places | saved


async def test_missing_field_and_bad_json_are_refused(world):
    missing = (await world.http.post("/vmachines", json={"name": "a"})).json()
    assert missing["errors"] == [{"field": "hda_image", "message": "is missing"}]
    garbled = await world.http.post("/vmachines", content=b"{", headers={"Content-Type": "application/json"})
    assert (garbled.status_code, garbled.json()["errors"][0]["message"]) == (400, "is not JSON")


async def test_more_memory_than_any_worker_has(world):
    answer = await world.http.post("/vmachines", json=SPEC | {"mem_size": 8193})
    assert (answer.status_code, answer.json()["code"]) == (507, "no_room")
    assert "mem_size is 8193 MiB; the largest worker has 8192 MiB in all" in answer.json()["detail"]


@on_both
async def test_name_is_taken_until_its_vm_is_destroyed(world):
    await world.create()
    again = await world.http.post("/vmachines", json=SPEC)
    assert (again.status_code, again.json()["code"]) == (409, "name_taken")


async def test_unknown_vm_is_not_found(world):
    for method, body in (
        ("GET", {}),
        ("DELETE", {}),
        ("PATCH", {"json": {"cd_image": ""}, "headers": {"If-Match": "*"}}),
    ):
        answer = await world.http.request(method, "/vmachines/ghost", **body)
        assert (answer.status_code, answer.json()["code"]) == (404, "not_found")
        assert "'ghost'" in answer.json()["detail"]
    assert (await world.http.get("/workers/ghost")).status_code == 404


async def test_unknown_paths_and_methods_are_problems_too(world):
    for method, path, status in (("GET", "/nothing", 404), ("PUT", "/vmachines", 405)):
        answer = await world.http.request(method, path)
        assert (answer.status_code, answer.headers["Content-Type"]) == (status, "application/problem+json")


async def test_bad_modification_is_refused(world):
    await world.create()
    for body in ({}, {"mem_size": 1}, {"hda_save_to": "x"}):
        assert (await world.http.patch("/vmachines/web01", json=body, headers={"If-Match": "*"})).status_code == 400


@on_both
async def test_parallel_modifications_lose_nothing(world):
    await world.create()
    etag = (await world.http.get("/vmachines/web01")).headers["ETag"]

    async def modify(n):
        body = {"hda_save_to": f"file:/srv/saved/{n}.qcow2"}
        return await world.http.patch("/vmachines/web01", json=body, headers={"If-Match": etag})

    answers = await asyncio.gather(*(modify(n) for n in range(10)))
    assert sorted(answer.status_code for answer in answers) == [200] + [412] * 9


async def test_bug_is_reported_without_details(world, monkeypatch):
    async def broken(self, *arguments):
        raise RuntimeError("the secret of the house")

    monkeypatch.setattr("master_service.store.queries.VmQueries.page", broken)
    answer = await world.http.get("/vmachines")
    assert (answer.status_code, answer.json()["code"]) == (500, "internal")
    assert "secret" not in answer.text


async def test_workers_are_listed_with_their_capacity(world):
    (worker,) = (await world.http.get("/workers")).json()
    assert (worker["id"], worker["reachable"], worker["capacity"]["mem_total"]) == ("w1", True, 8192)
    assert (await world.http.get("/workers/w1")).json()["id"] == "w1"


async def test_health_and_version_need_no_token(world):
    del world.http.headers["Authorization"]
    assert (await world.http.get("http://master/healthz")).json() == {"status": "ok"}
    assert (await world.http.get("http://master/version")).json()["protocol"] == PROTOCOL
    docs = await world.http.get("http://master/docs")
    assert docs.status_code == 200
    assert "://" not in docs.text  # it loads nothing from another host; test_api_docs.py has a browser look at it
    paths = (await world.http.get("http://master/openapi.json")).json()["paths"]
    assert "/api/v1/vmachines/{id_or_name}/suspend" in paths


@on_both
async def test_every_action_leaves_its_audit_row(world):
    from sqlmodel import select

    from master_service.db.tables import AuditRow

    vm = await world.create()
    await world.status("running")
    await world.ask("destroy")
    async with world.master.context.store.database.read() as session:
        rows = [
            (row.actor, row.interface, row.verb, row.uuid)
            for row in await session.exec(select(AuditRow).where(AuditRow.kind == "vm").order_by(AuditRow.id))
        ]
    assert rows == [
        ("admin", "api", "create", vm["uuid"]),
        ("admin", "api", "destroy", vm["uuid"]),
        ("saltern", "master", "destroyed", vm["uuid"]),
    ]


@on_both
async def test_changes_arrive_in_the_event_stream(served):
    """Over a real connection: an in-process client would wait for the end of the stream."""
    world = served
    statuses, gate = [], asyncio.Event()
    world.salt.gates["w1"] = gate
    async with world.http.stream("GET", "/events") as response:
        await eventually(lambda: bool(world.master.context.changes._subscribers))
        await world.create()
        async for event in httpx2.EventSource(response):
            statuses.append(json.loads(event.data)["status"])
            gate.set()  # no worker has it before it was sent
            if statuses[-1] == "running":
                break
    assert statuses[0] == "pending"


@pytest.mark.parametrize(
    ("query", "body"),
    [
        ("", '{"name": "a", "hda_image": "blank:1G", "name": "b"}'),
        ("", '{"name": "a", "hda_image": "blank:1G", "n\\u0061me": "b"}'),
        ("", '{"name": "a", "hda_image": "blank:1G", "labels": {"x": "1", "x": "2"}}'),
        ("?dry_run=true&dry_run=false", '{"name": "a", "hda_image": "blank:1G"}'),
    ],
)
async def test_parameter_given_twice_changes_nothing(world, query, body):
    """The last one would count, and a checker before the master may have seen the first."""
    headers = {"Content-Type": "application/json"}
    answer = await world.http.post(f"/vmachines{query}", content=body, headers=headers)
    assert (answer.status_code, "is given twice" in answer.text) == (400, True), answer.text
    assert (await world.http.get("/vmachines")).json() == []
