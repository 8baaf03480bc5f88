"""A database of version 0.1.0 after the upgrade: all of it is readable, and the work continues."""

import json
import re

import pytest
from alembic import command
from alembic.script import ScriptDirectory
from sqlalchemy import inspect, text

from master_service.core.errors import SaltError
from master_service.db.engine import Database, config
from tests.fixtures import FIXTURES
from tests.functional.master.conftest import running_world
from tests.functional.master.databases import on_both
from tests.functional.master.fakes import FakeSalt, FakeWorker
from tests.functional.master.upgrading import CALM, PASSWORD, answers, load, move, rows

pytestmark = on_both
OLD = "0.1.0"
FOUND = json.loads((FIXTURES / OLD / "master/answers.json").read_text())
TOKENS, ANSWERS = FOUND["tokens"], FOUND["answers"]

RENAMED = {
    "wanted": "desired", "who": "actor", "door": "interface", "told": "message", "do": "kind",
    "strangers": "unassigned_vms", "under_way": "in_progress", "why": "reason",
}  # fmt: skip
"""Field of an answer of 0.1.0 -> what the HTTP interface calls it now. Others kept their name."""

REWORDED = {
    "outcome": {"asked": "queued", "taken": "accepted", "overtaken": "superseded"},
    "interface": {"facade": "worker-api"},
    "fact": {"wanted": "desired", "push": "dispatch", "real": "observed"},
    "scopes": {"people": "accounts"},
}
"""Field of today -> value of 0.1.0 -> value of today."""

REPHRASED = {
    "; nothing is moved": "; its VMs are not moved",
    "w1 took suspend twice, and yet it is": "w1 accepted suspend twice, but it is",
    "no effect seen yet": "no effect observed yet",
    "is tried again later": "is retried later",
    "on w1 by somebody else; destroy it here, too": "on w1, but not through this master; destroy it here too",
    "It went off: ": "It stopped: ",
    "; what is shown is older.": "; its VMs show their last status.",
}
"""Words of 0.1.0 -> words of today, in the sentences of COMPUTED. Stored sentences stay as they were written."""

COMPUTED = {"reason", "message", "detail"}
"""Fields with sentences that are computed for each answer."""

STATUSES = {
    "absent": "running", "changed": "running", "crashed": "halted", "destroyed": "running", "elsewhere": "running",
    "fenced": "running", "fetching": "preparing", "full": "running", "gone": "failed", "halted": "halted",
    "installing": "installing", "leaving": "destroying", "looping": "failed", "manual": "halted",
    "overtaken": "halted", "paused": "paused", "preparing": "preparing", "rebooted": "running", "refused": "failed",
    "refusing": "running", "restarted": "running", "saving": "saving", "sent": "pending", "silent": "running",
    "squeezed": "pending", "taken-away": "running", "unmoved": "running", "unsaved": "failed", "unstarted": "failed",
}  # fmt: skip
"""VMs of the fixture that are not destroyed."""


@pytest.fixture
def database_url(request, tmp_path):
    """A database without any tables yet."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path}/old.db"
        return
    cluster = request.getfixturevalue("postgresql")
    name = cluster.make()
    yield cluster.url(name)
    cluster.drop(name)


@pytest.fixture
async def database(database_url):
    """The database as 0.1.0 left it."""
    made = Database(database_url)
    await load(made, OLD)
    yield made
    await made.close()


@pytest.fixture
def settings(settings):
    return settings.model_copy(update=CALM)


class Away(FakeSalt):
    """A Salt that reaches no minion: the master reports only what it knows."""

    async def call(self, *_words, **_more):
        raise SaltError("salt-api does not answer.")

    publish = call


@pytest.fixture
def away():
    return Away()


FORGOTTEN = {"locked_until": None}
"""Fields that have this value after the start of a master: the limits of logins are in its memory."""


def renamed(value):
    """An old answer in today's words."""
    if isinstance(value, dict):
        fields = {RENAMED.get(name, name): renamed(each) for name, each in value.items()}
        return {name: reworded(name, each) for name, each in fields.items()}
    return [renamed(each) for each in value] if isinstance(value, list) else value


