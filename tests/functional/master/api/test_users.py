"""Users, passwords and tokens over HTTP, on a real database."""

import asyncio
import copy
import threading
from collections import Counter
from datetime import timedelta

import pytest
from sqlmodel import select

from master_service.core.clock import utc_now
from master_service.db.tables import AccountRow, AuditRow
from master_service.policy.permissions import Role, Scope
from master_service.store.audit import Search
from tests.functional.master.conftest import LIMIT_S, SPEC, eventually
from tests.functional.master.databases import on_both

GOOD = "correct horse battery"
WRONG = "wrong horse battery"


async def create(world, name="uma", **more):
    answer = await world.http.post("/users", json={"name": name, "password": GOOD} | more)
    assert answer.status_code == 201, answer.text
    return answer.json()


async def login(world, user="uma", password=GOOD, **more):
    return await world.http.post("/tokens", json={"user": user, "password": password} | more, headers=anonymous(world))


def anonymous(world):
    return {"Authorization": ""}


def bearer(answer):
    assert answer.status_code == 201, answer.text
    return {"Authorization": f"Bearer {answer.json()['token']}"}


async def rows(world, model, *where):
    async with world.master.context.store.database.read() as session:
        return (await session.exec(select(model).where(*where).order_by(*model.__table__.primary_key))).all()


async def test_password_grants_the_rights_of_its_user(world):
    await create(world)
    answer = await login(world)
    reply = answer.json()
    assert (reply["user"], reply["kind"], reply["scopes"]) == (
        "uma",
        "session",
        ["accounts", "console", "operate", "read"],
    )
    assert answer.headers["Cache-Control"] == "no-store"
    uma = bearer(answer)
    assert (await world.http.get("/users/me", headers=uma)).json()["name"] == "uma"
    assert (await world.http.get("/vmachines", headers=uma)).json() == []
    assert (await world.http.get("/workers", headers=uma)).status_code == 403
    mine = await world.http.post("/vmachines", json=SPEC, headers=uma)
    assert (mine.status_code, mine.json()["owner"]) == (201, "uma")


@on_both
async def test_logging_out_ends_the_session_alone(world):
    await create(world)
    one, other = bearer(await login(world)), bearer(await login(world))
    assert (await world.http.delete("/tokens/current", headers=one)).status_code == 204
    refused = await world.http.get("/users/me", headers=one)
    assert (refused.status_code, "was revoked" in refused.json()["detail"]) == (401, True)
    assert (await world.http.get("/users/me", headers=other)).status_code == 200


@on_both
async def test_all_refusals_of_a_login_are_alike(world, monkeypatch):
    """Whether the user exists, has a password, is disabled or locked: one answer, one comparison, as many writes."""
    now = utc_now()
    world.master.accounts._clock = lambda: now  # a lock lasts
    for name in ("uma", "dora", "lola"):
        await create(world, name)
    assert (await world.http.post("/users", json={"name": "robot"})).status_code == 201
    await world.http.patch("/users/dora", json={"disabled": True})
    for _ in range(6):
        await login(world, "lola", WRONG)
    passwords, database = world.master.accounts._passwords, world.master.context.store.database
    await passwords.matches("x", None, "")
    compared, written = [], []
    verify, write = passwords._hash.verify, database.write
    monkeypatch.setattr(passwords._hash, "verify", lambda *a: compared.append(a) or verify(*a))
    # Not the renewals of the lease, which come every few seconds without any login.
    monkeypatch.setattr(world.master.lease._leases, "_database", copy.copy(database))
    monkeypatch.setattr(database, "write", lambda: written.append(1) or write())
    answers = []
    for name, password in (("uma", WRONG), ("ghost", GOOD), ("robot", GOOD), ("dora", GOOD), ("lola", GOOD)):
        compared.clear()
        written.clear()
        answer = await login(world, name, password)
        answers.append((answer.status_code, answer.text, len(compared), len(written)))
    assert len(set(answers)) == 1
    assert (answers[0][0], answers[0][2:]) == (401, (1, 1))


