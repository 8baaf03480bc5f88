"""Repeated requests with an `Idempotency-Key`, and dry runs."""

import asyncio
from datetime import timedelta

import pytest

from master_service.policy.permissions import Role
from tests.functional.master.conftest import SPEC
from tests.functional.master.databases import on_both

KEY = {"Idempotency-Key": "k1"}


@on_both
async def test_repeated_create_is_replayed_and_done_once(world):
    first = await world.http.post("/vmachines", json=SPEC, headers=KEY)
    await world.status("running")
    again = await world.http.post("/vmachines", json=SPEC, headers=KEY)
    assert (again.status_code, again.content) == (201, first.content)
    for header in ("ETag", "Location", "Content-Type"):
        assert again.headers[header] == first.headers[header]
    assert again.headers["Idempotency-Replayed"] == "true"
    assert "Idempotency-Replayed" not in first.headers
    assert len((await world.http.get("/vmachines")).json()) == 1


async def test_key_belongs_to_one_request(world):
    await world.http.post("/vmachines", json=SPEC, headers=KEY)
    other = await world.http.post("/vmachines", json=SPEC | {"name": "web02"}, headers=KEY)
    assert (other.status_code, other.json()["code"]) == (422, "idempotency_key_reused")
    verb = await world.http.post("/vmachines/web01/start", headers=KEY)
    assert (verb.status_code, verb.json()["code"]) == (422, "idempotency_key_reused")


async def test_refused_request_may_retry_with_its_key(world):
    for _ in range(2):
        refused = await world.http.post("/vmachines", json=SPEC | {"mem_size": 10**6}, headers=KEY)
        assert refused.status_code == 507
    assert (await world.http.post("/vmachines", json=SPEC, headers=KEY)).status_code == 201


@on_both
async def test_repeat_during_the_first_request_is_a_conflict(world):
    await world.create()
    await world.status("running")
    world.salt.gates["w1"] = asyncio.Event()
    first = asyncio.create_task(world.http.post("/vmachines/web01/suspend", headers=KEY))
    await world.until(lambda vm: vm["desired"] == "paused")
    second = await world.http.post("/vmachines/web01/suspend", headers=KEY)
    assert (second.status_code, second.json()["code"]) == (409, "idempotency_key_in_use")
    world.salt.gates["w1"].set()
    assert (await first).json()["done"] is True
    third = await world.http.post("/vmachines/web01/suspend", headers=KEY)
    assert third.content == (await first).content


@on_both
async def test_key_of_a_killed_master_becomes_free_again(world, monkeypatch):
    async def killed(self, user, key):
        """A process that is killed releases nothing."""

    monkeypatch.setattr("master_service.store.idempotency.IdempotencyStore.release", killed)
    await world.create()
    await world.status("running")
    world.salt.gates["w1"] = asyncio.Event()
    now, passed, waits = world.master.context.clock(), timedelta(), {"timeout_s": 600}
    object.__setattr__(world.master.context, "clock", lambda: now + passed)
    task = asyncio.create_task(world.http.post("/vmachines/web01/suspend", params=waits, headers=KEY))
    await world.until(lambda vm: vm["desired"] == "paused")
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    world.salt.gates["w1"].set()
    await world.status("paused")
    passed = timedelta(seconds=600 + 59)
    still = await world.http.post("/vmachines/web01/suspend", params=waits, headers=KEY)
    assert (still.status_code, still.json()["code"]) == (409, "idempotency_key_in_use")
    passed += timedelta(seconds=2)
    other = await world.http.post("/vmachines/web01/resume", headers=KEY)
    assert (other.status_code, other.json()["code"]) == (422, "idempotency_key_reused")
    again = await world.http.post("/vmachines/web01/suspend", params=waits, headers=KEY)
    assert (again.status_code, again.json()["done"], "Idempotency-Replayed" in again.headers) == (200, True, False)
    assert [action["verb"] for _, actions in world.salt.jobs for action in actions] == ["start", "suspend"]
    third = await world.http.post("/vmachines/web01/suspend", params=waits, headers=KEY)
    assert (third.content, third.headers["Idempotency-Replayed"]) == (again.content, "true")


