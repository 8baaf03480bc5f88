"""Passwords, tokens and secrets in URIs: shown once to their owner, and neither logged nor stored."""

import asyncio
import itertools

import httpx2
import msgspec
import pytest

from master_service.core import logging
from master_service.db.tables import AccountRow, AuditRow, TokenRow
from tests.functional.master.api.test_users import GOOD, WRONG, create, login, rows
from tests.functional.master.conftest import SPEC, TOKEN, eventually, running_world
from tests.functional.master.fakes import FakeSalt, FakeWorker
from worker_service.contract import Code


async def everything_shown(world):
    """Everything that users can read beside their own answers: audit, notifications, history, jobs on Salt's bus."""
    pages = ("/audit?limit=1000", "/notices", "/operations", "/vmachines", "/workers", "/images", "/plan", "/users")
    shown = [(await world.http.get(page)).text for page in pages]
    vms = (await world.http.get("/vmachines")).json()
    shown += [(await world.http.get(f"/vmachines/{vm['uuid']}/history")).text for vm in vms]
    shown += [(await world.http.get(world.http.base_url.join(page))).text for page in ("/readyz", "/metrics")]
    return "".join(shown) + str(world.salt.jobs if isinstance(world.salt, FakeSalt) else "")


URIS = [f"{scheme}://{user}@store.test/a" for scheme in ("https", "s3", "sftp") for user in ("me:c4nary", "c4nary")]
URIS += ["https://me:c4nary/1@store.test/a", "https://me:c4nary@1@store.test:x/a", "ftp://me:c4nary@store.test/a"]

SIGNED = [
    f"https://store.test/a?{name}=c4nary"
    for name in (
        "X-Amz-Signature",
        "AWSAccessKeyId",
        "sig",
        "access_token",
        "to%6ben",
        "x=1&Signature",
        "url=http://h?sig",
    )
]


@pytest.mark.parametrize("uri", [*URIS, *SIGNED])
async def test_secret_in_a_uri_is_refused_and_repeated_nowhere(settings, salt, capfd, uri):
    """Neither to its sender nor to other users, because clients and proxies log answers."""
    logging.configure("debug")
    async with running_world(settings, salt) as world:
        await world.create()
        await world.status("running")
        any_version = {"If-Match": "*"}
        requests = [
            *(("POST", "/vmachines", SPEC | {"name": "x", field: uri}) for field in (
                "hda_image", "hda_save_to", "cd_image", "user_data", "name", "network", "hostname",
            )),
            ("PATCH", "/vmachines/web01", {"hda_save_to": uri}),
            ("PATCH", "/vmachines/web01", {"cd_image": uri}),
            *(("POST", path, {"uri": uri}) for path in ("/images", "/images/pin", "/images/unpin")),
            *[("PATCH", "/users/me/contact", {"webhook_url": uri})] * (uri in URIS),
            ("PATCH", "/users/me/contact", {"email": uri}),
        ]  # fmt: skip
        for method, path, body in requests:
            answer = await world.http.request(method, path, json=body, headers=any_version)
            assert answer.status_code == 400, (method, path, body, answer.text)
            assert "c4nary" not in answer.text, (method, path, body, answer.text)
        shown = await everything_shown(world)
    out, err = capfd.readouterr()
    assert "c4nary" not in shown + out + err


async def test_secret_and_address_in_a_report_are_not_shown(settings, salt, capfd, monkeypatch):
    """A worker of version 0.1 has presigned URLs in its records. A bad one may send its viewers anywhere."""
    uri = "https://store.test/a?X-Amz-Signature=c4nary"
    status, worker = FakeWorker.status, salt.workers["w1"]
    old = {"message": f"{uri} answered 403.", "problem": f"{uri} broke off", "vnc": "wss://evil.example/c4nary"}

    def report(self, uuid):
        made = status(self, uuid)
        for name, value in old.items():  # as the fields of a message that is decoded
            msgspec.structs.force_setattr(made, name, value)
        msgspec.structs.force_setattr(made, "spec", msgspec.structs.replace(made.spec, hda_image=uri))
        return made

    monkeypatch.setattr(FakeWorker, "status", report)
    worker.cached[uri] = True
    async with running_world(settings, salt) as world:
        await world.create()
        vm = await world.status("running")
        assert vm["vnc"] == ""
        assert (vm["message"], vm["spec"]["hda_image"]) == (
            f"{uri} answered 403.".replace("c4nary", "***"),
            SPEC["hda_image"],
        )
        images = (await world.http.get("/images", params={"sizes": True})).text
        shown = await everything_shown(world)
    out, err = capfd.readouterr()
    assert "c4nary" not in shown + images + out + err


async def test_webhook_secret_is_shown_once(served, capfd):
    """To the user who sets it. Over a real connection, because the event stream is read too."""
    logging.configure("debug")
    world = served
    events = []

    async def listen():
        async with world.http.stream("GET", "/events") as response:
            async for event in httpx2.EventSource(response):
                events.append(event.data)  # noqa: PERF401 - looked at while they come

    listening = asyncio.create_task(listen())
    await eventually(lambda: bool(world.master.context.changes._subscribers))
    given = {"webhook_url": "https://127.0.0.1/c4nary-of-the-path"}
    secret = (await world.http.patch("/users/me/contact", json=given)).json()["webhook_secret"]
    await world.http.post("/users/me/contact/test")
    world.salt.workers["w1"].refusals["start"] = Code.BAD_IMAGE
    await world.create()
    await world.status("failed")
    await eventually(lambda: any("failed" in event for event in events))
    shown = await everything_shown(world) + "".join(events)
    listening.cancel()
    await asyncio.gather(listening, return_exceptions=True)
    out, err = capfd.readouterr()
    for canary, place in itertools.product((secret, "c4nary-of-the-path"), (shown, out, err)):
        assert canary not in place


async def test_secrets_are_neither_logged_nor_kept(settings, salt, capfd):
    logging.configure("debug")
    async with running_world(settings, salt) as world:
        await create(world)
        answers = []
        world.http.event_hooks["response"] = [lambda answer: _collect(answers, answer)]
        token = (await login(world)).json()["token"]
        await login(world, password=WRONG)
        await login(world, user=GOOD, password=WRONG)
        await world.http.get("/vmachines", headers={"Authorization": f"Bearer {WRONG}"})
        await world.http.post("/users", json={"name": "bob", "password": "sh0rt"})
        await world.http.get("/users/me", headers={"Authorization": f"Bearer {token}"})
        program = (await world.http.post("/users/uma/tokens", json={"label": "ci"})).json()["token"]
        await world.http.patch("/users/uma", json={"password": "another horse battery", "nonsense": WRONG})
        shown = await everything_shown(world)
        errors = "".join(answer.text for answer in answers if answer.status_code >= 400)
        audit = await rows(world, AuditRow)
        kept = repr(audit) + repr(await rows(world, AccountRow)) + repr(await rows(world, TokenRow))
    out, err = capfd.readouterr()
    secrets = (GOOD, WRONG, token, program, TOKEN, "sh0rt", "another horse battery")
    for secret, place in itertools.product(secrets, (out, err, kept, shown, errors)):
        assert secret not in place
    assert "denied" in err
    assert "bad_request" in errors


async def _collect(answers, answer):
    await answer.aread()
    answers.append(answer)