@on_both
async def test_too_many_wrong_passwords_lock_the_password_for_a_while(world):
    await create(world)
    before, now = bearer(await login(world)), utc_now()
    world.master.accounts._clock = lambda: now
    for _ in range(5):
        assert (await login(world, password=WRONG)).status_code == 401
    assert (await login(world)).status_code == 401
    assert (await world.http.get("/users/uma")).json()["locked_until"] is not None
    assert (await world.http.get("/users/me", headers=before)).status_code == 200
    world.master.accounts._clock = lambda: now + timedelta(seconds=31)
    assert (await login(world)).status_code == 201
    assert (await world.http.get("/users/uma")).json()["locked_until"] is None


@on_both
async def test_many_guesses_at_once_do_not_outrun_the_count(world, monkeypatch):
    await create(world)
    monkeypatch.setattr("master_service.services.password_hashing._MOST_OF_A_SOURCE", 20)
    passwords = world.master.accounts._passwords
    compared, verify = [], passwords._hash.verify
    monkeypatch.setattr(passwords._hash, "verify", lambda given, kept: compared.append(kept) or verify(given, kept))
    await asyncio.gather(*(login(world, password=f"{WRONG}{n}") for n in range(15)))
    (account,) = await rows(world, AccountRow, AccountRow.name == "uma")
    assert compared.count(account.password) == 5


async def test_excess_parallel_logins_get_429(world, monkeypatch):
    monkeypatch.setattr("master_service.services.password_hashing._MOST_OF_A_SOURCE", 3)
    passwords, go_on = world.master.accounts._passwords, threading.Event()
    await passwords.matches("x", None, "")
    verify = passwords._hash.verify
    monkeypatch.setattr(passwords._hash, "verify", lambda *a: go_on.wait(LIMIT_S) and verify(*a))
    logins = [asyncio.create_task(login(world, f"ghost{n}")) for n in range(10)]
    await eventually(lambda: sum(task.done() for task in logins) == 7)  # those that are let in are held
    go_on.set()
    assert Counter(answer.status_code for answer in await asyncio.gather(*logins)) == {401: 3, 429: 7}


@on_both
async def test_user_changes_the_own_password(world):
    await create(world)
    first = bearer(await login(world))
    body = {"old_password": WRONG, "new_password": "another horse battery"}
    assert (await world.http.put("/users/me/password", json=body, headers=first)).status_code == 403
    body["old_password"] = GOOD
    assert (await world.http.put("/users/me/password", json=body, headers=first)).status_code == 204
    assert (await world.http.get("/users/me", headers=first)).status_code == 401  # logged out everywhere
    assert (await login(world)).status_code == 401
    assert (await login(world, password="another horse battery")).status_code == 201


@on_both
@pytest.mark.parametrize("change", [{"disabled": True}, {"password": "another horse battery"}])
async def test_disabling_or_new_password_ends_sessions(world, change):
    await create(world)
    session = bearer(await login(world))
    for label in ("ci\x1b[2J", "\u202ecilbup", "a\nb", "\x9b"):
        refused = await world.http.post("/users/me/tokens", json={"label": label}, headers=session)
        assert (refused.status_code, "printable characters only" in refused.text) == (400, True)
    program = await world.http.post("/users/me/tokens", json={"label": "backup"}, headers=session)
    assert (await world.http.patch("/users/uma", json=change)).status_code == 200
    assert (await world.http.get("/users/me", headers=session)).status_code == 401
    opened = (await world.http.get("/users/me", headers=bearer(program))).status_code
    assert opened == (401 if "disabled" in change else 200)


async def test_role_counts_at_once(world):
    await create(world)
    uma = bearer(await login(world))
    assert (await world.http.get("/workers", headers=uma)).status_code == 403
    await world.http.patch("/users/uma", json={"role": "viewer"})
    assert (await world.http.get("/workers", headers=uma)).status_code == 200
    assert (await world.http.post("/vmachines", json=SPEC, headers=uma)).status_code == 403