@pytest.mark.parametrize("word", ["nan", "inf", "-1", "x", "1e9"])
async def test_timeout_that_is_no_number_is_refused(world, word):
    await world.create(run_policy="manual")
    answer = await world.http.post("/vmachines/web01/destroy", params={"timeout_s": word}, headers=KEY)
    assert (answer.status_code, answer.json()["errors"][0]["field"]) == (400, "timeout_s")


@on_both
async def test_one_of_many_parallel_repeats_is_done(world):
    requests = (world.http.post("/vmachines", json=SPEC, headers=KEY) for _ in range(8))
    answers = await asyncio.gather(*requests)
    assert {answer.status_code for answer in answers} <= {201, 409}
    assert {answer.json()["code"] for answer in answers if answer.status_code == 409} <= {"idempotency_key_in_use"}
    assert len({answer.content for answer in answers if answer.status_code == 201}) == 1


async def test_deleted_user_is_replayed_for_the_same_request_only(world):
    await world.http.post("/users", json={"name": "uma"})
    first = await world.http.delete("/users/uma", headers=KEY)
    again = await world.http.delete("/users/uma", headers=KEY)
    assert (first.status_code, again.status_code, again.headers["Idempotency-Replayed"]) == (204, 204, "true")
    for path, headers in (("/users/uma", {}), ("/users/uma", {"Idempotency-Key": "k2"}), ("/users/otto", KEY)):
        assert (await world.http.delete(path, headers=headers)).status_code == 404
    await world.person("ada", Role.ADMIN)
    assert (await world.http.delete("/users/uma", headers=KEY | world.of("ada"))).status_code == 404


@on_both
async def test_key_expires(settings, salt, monkeypatch):
    from tests.functional.master.conftest import running_world

    async with running_world(settings.model_copy(update={"idempotency_keep_s": 3600}), salt) as world:
        await world.http.post("/vmachines", json=SPEC | {"run_policy": "manual"}, headers=KEY)
        clock = world.master.context.clock
        object.__setattr__(world.master.context, "clock", lambda: clock() + timedelta(hours=2))
        again = await world.http.post("/vmachines", json=SPEC | {"run_policy": "manual"}, headers=KEY)
        assert (again.status_code, again.json()["code"]) == (409, "name_taken")


@pytest.mark.parametrize("key", ["", "x" * 256, b"k\x9b2J", "a b"])
async def test_odd_keys_are_refused(world, key):
    answer = await world.http.post("/vmachines", json=SPEC, headers={"Idempotency-Key": key})
    assert (answer.status_code, answer.json()["errors"][0]["field"]) == (400, "idempotency-key")


DRY = {"dry_run": "true"}


@on_both
async def test_dry_run_of_create_shows_placement_and_leaves_nothing(world):
    answer = await world.http.post("/vmachines", json=SPEC, params=DRY)
    body = answer.json()
    assert (answer.status_code, body["dry_run"], body["worker"], body["command"]) == (200, True, "w1", "start")
    assert {"field": "desired", "before": None, "after": "running"} in body["changes"]
    assert body["message"] == "start: w1 was chosen among 1 that fit; w1: It would fetch 3 MiB and start"
    assert (await world.http.get("/vmachines")).json() == []
    await world.poll()
    assert world.salt.jobs == []
    nowhere = await world.http.post("/vmachines", json=SPEC | {"worker": "w9"}, params=DRY)
    assert (nowhere.status_code, nowhere.json()["detail"]) == (404, "There is no worker 'w9'.")
    await world.create()
    taken = await world.http.post("/vmachines", json=SPEC, params=DRY)
    assert (taken.status_code, taken.json()["code"]) == (409, "name_taken")


@on_both
async def test_dry_run_of_a_verb_answers_as_the_verb_would(world):
    await world.create()
    await world.status("running")
    await world.quiet()
    before, jobs = await world.show(), len(world.salt.jobs)
    changed = {
        "shutdown": [{"field": "desired", "before": "running", "after": "halted"}],
        "suspend": [{"field": "desired", "before": "running", "after": "paused"}],
        "destroy": [{"field": "desired", "before": "running", "after": "destroyed"}],
        "start": [],
    }
    for verb, changes in changed.items():
        body = (await world.http.post(f"/vmachines/web01/{verb}", params=DRY)).json()
        assert body["changes"] == changes
        assert body["command"] == (verb if changes else None), body
    body = (await world.http.post("/vmachines/web01/modify", params=DRY, json={"hda_save_to": ""})).json()
    assert body["changes"] == [{"field": "hda_save_to", "before": SPEC["hda_save_to"], "after": ""}]
    assert (await world.http.post("/vmachines/web01/save_retry", params=DRY)).status_code == 409
    stale = await world.http.patch("/vmachines/web01", params=DRY, json={"labels": {}}, headers={"If-Match": '"9"'})
    assert stale.status_code == 412
    await world.poll()
    after = await world.show()
    assert {name for name in after if after[name] != before[name]} <= {"age_s", "real_at"}
    assert len(world.salt.jobs) == jobs