def reworded(name, value):
    if name == "scopes":
        return sorted(REWORDED[name].get(scope, scope) for scope in value)
    if not isinstance(value, str):
        return value
    if name == "vnc":
        return ""  # the master shows no address that a worker reports
    for old, new in REPHRASED.items() if name in COMPUTED else ():
        value = value.replace(old, new)
    return REWORDED.get(name, {}).get(value, value)


UNVERIFIED = [" /users/uma/contact email: was 'uma@example.org', is ''"]
"""Addresses that users of 0.1.0 gave are used again when they are verified. A code is mailed to each."""


UNCOUNTED = [" /users/admin/quota used cpus: was 27, is 25", " /users/admin/quota used mem_mib: was 432, is 400"]
"""A start that has failed counts against the quota only as a VM."""


GONE = "destroyed on w1, but not through this master"
"""What is now said of a VM that was destroyed on its worker, in place of its last message."""


NO_EFFECT = "was [], is [{'code': 'no_effect', "
"""A command that a worker accepted twice without an effect is a problem now, and no longer a reason alone."""


NO_PLACE = "was 'start is retried later', is 'no worker fits: "
"""The reason of a start that waits is its cause now."""


def differences(found):
    """The differences from before, one line each. New fields are no difference, and codes no notice of then."""
    (code,) = [notice for notice in found["/notices?limit=1000"] if notice["kind"] == "verify_email"]
    assert (code["owner"], code["name"], len(code["deliveries"])) == ("uma", "uma", 1)
    found = found | {"/notices?limit=1000": [each for each in found["/notices?limit=1000"] if each != code]}
    lines = list(_differences(found, {path: renamed(was) for path, was in ANSWERS.items()}, ""))
    expected = (*UNVERIFIED, *UNCOUNTED, GONE, NO_EFFECT, NO_PLACE)
    return [line for line in lines if not any(part in line for part in expected)]


def _differences(now, was, where):
    if isinstance(was, dict) and isinstance(now, dict):
        for name in was:
            yield from _differences(now.get(name, "nothing"), FORGOTTEN.get(name, was[name]), f"{where} {name}")
    elif isinstance(was, list) and isinstance(now, list) and len(now) == len(was):
        for number, each in enumerate(was):
            yield from _differences(now[number], each, f"{where} {number}")
    elif now != was:
        yield f"{where}: was {was!r}, is {now!r}"


def bearer(who):
    return {"Authorization": f"Bearer {TOKENS[who]}"}


async def log_in(world, user, password=PASSWORD):
    body = {"user": user, "password": password}
    return (await world.http.post("/tokens", json=body, headers={"Authorization": ""})).status_code


def test_fixture_has_rows_of_every_table_and_kind():
    _, tables = rows(OLD)
    assert all(tables.values()), [name for name, found in tables.items() if not found]
    lines = ANSWERS["/audit?limit=1000"]
    assert {line["outcome"] for line in lines} == {
        "asked", "sent", "taken", "done", "failed", "refused", "denied", "overtaken",
    }  # fmt: skip
    assert {line["door"] for line in lines} == {"api", "cli", "web", "salt", "salt-call", "facade", "master"}
    deliveries = [delivery for notice in ANSWERS["/notices?limit=1000"] for delivery in notice["deliveries"]]
    assert {delivery["state"] for delivery in deliveries} == {"waiting", "delivered", "failed"}
    vms = ANSWERS["/vmachines"]
    assert {vm["name"]: vm["status"] for vm in vms} == STATUSES


async def enroll_all(database):
    """Enroll the workers of the fixture, which did not wait for that when its answers were given."""
    await move(database, command.upgrade, "head")
    reachable = [worker["id"] for worker in ANSWERS["/workers"] if worker["reachable"]]
    async with database.engine.begin() as connection:
        await connection.execute(text("UPDATE worker SET key = 'k'"))
        for worker in reachable:
            query = text("UPDATE worker SET unreachable_since = NULL WHERE id = :id")
            await connection.execute(query, {"id": worker})


async def test_workers_of_before_wait_to_be_enrolled(database, settings, away):
    async with running_world(settings, away) as world:
        workers = (await world.http.get("/workers")).json()
        assert {worker["problem"] for worker in workers} == {"it waits to be enrolled"}
        assert not any(worker["reachable"] for worker in workers)
        vms = {vm["name"]: vm["real"] for vm in (await world.http.get("/vmachines")).json()}
        assert vms == {vm["name"]: vm["real"] for vm in renamed(ANSWERS["/vmachines"])}


