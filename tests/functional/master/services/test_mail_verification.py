"""Mail addresses are verified: notices go only to an address whose reader has returned the code in a mail."""

import re
from datetime import timedelta

import pytest
from sqlmodel import col, select

from master_service.db.tables import AccountRow, DeliveryRow, NoticeRow
from master_service.policy.permissions import Role
from tests.functional.master.conftest import SPEC, eventually, running_world
from tests.functional.master.databases import on_both
from worker_service.contract import Status

UMA, NEW = "uma@example.org", "uma@new.example.org"


@pytest.fixture(autouse=True)
def soon(monkeypatch):
    monkeypatch.setattr("master_service.services.notifier._LOOK_S", 0.02)


@pytest.fixture
def mails(monkeypatch):
    """The mails that left the master."""
    sent = []
    monkeypatch.setattr("master_service.services.mail._send", lambda message, _: sent.append(message))
    return sent


@pytest.fixture
async def world(settings, salt):
    quick = {"smtp_host": "mail.test", "smtp_from": "saltern@example.org", "notice_retry_base_s": 0.01}
    async with running_world(settings.model_copy(update=quick), salt) as running:
        for name, role in (("uma", Role.USER), ("otto", Role.USER), ("ada", Role.ADMIN), ("vera", Role.VIEWER)):
            await running.person(name, role)
        yield running


async def ask(world, email, who="uma", **query):
    return await world.http.patch("/users/me/contact", json={"email": email}, headers=world.of(who), params=query)


async def verify(world, code, who="uma"):
    return await world.http.post("/users/me/contact/verify", json={"code": code}, headers=world.of(who))


async def contact(world, who="uma"):
    found = (await world.http.get(f"/users/{who}/contact")).json()
    return found["email"], found["email_pending"]


async def all_sent(world):
    """Wait until no delivery waits."""

    async def none_waits():
        notices = (await world.http.get("/notices")).json()
        return all(each["state"] != "waiting" for notice in notices for each in notice["deliveries"])

    await eventually(none_waits)


async def code_in(world, mails, number=0):
    await eventually(lambda: len(mails) > number)
    return re.search(r"--code ([0-9a-f]{24})\n", mails[number].get_content())[1]


async def pass_time(world, delta):
    """Let all mails of codes be older."""
    async with world.master.context.store.database.write() as session:
        for row in (await session.exec(select(NoticeRow))).all():
            row.at -= delta
        for row in (await session.exec(select(AccountRow).where(col(AccountRow.email_code) != ""))).all():
            row.email_requested_at -= delta


async def fail(world):
    """Let a VM of uma fail."""
    await world.http.post("/vmachines", json=SPEC, headers=world.of("uma"))
    vm = await world.status("running")
    world.salt.workers["w1"].turn(vm["uuid"], Status.FAILED_TO_SAVE)
    await world.poll()
    await all_sent(world)


@on_both
async def test_no_notice_goes_to_an_unverified_address(world, mails):
    answer = await ask(world, UMA)
    assert (answer.status_code, answer.json()["email"], answer.json()["email_pending"]) == (200, "", UMA)
    code = await code_in(world, mails)
    assert (mails[0]["To"], mails[0]["Subject"]) == (UMA, "Saltern: confirm this address")
    assert code not in answer.text
    await fail(world)
    assert len(mails) == 1
    assert (await world.http.post("/users/me/contact/test", headers=world.of("uma"))).status_code == 409
    assert (await verify(world, code)).json()["email"] == UMA
    assert await contact(world) == (UMA, "")
    assert (await world.http.post("/users/me/contact/test", headers=world.of("uma"))).status_code == 202
    await all_sent(world)
    assert [(mail["To"], mail["Subject"]) for mail in mails[1:]] == [(UMA, "Saltern: uma: test")]


async def test_code_is_in_the_mail_alone(world, mails):
    await ask(world, UMA)
    code = await code_in(world, mails)
    for path in ("/users/me/contact", "/users/uma/contact", "/notices", "/audit", "/users"):
        for headers in (None, world.of("uma"), world.of("vera")):
            answer = (await world.http.get(path, headers=headers)).text
            assert code not in answer
            assert headers != world.of("vera") or UMA not in answer, path  # of no concern to other users