@on_both
async def test_parallel_dry_runs_and_changes_do_not_mix(world):
    async def one(n):
        params = DRY if n % 2 else {}
        answer = await world.http.post("/vmachines", json=SPEC | {"name": f"a{n}"}, params=params)
        assert answer.status_code == (200 if n % 2 else 201), answer.text

    await asyncio.gather(*(one(n) for n in range(12)))
    found = (await world.http.get("/vmachines")).json()
    assert {vm["name"] for vm in found} == {f"a{n}" for n in range(0, 12, 2)}


async def test_dry_run_leaves_no_audit_entry(world):
    from sqlmodel import select

    from master_service.db.tables import AuditRow

    await world.http.post("/vmachines", json=SPEC, params=DRY)
    async with world.master.context.store.database.read() as session:
        assert [row for row in (await session.exec(select(AuditRow))).all() if row.kind == "vm"] == []


@pytest.mark.parametrize("word", ["1", "True", "on", "yes"])
async def test_dry_run_uses_no_key_in_any_spelling_of_true(world, word):
    for _ in range(2):
        answer = await world.http.post("/vmachines", json=SPEC, params={"dry_run": word}, headers=KEY)
        assert (answer.status_code, "Idempotency-Replayed" in answer.headers) == (200, False)
    assert (await world.http.post("/vmachines", json=SPEC, headers=KEY)).status_code == 201


async def test_user_is_made_once_and_dry_run_leaves_no_trace(world):
    body = {"name": "uma", "password": "correct horse battery"}
    dry = await world.http.post("/users", json=body, params=DRY, headers=KEY)
    assert (dry.status_code, dry.json()["name"]) == (200, "uma")
    assert (await world.http.get("/users/uma")).status_code == 404
    first = await world.http.post("/users", json=body, headers=KEY)
    again = await world.http.post("/users", json=body, headers=KEY)
    assert (first.status_code, again.status_code, again.content) == (201, 201, first.content)
    patched = await world.http.patch("/users/uma", json={"role": "viewer"}, params=DRY)
    assert patched.json()["role"] == "viewer"
    assert (await world.http.get("/users/uma")).json()["role"] == "user"
    assert (await world.http.delete("/users/uma", params=DRY)).status_code == 204
    assert (await world.http.get("/users/uma")).status_code == 200
    assert (await world.http.delete("/users/admin", params=DRY)).status_code == 409


async def test_no_secret_is_kept_for_a_repetition(world):
    from sqlmodel import select

    from master_service.db.tables import IdempotencyRow

    password = "correct horse battery"
    await world.http.post("/users", json={"name": "uma", "password": password}, headers=KEY)
    made = await world.http.post("/users/uma/tokens", json={"label": "ci"}, headers={"Idempotency-Key": "k2"})
    login = {"user": "uma", "password": password}
    session = await world.http.post("/tokens", json=login, headers={"Idempotency-Key": "k3"})
    change = {"password": password + "!"}
    assert (await world.http.patch("/users/uma", json=change, headers={"Idempotency-Key": "k4"})).status_code == 200
    async with world.master.context.store.database.read() as session_:
        kept = (await session_.exec(select(IdempotencyRow))).all()
    assert {row.key for row in kept} == {"k1", "k4"}
    body = "".join(row.model_dump_json() for row in kept)
    for secret in (password, made.json()["token"], session.json()["token"]):
        assert secret not in body


async def test_dry_run_of_a_revocation_revokes_nothing(world):
    await world.person("uma")
    (token,) = (await world.http.get("/tokens", headers=world.of("uma"))).json()
    assert (await world.http.delete(f"/tokens/{token['id']}", params=DRY)).status_code == 204
    assert (await world.http.get("/users/me", headers=world.of("uma"))).status_code == 200
