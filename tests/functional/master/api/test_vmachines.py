"""`/vmachines`: pages, versions, labels, and repeated saves."""

import pytest

from tests.functional.master.conftest import SPEC
from tests.functional.master.databases import on_both
from worker_service.contract import Status


async def names(world, **query):
    answer = await world.http.get("/vmachines", params=query)
    assert answer.status_code == 200, answer.text
    return [vm["name"] for vm in answer.json()]


@on_both
async def test_list_is_filtered(world):
    world.salt.by_itself = False
    await world.create(name="web01", labels={"role": "web", "site": "a"})
    await world.create(name="web02", labels={"role": "web", "site": "b"}, run_policy="manual")
    await world.status("preparing")
    await world.http.post("/workers/w1/drain")
    db = await world.create(name="Db_1")
    assert await names(world) == ["Db_1", "web01", "web02"]
    assert await names(world, q="WEB") == ["web01", "web02"]
    assert await names(world, q="_") == ["Db_1"]
    assert await names(world, q=db["uuid"][:8]) == ["Db_1"]
    assert await names(world, status=["halted", "pending"]) == ["Db_1", "web02"]
    assert await names(world, status=["starting", "suspended"]) == ["web01"]
    assert await names(world, worker="w1") == ["web01"]
    assert await names(world, owner="admin", label="role") == ["web01", "web02"]
    assert await names(world, label=["role=web", "site=b"]) == ["web02"]
    assert await names(world, owner="nobody") == []
    refused = await world.http.get("/vmachines?status=on")
    assert (refused.status_code, "the workers' words are starting" in refused.json()["detail"]) == (400, True)


@on_both
async def test_destroyed_vms_are_listed_on_request_only(world):
    await world.create(run_policy="manual")
    assert (await world.http.delete("/vmachines/web01")).json()["done"] is True
    assert await names(world) == []
    assert await names(world, status="destroyed") == ["web01"]


@on_both
@pytest.mark.parametrize("limit", [1, 2, 3, 4])
async def test_pages_list_every_vm_once_despite_changes(world, limit):
    for n in range(4):
        await world.create(name=f"b{n}", run_policy="manual")
    first = await world.http.get("/vmachines", params={"limit": limit, "q": "b"})
    names = [vm["name"] for vm in first.json()]
    await world.http.delete("/vmachines/b0")
    await world.create(name="ab", run_policy="manual")
    page = first
    while "Link" in page.headers:
        link = page.headers["Link"]
        assert link.endswith('>; rel="next"')
        page = await world.http.get("http://master" + link[1:].partition(">")[0])
        assert 1 <= len(page.json()) <= limit
        names += [vm["name"] for vm in page.json()]
    assert names == ["b0", "b1", "b2", "b3"]


@pytest.mark.parametrize("cursor", ["x", "====", "W10", "WzEsMl0", "é"])
async def test_cursor_that_we_did_not_give_is_refused(world, cursor):
    answer = await world.http.get("/vmachines", params={"cursor": cursor})
    assert (answer.status_code, answer.json()["errors"][0]["field"]) == (400, "cursor")


@on_both
async def test_labels_are_changed_without_a_command_to_the_worker(world):
    await world.create(labels={"a": "1"})
    await world.status("running")
    jobs = len(world.salt.jobs)
    changed = await world.ask("modify", json={"labels": {"b": "2"}})
    assert changed["labels"] == {"b": "2"}
    assert changed["version"] == 2
    await world.quiet()
    assert len(world.salt.jobs) == jobs
    for bad in ({"-": "x"}, {"a": "\n"}, {"a": "x" * 256}, {str(n): "" for n in range(33)}):
        answer = await world.http.post("/vmachines/web01/modify", json={"labels": bad})
        assert (answer.status_code, answer.json()["errors"][0]["field"]) == (400, "labels")


@on_both
async def test_if_match_guards_destroy_and_versions_have_etags(world):
    made = await world.http.post("/vmachines", json=SPEC | {"run_policy": "manual"})
    assert made.headers["ETag"] == '"1"'
    assert made.headers["Location"] == f"/api/v1/vmachines/{made.json()['uuid']}"
    stale = await world.http.delete("/vmachines/web01", headers={"If-Match": '"2"'})
    assert (stale.status_code, stale.json()["code"]) == (412, "changed_meanwhile")
    odd = await world.http.delete("/vmachines/web01", headers={"If-Match": "latest"})
    assert (odd.status_code, odd.json()["errors"][0]["field"]) == (400, "If-Match")
    gone = await world.http.delete("/vmachines/web01", headers={"If-Match": made.headers["ETag"]})
    assert gone.json()["vmachine"]["status"] == "destroyed"
    assert gone.json()["message"] == "destroy of web01: done, it is destroyed."


async def test_blocking_verb_reports_last_status_on_timeout(world):
    await world.create()
    await world.status("running")
    world.salt.lose_jobs = True
    answer = await world.http.post("/vmachines/web01/suspend", params={"timeout_s": 0.01})
    assert (answer.status_code, answer.json()["done"]) == (202, False)
    assert "not observed within 0.01 s; it continues. It is running (w1 reports 'running')" in answer.json()["message"]


async def test_save_that_failed_is_tried_again(world):
    vm = await world.create()
    await world.status("running")
    refused = await world.http.post("/vmachines/web01/save_retry")
    assert (refused.status_code, refused.json()["code"]) == (409, "conflict")
    worker = world.salt.workers["w1"]
    await world.ask("shutdown")
    await world.status("halted")
    worker.turn(vm["uuid"], Status.FAILED_TO_SAVE)
    world.salt.report("w1", vm["uuid"])
    await world.status("failed")
    answer = await world.ask("save_retry")
    assert (answer["done"], answer["vmachine"]["status"]) == (True, "halted")
    assert world.salt.jobs[-1][1][0]["verb"] == "save_retry"


async def test_every_answer_carries_the_id_of_its_request(world):
    assert (await world.http.get("/vmachines", headers={"X-Request-ID": "mine-1"})).headers["X-Request-ID"] == "mine-1"
    for odd in ("", "a b", "x" * 129):
        request_id = (await world.http.get("/vmachines/ghost", headers={"X-Request-ID": odd})).headers["X-Request-ID"]
        assert len(request_id) == 36
    assert len((await world.http.get("/nothing")).headers["X-Request-ID"]) == 36


async def test_operation_ids_are_stable_words(world):
    paths = (await world.http.get("http://master/openapi.json")).json()["paths"]
    ids = [operation["operationId"] for path in paths.values() for operation in path.values()]
    assert len(ids) == len(set(ids))
    assert {"list_vmachines", "create_vmachines", "patch_vmachine", "suspend_verbs", "show_workers"} <= set(ids)
    assert all(operation_id.isidentifier() and operation_id.islower() for operation_id in ids)
