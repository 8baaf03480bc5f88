"""Identity is not the name: a user with the name of a deleted one sees and gets nothing of theirs."""

from datetime import timedelta

import pytest

from master_service.core.errors import Conflict, NotFound, Unauthorised
from master_service.policy.accounts import NewToken
from master_service.policy.audit import Actor
from master_service.policy.incidents import Kind, stuck_incident
from tests.functional.master.conftest import SPEC
from tests.functional.master.databases import on_both
from worker_service.contract import Spec, Status

pytestmark = on_both
GOOD = "correct horse battery"
KEY = {"Idempotency-Key": "k1"}
LISTS = ("/vmachines", "/vmachines?status=destroyed", "/operations", "/notices")


async def make(world, password=GOOD):
    """Make the user `uma`, and return the header of her session."""
    made = await world.http.post("/users", json={"name": "uma", "password": password})
    assert made.status_code == 201, made.text
    return await log_in(world, password)


async def log_in(world, password=GOOD):
    session = await world.http.post(
        "/tokens", json={"user": "uma", "password": password}, headers={"Authorization": ""}
    )
    assert session.status_code == 201, session.text
    return {"Authorization": f"Bearer {session.json()['token']}"}


@pytest.fixture
async def left(world):
    """A user who had a VM with a failed save, was given another's place, and is gone. Returns the VM."""
    old = await make(world)
    made = await world.http.post("/vmachines", json=SPEC, headers=old | KEY)
    vm = made.json()
    await world.status("running")
    world.salt.workers["w1"].turn(vm["uuid"], Status.FAILED_TO_SAVE)
    world.salt.report("w1", vm["uuid"])
    await world.status("failed")
    for path in ("/vmachines", "/operations", "/notices", "/audit"):
        assert (await world.http.get(path, headers=old)).json(), path
    await world.ask("destroy")
    assert (await world.http.get("/vmachines?status=destroyed", headers=old)).json()
    assert (await world.http.delete("/users/uma")).status_code == 204
    assert (await world.http.get("/vmachines", headers=old)).status_code == 401
    return vm


async def test_new_user_of_an_old_name_sees_nothing_of_the_old_one(world, left):
    operations = (await world.http.get("/operations")).json()
    new = await make(world)
    for path in LISTS:
        assert (await world.http.get(path, headers=new)).json() == [], path
    for path in ("", "/history"):
        assert (await world.http.get(f"/vmachines/{left['uuid']}{path}", headers=new)).status_code == 404
    for verb in ("start", "destroy", "console"):
        assert (await world.http.post(f"/vmachines/{left['uuid']}/{verb}", headers=new)).status_code == 404
    for operation in operations:
        assert (await world.http.get(f"/operations/{operation['id']}", headers=new)).status_code == 404
    assert {line["verb"] for line in (await world.http.get("/audit", headers=new)).json()} == {"login", "denied"}
    (token,) = (await world.http.get("/tokens", headers=new)).json()
    assert token["kind"] == "session"
    quota = (await world.http.get("/users/me/quota", headers=new)).json()
    assert set(quota["used"].values()) == {0}


async def test_administrators_can_distinguish_both(world, left):
    await make(world)
    uma = (await world.http.get("/users/uma")).json()
    (old,) = (await world.http.get("/vmachines?status=destroyed&owner=uma")).json()
    assert (old["owner"], old["owner_id"] == uma["id"], uma["vms"]) == ("uma", False, 0)
    lines = (await world.http.get("/audit?actor=uma")).json()
    assert {line["actor_id"] for line in lines} == {uma["id"], old["owner_id"]}


async def test_key_of_the_old_user_is_free_for_the_new_one(world, left):
    new = await make(world)
    made = await world.http.post("/vmachines", json=SPEC | {"name": "web02"}, headers=new | KEY)
    assert (made.status_code, "Idempotency-Replayed" in made.headers) == (201, False)


async def test_notice_for_the_old_user_is_not_sent_to_the_new_one(world, left):
    new = await make(world)
    hook = {"webhook_url": "https://hook.test/x"}
    assert (await world.http.patch("/users/me/contact", json=hook, headers=new)).status_code == 200
    store, now = world.master.context.store, world.master.context.clock()
    (vm,) = await store.queries.vms([left["uuid"]])
    await store.notices.keep([stuck_incident(vm, "late")], now)
    (notice, *_) = (await world.http.get("/notices")).json()
    assert (notice["kind"], notice["deliveries"]) == (Kind.STUCK, [])
    assert (await world.http.get("/notices", headers=new)).json() == []


async def test_account_deleted_during_a_create_gets_no_vm(world):
    """The request was admitted before, and the name was given again."""
    await make(world)
    account = await world.master.accounts.user("uma")
    actor = Actor(name="uma", account_id=account.id)
    assert (await world.http.delete("/users/uma")).status_code == 204
    await make(world)
    with pytest.raises(Conflict, match="deleted meanwhile"):
        await world.master.vms.create(Spec(name="web01", hda_image="blank:1G"), actor)
    assert (await world.http.get("/vmachines")).json() == []


CHANGES = (
    lambda store, actor, now: store.accounts.change("uma", {"email": "eve@example.org"}, actor, now),
    lambda store, actor, now: store.accounts.verify_email("uma", "code", actor, now),
    lambda store, actor, now: store.accounts.remove("uma", actor, now),
    lambda store, actor, now: store.notices.try_out("uma", actor, now, timedelta()),
    lambda store, actor, now: store.tokens.add(program(), actor, now),
)


def program():
    return NewToken(user="uma", kind="token", label="", scopes=frozenset(), expires_at=None)


async def test_request_of_the_old_user_changes_nothing_of_the_new(world):
    """The request was admitted before, and the name was given again."""
    await make(world)
    old = Actor(name="uma", account_id=(await world.master.accounts.user("uma")).id)
    assert (await world.http.delete("/users/uma")).status_code == 204
    await make(world)
    context = world.master.context
    for change in CHANGES:
        with pytest.raises(NotFound):
            await change(context.store, old, context.clock())
    assert (await world.http.get("/users/uma/contact")).json()["email_pending"] == ""
    tokens = [token for token in (await world.http.get("/tokens")).json() if token["user"] == "uma"]
    assert [token["kind"] for token in tokens] == ["session"]


@pytest.mark.parametrize("change", ["recreated", "deleted", "disabled", "password"])
async def test_login_is_for_the_account_whose_password_was_checked(world, monkeypatch, change):
    """To check a password takes a while, in which the account may change."""
    await make(world)
    service = world.master.accounts
    matches = service._passwords.matches

    async def slow(password, kept, source):
        found = await matches(password, kept, source)
        match change:
            case "recreated" | "deleted":
                assert (await world.http.delete("/users/uma")).status_code == 204
                if change == "recreated":
                    await world.http.post("/users", json={"name": "uma", "password": "another " + GOOD})
            case "disabled":
                await world.http.patch("/users/uma", json={"disabled": True})
            case "password":
                await world.http.patch("/users/uma", json={"password": "another " + GOOD})
        return found

    monkeypatch.setattr(service._passwords, "matches", slow)
    answer = await world.http.post("/tokens", json={"user": "uma", "password": GOOD}, headers={"Authorization": ""})
    assert (answer.status_code, answer.json()["code"]) == (401, Unauthorised.code)
    assert [token["kind"] for token in (await world.http.get("/tokens")).json() if token["user"] == "uma"] == []