async def test_address_in_use_stays_until_the_new_one_is_verified(world, mails):
    await ask(world, UMA)
    await verify(world, await code_in(world, mails))
    await pass_time(world, timedelta(minutes=1))
    await ask(world, NEW)
    code = await code_in(world, mails, 1)
    assert await contact(world) == (UMA, NEW)
    await fail(world)
    assert [mail["To"] for mail in mails[2:]] == [UMA]
    await verify(world, code)
    assert await contact(world) == (NEW, "")
    assert (await ask(world, NEW)).status_code == 200  # nothing to verify
    assert await contact(world) == (NEW, "")
    await ask(world, "")
    assert await contact(world) == ("", "")


async def test_codes_that_are_not_right_are_refused(world, mails):
    assert (await verify(world, "")).status_code == 400
    await ask(world, UMA)
    old = await code_in(world, mails)
    await pass_time(world, timedelta(minutes=1))
    await ask(world, NEW)
    new = await code_in(world, mails, 1)
    for code in (old, new[:-1], f"{new}0", "0" * 24, "ä"):
        answer = await verify(world, code)
        assert (answer.status_code, answer.json()["errors"][0]["field"]) == (400, "code")
    assert (await verify(world, new, "otto")).status_code == 400
    assert await contact(world, "otto") == ("", "")
    await pass_time(world, timedelta(days=7))
    assert (await verify(world, new)).status_code == 400
    assert await contact(world) == ("", NEW)
    await ask(world, "")
    assert (await verify(world, new)).status_code == 400


async def test_code_of_a_replaced_request_is_not_mailed(world, monkeypatch):
    """The mail server was away. When it is back, only the newest address gets a mail."""
    sent, away = [], True

    def send(message, _settings):
        if away:
            raise RuntimeError("away")
        sent.append(message["To"])

    monkeypatch.setattr("master_service.services.mail._send", send)
    await ask(world, UMA)
    await pass_time(world, timedelta(minutes=1))
    await ask(world, NEW)
    away = False
    await all_sent(world)
    assert set(sent) == {NEW}


@on_both
async def test_rate_of_codes_is_limited(world, mails):
    for number in range(5):
        assert (await ask(world, f"uma{number}@example.org")).status_code == 200
        assert (await ask(world, "again@example.org")).status_code == 429  # within 30 s
        await all_sent(world)  # a request that replaces another one takes its mail back
        await pass_time(world, timedelta(minutes=1))
    assert (await ask(world, "more@example.org")).status_code == 429
    assert await contact(world) == ("", "uma4@example.org")
    await pass_time(world, timedelta(days=1))
    assert (await ask(world, "more@example.org")).status_code == 200
    await all_sent(world)
    assert len(mails) == 6


async def test_many_accounts_cannot_flood_one_address(world, mails):
    for number in range(6):
        await world.person(f"user{number}")
        answer = await ask(world, "Victim@example.org" if number % 2 else "victim@example.org", f"user{number}")
        assert answer.status_code == (200 if number < 5 else 429)
    await all_sent(world)
    assert len(mails) == 5


async def test_address_that_an_administrator_sets_is_used_at_once(world, mails):
    given = await world.http.patch("/users/uma/contact", json={"email": UMA}, headers=world.of("ada"))
    assert (given.json()["email"], given.json()["email_pending"]) == (UMA, "")
    await ask(world, "ada@example.org", "ada")
    assert await contact(world, "ada") == ("ada@example.org", "")
    assert mails == []


async def test_dry_run_mails_nothing(world, mails):
    answer = await ask(world, UMA, dry_run="true")
    assert answer.json()["email_pending"] == UMA
    assert await contact(world) == ("", "")
    async with world.master.context.store.database.read() as session:
        assert (await session.exec(select(DeliveryRow))).all() == []