async def test_all_is_readable_and_tokens_still_open(database, settings, away):
    await enroll_all(database)
    async with running_world(settings, away) as world:
        assert differences(await answers(world.http)) == []
        for who, status in (
            ("uma_session", 200), ("olga_session", 200), ("robot_program", 200),
            ("uma_revoked", 401), ("uma_expired", 401), ("dora_program", 401),
        ):  # fmt: skip
            assert (await world.http.get("/vmachines", headers=bearer(who))).status_code == status, who
        own = (await world.http.get("/vmachines", headers=bearer("uma_session"))).json()
        assert [vm["name"] for vm in own] == ["full", "unsaved"]
        assert (await world.http.get("/workers", headers=bearer("uma_session"))).status_code == 403
        body = {"name": "x", "hda_image": "blank:1G"}
        assert (await world.http.post("/vmachines", json=body, headers=bearer("robot_program"))).status_code == 403
        assert [await log_in(world, user) for user in ("uma", "vera", "dora")] == [201, 201, 401]
        assert await log_in(world, "uma", "another password") == 401


async def test_down_to_the_old_revision_and_up_again_keeps_all(database, settings, away):
    revision, _ = rows(OLD)
    await move(database, command.upgrade, "head")
    await move(database, command.downgrade, revision)
    await enroll_all(database)
    async with running_world(settings, away) as world:
        assert differences(await answers(world.http)) == []


async def test_secrets_in_old_rows_are_masked(database, settings, away):
    uri = "https://store.test/a.qcow2?X-Amz-Signature=c4nary&x=1"
    before = ScriptDirectory.from_config(config()).get_revision("0014").down_revision
    await move(database, command.upgrade, before)
    async with database.engine.begin() as connection:
        for table, column in (("history", "message"), ("audit", "detail"), ("operation", "detail"), ("notice", "text")):
            await connection.execute(text(f"UPDATE {table} SET {column} = :text"), {"text": f"{uri} answered 403."})
        await connection.execute(text("UPDATE idempotency SET body = :text"), {"text": json.dumps({"hda_image": uri})})
        for table, column in (("vmachine", "spec"), ("observed", "status")):
            found = (await connection.execute(text(f"SELECT uuid, {column} FROM {table}"))).all()
            for uuid, value in found:
                given = json.loads(value) if isinstance(value, str) else value
                spec = given and (given if table == "vmachine" else given.get("spec"))
                if spec:
                    spec["hda_image"] = uri
                    values = {"value": json.dumps(given), "uuid": uuid}
                    change = f"UPDATE {table} SET {column} = CAST(:value AS JSON) WHERE uuid = :uuid"
                    plain = change.replace("CAST(:value AS JSON)", ":value")
                    is_sqlite = connection.dialect.name == "sqlite"
                    await connection.execute(text(plain if is_sqlite else change), values)
    await move(database, command.upgrade, "head")
    async with database.engine.connect() as connection:
        tables = await connection.run_sync(lambda sync: inspect(sync).get_table_names())
        found = [str((await connection.execute(text(f'SELECT * FROM "{name}"'))).all()) for name in tables]
    assert "c4nary" not in "".join(found)
    hidden = uri.replace("c4nary", "***")
    assert "".join(found).count(hidden) > 50
    async with running_world(settings, away) as world:
        assert (await world.show("full"))["spec"]["hda_image"] == hidden


async def test_numbers_of_workers_in_old_rows_are_not_for_users(database, settings, away):
    refusal = "'full' needs 64 MiB of memory; 4321 of 8765 MiB are free here. Use less, or another worker."
    await move(database, command.upgrade, ScriptDirectory.from_config(config()).get_revision("0015").down_revision)
    async with database.engine.begin() as connection:
        for table, column in (("history", "message"), ("operation", "detail")):
            await connection.execute(text(f"UPDATE {table} SET {column} = :text"), {"text": f"refused: {refusal}"})
        problem = "UPDATE dispatch SET problem_code = 'no_room', problem_message = :text"
        await connection.execute(text(problem), {"text": refusal})
    await move(database, command.upgrade, "head")
    async with running_world(settings, away) as world:
        for path in ("/vmachines/full", "/vmachines/full/history", "/operations", "/audit"):
            own = (await world.http.get(path, headers=bearer("uma_session"))).text
            assert not re.search(r"(?<![\w.-])4321", own), path  # outside of UUIDs and times
            assert "no worker has room for it" in own, path
            assert "4321 of 8765" in (await world.http.get(path)).text, path