@on_both
async def test_token_for_a_program_has_its_scopes(world):
    await create(world)
    session = bearer(await login(world))
    made = await world.http.post(
        "/users/me/tokens", json={"label": "ci", "scopes": ["read"], "expires_in_s": 3600.0}, headers=session
    )
    program = bearer(made)
    assert made.json()["token"].startswith("saltern_")
    assert (await world.http.get("/vmachines", headers=program)).status_code == 200
    refused = await world.http.post("/vmachines", json=SPEC, headers=program)
    assert (refused.status_code, "scope operate" in refused.json()["detail"]) == (403, True)
    listed = {token["id"]: token for token in (await world.http.get("/tokens", headers=session)).json()}
    assert len(listed) == 2
    shown = listed[made.json()["id"]]
    assert (shown["label"], shown["scopes"], "token" in shown) == ("ci", ["read"], False)
    assert shown["last_used_at"] is not None
    assert (await world.http.delete(f"/tokens/{shown['id']}", headers=session)).status_code == 204
    assert (await world.http.get("/vmachines", headers=program)).status_code == 401


@on_both
async def test_no_token_gives_more_than_it_has(world):
    secret = await world.person("pia", Role.ADMIN, scopes=frozenset({Scope.ACCOUNTS, Scope.READ}))
    headers = {"Authorization": f"Bearer {secret}"}
    body = {"label": "more", "scopes": ["operate"]}
    refused = await world.http.post("/users/pia/tokens", json=body, headers=headers)
    assert (refused.status_code, refused.json()["errors"][0]["field"]) == (400, "scopes")
    made = await world.http.post("/users/pia/tokens", json={"label": "same"}, headers=headers)
    assert made.json()["scopes"] == ["accounts", "read"]


@on_both
async def test_token_ends_when_expired_or_revoked(world):
    await create(world)
    for seconds in (0, -1, 400 * 86400):
        assert (await login(world, expires_in_s=float(seconds))).status_code == 400
    short = await login(world, expires_in_s=0.001)
    refused = await world.http.get("/users/me", headers=bearer(short))
    assert (refused.status_code, "has expired" in refused.json()["detail"]) == (401, True)


@on_both
async def test_token_of_the_settings_and_its_user_stay(world):
    (kept,) = [token for token in (await world.http.get("/tokens")).json() if token["kind"] == "settings"]
    assert (await world.http.delete(f"/tokens/{kept['id']}")).status_code == 409
    for change in ({"role": "viewer"}, {"disabled": True}):
        assert (await world.http.patch("/users/admin", json=change)).status_code == 409
    assert (await world.http.delete("/users/admin")).status_code == 409
    assert (await world.http.get("/vmachines")).status_code == 200


@on_both
async def test_user_with_vms_is_not_forgotten(world):
    await create(world)
    uma = bearer(await login(world))
    await world.http.post("/vmachines", json=SPEC, headers=uma)
    refused = await world.http.delete("/users/uma")
    assert (refused.status_code, "web01" in refused.json()["detail"]) == (409, True)
    assert (await world.http.get("/users/uma")).json()["vms"] == 1
    assert (await world.http.delete("/vmachines/web01")).status_code == 200
    assert (await world.http.delete("/users/uma")).status_code == 204
    assert (await world.http.get("/users/me", headers=uma)).status_code == 401
    await create(world)  # the name is free again, and the old tokens are not


NOT_A_CALLERS = (
    ("POST", "/users", {"name": "eve"}, ("failures", "created_at", "vms", "locked_until")),
    ("PATCH", "/users/uma", {"role": "user"}, ("name", "has_password", "failures")),
    ("POST", "/tokens", {"user": "uma", "password": GOOD}, ("role", "kind", "id")),
    ("POST", "/users/uma/tokens", {"label": "x"}, ("user", "token", "kind")),
    ("POST", "/vmachines", SPEC, ("owner", "uuid", "generation", "worker_id", "desired", "role", "epoch", "version")),
)


