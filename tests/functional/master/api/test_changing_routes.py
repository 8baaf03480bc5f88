"""Every route that changes something: it has a dry run or refuses one, refuses unknown query parameters, and does a
request once per `Idempotency-Key`.

A new route fails here until BODIES has a body for it. A route that answers with a secret belongs into SECRETS.
"""

import itertools
import re
from contextvars import ContextVar
from datetime import UTC, datetime
from uuid import uuid4

import msgspec
import pytest
from sqlalchemy import select, update
from sqlmodel import col

from master_service.api import create_app
from master_service.core.settings import Settings
from master_service.db.tables import AccountRow, Table
from master_service.policy.accounts import NewToken
from master_service.policy.audit import MASTER
from tests.functional.master.api.test_permissions import routes_of
from tests.functional.master.conftest import SPEC
from tests.functional.master.databases import on_both
from tests.functional.master.fakes import ROOMY, FakeSalt, FakeVM, FakeWorker
from worker_service.contract import HaltCause, Spec, Status

GOOD = "correct horse battery"
CODE = "c0de"
URI = "file:/srv/images/debian.qcow2"
BODIES = {
    "POST /vmachines": SPEC | {"name": "new", "run_policy": "manual"},
    "PATCH /vmachines/{id_or_name}": {"labels": {"a": "b"}},
    "POST /vmachines/{id_or_name}/modify": {"labels": {"a": "b"}},
    "POST /workers/{worker_id}/fence": {"i_have_fenced": "w2"},
    "POST /workers/{worker_id}/enroll": {"fingerprint": FakeWorker("w2").fingerprint},
    "POST /workers/{worker_id}/vmachines/{uuid}/adopt": {"owner": "admin"},
    "POST /images": {"uri": URI, "workers": ["w1"]},
    "POST /images/pin": {"uri": URI, "workers": ["w1"]},
    "POST /images/unpin": {"uri": URI, "workers": ["w1"]},
    "POST /notices/ack": {"all": True},
    "POST /images/cancel": {"uri": URI, "workers": ["w1"]},
    "POST /images/clean": {"workers": ["w1"]},
    "POST /users": {"name": "new"},
    "PATCH /users/{name}": {"role": "viewer"},
    "POST /users/{name}/contact/verify": {"code": CODE},
    "PATCH /users/{name}/contact": {"webhook_url": "https://example.org/hook"},
    "PUT /users/{name}/password": {"old_password": GOOD, "new_password": f"{GOOD}!"},
    "POST /users/{name}/tokens": {"label": "ci"},
    "POST /tokens": {"user": "uma", "password": GOOD},
}
CHANGES = sorted(key for key in routes_of(create_app(Settings())) if key.split()[0] not in ("GET", "WEBSOCKET"))
SECRETS = {
    "POST /vmachines/{id_or_name}/console",
    "PATCH /users/{name}/contact",
    "POST /users/{name}/tokens",
    "POST /tokens",
}
"""Their answers hold a secret, and so are not kept."""
UNREHEARSED = {
    "POST /vmachines/{id_or_name}/console",
    "PUT /users/{name}/password",
    "POST /users/{name}/tokens",
    "POST /tokens",
}
"""A ticket, a token: of no use when it is taken back. A password that is tried has to be counted."""

EFFECTS = {
    *(f"POST /vmachines/{{id_or_name}}/{verb}" for verb in ("start", "shutdown", "suspend", "resume", "destroy")),
    "POST /vmachines",
    "POST /vmachines/{id_or_name}/modify",
    "POST /vmachines/{id_or_name}/save_retry",
    "PATCH /vmachines/{id_or_name}",
    "DELETE /vmachines/{id_or_name}",
    "POST /workers/{worker_id}/undrain",
    "POST /workers/{worker_id}/enroll",
    "POST /workers/{worker_id}/unenroll",
    "POST /workers/{worker_id}/vmachines/{uuid}/adopt",
    "POST /images",
    "POST /images/pin",
    "POST /images/unpin",
    "POST /images/cancel",
    "POST /images/clean",
}
"""Routes with effects outside the database, when they are not dry runs."""

HEARD_AT = {"last_used_at", "seen_at", "real_at"}
"""Times of the last contact: polls and every request write them."""


@pytest.fixture
def settings(settings):
    return settings.model_copy(update={"smtp_host": "127.0.0.1", "smtp_port": 1})


@pytest.fixture
def salt():
    large = msgspec.structs.replace(ROOMY, cpu_total=100, cpu_free=100)
    return FakeSalt(FakeWorker("w1", large, cached={URI: False}), FakeWorker("w2"))


async def pend(world, name):
    """Let a user have an address that waits for `CODE`."""
    pending = {"email_pending": "other@example.org", "email_code": CODE, "email_requested_at": datetime.now(UTC)}
    async with world.master.context.store.database.write() as session:
        await session.exec(update(AccountRow).where(col(AccountRow.name) == name).values(**pending))


