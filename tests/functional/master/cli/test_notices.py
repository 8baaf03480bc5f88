"""`saltern notices` and `saltern users contact` against a master over HTTP."""

import json

import pytest
from sqlalchemy import update
from sqlmodel import col, select

from master_service.db.tables import AccountRow
from tests.functional.master.conftest import TOKEN
from worker_service.contract import Status


@pytest.fixture
def settings(settings, request):
    """Of a master that sends mail to a server which does not answer; or of one that sends none."""
    host = "" if "without_mail" in request.node.name else "127.0.0.1"
    return settings.model_copy(update={"smtp_host": host, "smtp_port": 1, "webhook_networks": ["127.0.0.0/8"]})


async def test_contact_is_set_shown_and_tried(saltern, served):
    await served.person("uma")
    assert (await saltern("users", "contact", "uma", "--test"))[0] == 1  # neither mail nor webhook
    code, out, err = await saltern("users", "contact", "uma", "--email", "uma@example.org", "--dry-run")
    assert (code, "Nothing was changed" in err) == (0, True), err
    assert json.loads((await saltern("users", "contact", "uma", "-o", "json"))[1])["email"] == ""
    code, out, err = await saltern("users", "contact", "uma", "--email", "uma@example.org")  # by an administrator
    assert (code, "uma@example.org" in out, "secret" in err) == (0, True, False), err
    url = "https://hooks.example.org/uma"
    code, out, err = await saltern("users", "contact", "uma", "--webhook-url", url, "-o", "json")
    account = json.loads(out)
    assert (code, account["email"], account["webhook_url"]) == (0, "uma@example.org", url), err
    assert len(account["webhook_secret"]) == 64
    shown = (await saltern("users", "contact", "uma", "-o", "json"))[1]
    assert (json.loads(shown)["webhook_url"], account["webhook_secret"] in shown) == (url, False)
    code, out, err = await saltern("users", "contact", "uma", "--test")
    assert (code, "Test by mail waiting: 127.0.0.1:1: Connection refused." in out) == (1, True), out + err
    assert ("Test by webhook" in out, "did not arrive by mail and webhook" in err) == (True, True), out + err
    (test,) = json.loads((await saltern("notices", "--kind", "test", "-o", "json"))[1])
    assert test["text"] == "This is a test of the notices for uma, requested by admin."
    assert (await saltern("users", "contact", "uma", "--email", "nonsense"))[0] == 2


async def test_own_address_waits_for_its_code(saltern, served):
    token = await served.person("uma")
    code, out, err = await saltern("users", "contact", "--email", "uma@example.org", "-o", "json", token=token)
    assert (code, json.loads(out)["email"], json.loads(out)["email_pending"]) == (0, "", "uma@example.org"), err
    assert "A code is mailed to uma@example.org" in err
    code, _, err = await saltern("users", "contact", "--code", "0" * 24, token=token)
    assert (code, "code: is not the code in the newest mail" in err) == (2, True), err
    async with served.master.context.store.database.read() as session:
        (row,) = await session.exec(select(AccountRow).where(AccountRow.name == "uma"))
    code, out, err = await saltern("users", "contact", "--code", row.email_code, "-o", "json", token=token)
    assert (code, json.loads(out)["email"]) == (0, "uma@example.org"), err


async def test_address_is_refused_by_a_master_without_mail(saltern, served):
    token = await served.person("uma")
    for words, secret in ((("uma",), TOKEN), ((), token)):
        code, _, err = await saltern("users", "contact", *words, "--email", "uma@example.org", token=secret)
        assert (code, "an administrator sets smtp_host" in err) == (2, True), err
    found = json.loads((await saltern("users", "contact", "uma", "-o", "json"))[1])
    assert (found["email"], found["email_pending"], found["problem"]) == ("", "", "")
    async with served.master.context.store.database.write() as session:  # as before smtp_host was taken away
        await session.exec(update(AccountRow).where(col(AccountRow.name) == "uma").values(email="uma@example.org"))
    found = json.loads((await saltern("users", "contact", "uma", "-o", "json"))[1])
    assert "an administrator sets smtp_host" in found["problem"]
    code, out, err = await saltern("users", "contact", "uma", "--test")
    assert (code, "Test by mail failed: This master sends no mail" in out) == (1, True), out + err
    assert (await saltern("users", "contact", "uma", "--email", ""))[0] == 0  # to get none needs no mail server


async def test_notice_of_a_test_arrives(saltern, served, httpserver):
    await served.person("uma")
    httpserver.expect_request("/hook", method="POST").respond_with_data("")
    assert (await saltern("users", "contact", "uma", "--webhook-url", httpserver.url_for("/hook")))[0] == 0
    code, out, err = await saltern("users", "contact", "uma", "--test")
    assert (code, out) == (0, "Test by webhook delivered.\n"), err
    httpserver.check_assertions()


async def test_notices_are_filtered_and_acknowledged(saltern, served):
    uma = await served.person("uma")
    for name in ("web01", "web02"):
        vm = await served.create(name=name)
        await served.status("running", name)
        served.salt.workers["w1"].turn(vm["uuid"], Status.FAILED_TO_SAVE)
    await served.poll()

    async def ids(*words, token=TOKEN):
        code, out, err = await saltern("notices", *words, "-o", "name", token=token)
        assert code == 0, err
        return out.split()

    newest, oldest = await ids()
    assert (await ids("-n", "1"), await ids("--kind", "stuck")) == ([newest], [])
    assert sorted([*await ids("--vm", "web01"), *await ids("--vm", "web02")]) == [oldest, newest]
    assert await ids("--vm", vm["uuid"], "--kind", "failed_to_save", "--kind", "stuck") != []
    assert (await saltern("notices", "--kind", "odd"))[0] == 2
    assert (await saltern("notices", "ack"))[0] == 2
    assert (await saltern("notices", "ack", oldest, token=uma))[0] == 3  # they belong to another user
    code, _, err = await saltern("notices", "ack", oldest, "9999")
    assert (code, "There is no notice 9999." in err) == (3, True), err
    assert (await saltern("notices", "ack", oldest, "--dry-run"))[0] == 0
    assert await ids("--unacknowledged") == [newest, oldest]
    code, out, err = await saltern("notices", "ack", oldest)
    assert (code, out) == (0, f"1 notice acknowledged ({oldest}).\n"), err
    assert await ids("--unacknowledged") == [newest]
    assert (await saltern("notices", "ack", oldest))[1] == "0 notices acknowledged.\n"
    assert (await saltern("notices", "ack", "--all"))[1] == f"1 notice acknowledged ({newest}).\n"
    assert (await ids("--unacknowledged"), await ids()) == ([], [newest, oldest])
    code, out, err = await saltern("notices", "-o", "wide", "--columns", "id,acknowledged by", "--no-header")
    assert [line.split() for line in out.splitlines()] == [[newest, "admin"], [oldest, "admin"]], err
    entries = [entry for entry in (await served.http.get("/audit")).json() if entry["kind"] == "notice"]
    assert [(entry["verb"], entry["name"]) for entry in entries] == [("acknowledge", newest), ("acknowledge", oldest)]