async def test_answer_that_was_kept_is_given_again(database, settings, away):
    body = repeated_request()
    headers = {"Idempotency-Key": "the-full-one"} | bearer("uma_session")
    async with running_world(settings, away) as world:
        again = await world.http.post("/vmachines", json=body, headers=headers)
        assert (again.status_code, again.headers.get("Idempotency-Replayed")) == (201, "true")
        assert again.headers["Location"] in {f"/api/v1{path}" for path in ANSWERS}
        other = await world.http.post("/vmachines", json=body | {"mem_size": 48}, headers=headers)
        assert (other.status_code, other.json()["code"]) == (422, "idempotency_key_reused")


async def kinds(world, path):
    """The kinds of notices, or verbs of audit entries, that uma sees."""
    found = (await world.http.get(path, headers=bearer("uma_session"))).json()
    return [entry.get("verb", entry["kind"]) for entry in found]


@pytest.mark.parametrize("earlier", [False, True])
async def test_rows_from_before_an_account_are_not_its_own(database, settings, away, earlier):
    """A deleted account may have had the same name. VMs that are not destroyed belong to the account that exists."""
    uma = [line for line in ANSWERS["/audit?limit=1000"] if line["who"] == "uma"]
    external = [line for line in uma if line["door"] not in ("api", "cli", "web")]
    notices = [notice for notice in ANSWERS["/notices?limit=1000"] if notice["owner"] == "uma"]
    if earlier:
        async with database.engine.begin() as connection:
            await connection.execute(text("UPDATE account SET created_at = '2025-07-01 00:00:00' WHERE name = 'uma'"))
    async with running_world(settings, away) as world:
        vms = (await world.http.get("/vmachines", headers=bearer("uma_session"))).json()
        assert [vm["name"] for vm in vms] == ["full", "unsaved"]
        assert (await kinds(world, "/notices"))[1:] == ([] if earlier else [notice["kind"] for notice in notices])
        verbs = [line["verb"] for line in uma if line not in external]
        assert verbs
        assert await kinds(world, "/audit?limit=1000") == ([] if earlier else verbs)
        headers = {"Idempotency-Key": "the-full-one"} | bearer("uma_session")
        again = await world.http.post("/vmachines", json=repeated_request(), headers=headers)
        assert again.status_code == (409 if earlier else 201)


async def test_open_incident_is_not_reported_again(database, settings, away):
    async with running_world(settings, away) as world:
        users = {user["name"]: user["id"] for user in (await world.http.get("/users")).json()}
        async with database.engine.connect() as connection:
            query = text("SELECT key, owner, owner_id FROM notice WHERE kind = 'unreachable' AND owner <> ''")
            found = (await connection.execute(query)).all()
        assert found
        for key, owner, owner_id in found:
            assert (owner_id, key.rpartition(":")[2]) == (users[owner], users[owner])


def repeated_request():
    """The request of which the fixture keeps the answer, word by word."""
    return json.loads((FIXTURES / OLD / "master/request.json").read_text())


async def test_work_goes_on_with_new_rows_beside_the_old(database, settings):
    """Workers are back: they report their VMs, and new rows get numbers of their own."""
    salt = FakeSalt(FakeWorker("w1"))
    await move(database, command.upgrade, "head")
    # The worker gets no command again: it is not in the fixture and lists none of its VMs, once.
    async with running_world(settings, salt) as world:
        newest = ANSWERS["/audit?limit=1000"][0]["id"]
        made = await world.create(name="new", worker="w1")
        await world.status("running", "new")
        await world.quiet()
        (line,) = (await world.http.get("/audit", params={"vm": made["uuid"], "verb": "create"})).json()
        assert line["id"] > newest
        history = (await world.http.get(f"/vmachines/{made['uuid']}/history")).json()
        assert [entry["after"] for entry in history if entry["fact"] == "observed"] == ["running", "starting"]
        full = await world.show("full")
        await world.ask("destroy", "manual")
        assert (await world.http.get("/vmachines/manual")).status_code == 404
        assert full["labels"] == {"role": "web", "tier": ""}