class Hall:
    """A world, and what each route needs in it."""

    def __init__(self, world):
        self.world = world
        self.numbers = itertools.count()

    async def target(self, key):
        """The path of a route, with fresh objects in it."""
        name, world, values = f"x{next(self.numbers)}", self.world, {"worker_id": "w2"}
        if "{id_or_name}" in key:
            values["id_or_name"] = name
            vm = await world.create(name=name, mem_size=4, worker="w1")
            await world.status("running", name)
            if key.endswith("/save_retry"):
                world.salt.workers["w1"].turn(vm["uuid"], Status.FAILED_TO_SAVE, HaltCause.GUEST)
                world.salt.report("w1", vm["uuid"])
                await world.status("failed", name)
            await world.quiet()
        if "{uuid}" in key:
            values |= {"worker_id": "w1", "uuid": str(uuid4())}
            worker = world.salt.workers["w1"]
            worker.vms[values["uuid"]] = FakeVM(Spec(name=name, mem_size=4, hda_image=URI), 0, Status.RUNNING)
            await world.poll()
        if "{name}" in key or key == "POST /tokens":
            values["name"] = "uma" if key == "POST /tokens" else name
            answer = await world.http.post("/users", json={"name": values["name"], "password": GOOD})
            assert answer.status_code in (201, 409)
            contact = {"email": "somebody@example.org"}
            assert (await world.http.patch(f"/users/{values['name']}/contact", json=contact)).status_code == 200
            if key.endswith("/verify"):
                await pend(world, values["name"])
        if "{token_id}" in key:
            token = NewToken(user="admin", kind="token", label="", scopes=frozenset(), expires_at=None)
            await world.master.context.store.tokens.add(token, MASTER, world.master.context.clock())
            values["token_id"] = token.id
        return re.sub(r"\{(\w+)\}", lambda match: values[match[1]], key.partition(" ")[2])

    async def ask(self, key, path, headers=(), **query):
        headers = {"If-Match": "*", **dict(headers)}
        return await self.world.http.request(key.split()[0], path, json=BODIES.get(key), params=query, headers=headers)

    async def everything(self):
        """Return everything that a request could have changed."""
        kept, parts = {}, self.world.master.context
        async with parts.store.database.read() as session:
            for table in Table.metadata.sorted_tables:
                if table.name != "lease":  # signs of life
                    columns = [column for column in table.c if column.name not in HEARD_AT]
                    kept[table.name] = sorted(map(repr, await session.exec(select(*columns))))
        cached = {worker.id: dict(worker.cached) for worker in self.world.salt.workers.values()}
        return kept, list(self.world.salt.jobs), cached, set(self.world.master.console_tickets._waiting)

    async def audit_entries(self):
        """The audit entries about requests of users."""
        return [line["id"] for line in (await self.world.http.get("/audit")).json() if line["interface"] != "master"]


@pytest.fixture
async def hall(world):
    world.salt.silent.add("w2")
    await world.poll()
    return Hall(world)


@on_both
async def test_dry_run_changes_nothing_or_is_refused(hall):
    refused = set()
    for key in CHANGES:
        path = await hall.target(key)
        before = await hall.everything()
        answer = await hall.ask(key, path, dry_run="true")
        assert await hall.everything() == before, key
        if answer.status_code == 400:
            assert [error["field"] for error in answer.json()["errors"]] == ["dry_run"], key
            refused.add(key)
        else:
            assert answer.is_success, (key, answer.text)
    assert refused == UNREHEARSED


RECORDED: ContextVar[list[str] | None] = ContextVar("recorded", default=None)
"""The effects of the test's own requests. The master's daemons run in other tasks, which do not see this list."""


def recording(name, effect):
    """The same function, which also adds its name to the list of the request that calls it."""

    def record(*arguments, **options):
        asks_only = {"preview": True} in arguments
        if (effects := RECORDED.get()) is not None and not asks_only:
            effects.append(name)
        return effect(*arguments, **options)

    return record


@pytest.fixture
def recorded(world, monkeypatch):
    """Record every call by which a request has an effect outside the database."""
    master = world.master
    for owner, name in (
        (world.salt, "publish"),
        (world.salt, "call"),
        (master.pusher, "wake"),
        (master.poller, "request"),
        (master.context.changes, "publish"),
        (master.context.store.database, "ask_for_poll"),
    ):
        monkeypatch.setattr(owner, name, recording(name, getattr(owner, name)))


async def effects_of(hall, key, **query):
    """The effects of one request."""
    path = await hall.target(key)
    token = RECORDED.set(found := [])
    try:
        answer = await hall.ask(key, path, **query)
    finally:
        RECORDED.reset(token)
    assert answer.is_success or "dry_run" in query, (key, answer.text)
    return found


@pytest.mark.usefixtures("recorded")
async def test_dry_run_of_every_route_has_no_effect(hall):
    for key in CHANGES:
        assert await effects_of(hall, key, dry_run="true") == [], key


@pytest.mark.usefixtures("recorded")
async def test_recorder_sees_the_effects_of_a_real_request(hall):
    found = {key for key in CHANGES if key not in UNREHEARSED and await effects_of(hall, key)}
    assert found == EFFECTS


async def test_unknown_query_parameter_is_refused(hall):
    for key in CHANGES:
        path = await hall.target(key)
        before = await hall.everything()
        answer = await hall.ask(key, path, dryrun="true")
        assert answer.status_code == 400, (key, answer.text)
        assert answer.json()["errors"] == [
            {"field": "dryrun", "message": "is not a parameter of this change: nothing was changed"}
        ]
        assert await hall.everything() == before, key


@on_both
async def test_repeated_key_replays_the_response(hall):
    for number, key in enumerate(CHANGES):
        path = await hall.target(key)
        headers = {"Idempotency-Key": f"k{number}"}
        first = await hall.ask(key, path, headers)
        assert first.is_success, (key, first.text)
        if key in SECRETS:
            continue
        before = await hall.audit_entries()
        again = await hall.ask(key, path, headers)
        assert again.headers.get("Idempotency-Replayed") == "true", (key, again.text)
        assert (again.status_code, again.content) == (first.status_code, first.content), key
        assert await hall.audit_entries() == before, key
    async with hall.world.master.context.store.database.read() as session:
        kept = {row.key for row in await session.exec(select(Table.metadata.tables["idempotency"]))}
    assert kept == {f"k{number}" for number, key in enumerate(CHANGES) if key not in SECRETS}