async def test_fields_that_are_not_the_callers_to_give_are_refused(world):
    await create(world)
    for method, path, body, fields in NOT_A_CALLERS:
        for field in fields:
            answer = await world.http.request(method, path, json=body | {field: "1"})
            assert (answer.status_code, answer.json()["errors"][0]["field"]) == (400, field), answer.text
            assert "is not a parameter" in answer.json()["errors"][0]["message"]


async def test_users_cannot_raise_their_own_role(world):
    await create(world)
    uma = bearer(await login(world))
    for method, path, body in (
        ("PATCH", "/users/me", {"role": "admin"}),
        ("POST", "/users", {"name": "eve", "role": "admin"}),
        ("DELETE", "/users/me", None),
    ):
        assert (await world.http.request(method, path, json=body, headers=uma)).status_code == 403
    for method, path in (("GET", "/users/admin"), ("PATCH", "/users/admin"), ("POST", "/users/admin/tokens")):
        assert (await world.http.request(method, path, json={}, headers=uma)).status_code == 404


async def test_bad_passwords_are_refused_and_not_repeated(world):
    for password in ("short", "x" * 12, "", "y" * 257, 12345678901):
        answer = await world.http.post("/users", json={"name": "uma", "password": password})
        assert (answer.status_code, answer.json()["errors"][0]["field"]) == (400, "password")
        assert "given" not in answer.text


async def test_bad_names_are_refused(world):
    for name in ("", "Uma", "me", "saltern", "nobody", "-a", "a b", "a" * 64, "a/b", "ä"):
        assert (await world.http.post("/users", json={"name": name})).status_code == 400


@on_both
async def test_users_name_is_taken_once(world):
    await create(world)
    again = await world.http.post("/users", json={"name": "uma"})
    assert (again.status_code, again.json()["code"]) == (409, "name_taken")
    assert [user["name"] for user in (await world.http.get("/users")).json()] == ["admin", "uma"]


@on_both
async def test_refusals_are_in_the_audit_once_a_minute(world):
    uma = await world.person("uma")
    for _ in range(3):
        await world.http.get("/vmachines", headers={"Authorization": "Bearer nonsense"})
        await world.http.get("/workers", headers={"Authorization": f"Bearer {uma}"})
    await world.create(name="theirs")
    await world.http.get("/vmachines/theirs", headers={"Authorization": f"Bearer {uma}"})
    await world.http.get("/vmachines/ghost", headers={"Authorization": f"Bearer {uma}"})
    denied = await rows(world, AuditRow, AuditRow.outcome == "denied")
    assert [(row.actor, row.name) for row in denied] == [
        ("nobody", "GET /vmachines"),
        ("uma", "GET /workers"),
        ("uma", "GET /vmachines/{id_or_name}"),
    ]
    assert all(row.address and row.request_id for row in denied)


@on_both
async def test_users_and_tokens_leave_their_lines_in_the_audit(world):
    await create(world)
    await login(world, password=WRONG)
    answer = await login(world)
    await world.http.patch("/users/uma", json={"role": "viewer", "password": "another horse battery"})
    await world.http.post("/users/uma/tokens", json={"label": "x"})
    await world.http.delete("/users/uma")
    lines = (await world.master.context.store.audit.page(Search(), None, 100))[::-1]
    found = [(line.actor, line.verb, line.kind, line.outcome) for line in lines][1:]
    assert found == [
        ("admin", "create", "user", "done"),
        ("nobody", "login", "user", "denied"),
        ("uma", "login", "user", "done"),
        ("admin", "modify", "user", "done"),
        ("admin", "create", "token", "done"),
        ("admin", "delete", "user", "done"),
    ]
    assert answer.json()["id"] in lines[3].detail
