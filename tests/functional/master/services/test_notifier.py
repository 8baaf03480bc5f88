"""Notifications through a real webhook receiver and a real mail server, and their failures."""

import asyncio
import datetime as dt
import hashlib
import hmac
import json
import socket
import ssl
from email import message_from_bytes, policy

import httpx2
import pytest
from aiosmtpd.controller import Controller
from aiosmtpd.smtp import AuthResult
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from werkzeug import Response

from master_service.policy.permissions import Role
from tests.functional.master.conftest import LIMIT_S, SPEC, eventually, running_world
from tests.functional.master.databases import on_both
from worker_service.contract import Code, HaltCause, Status


@pytest.fixture(autouse=True)
def soon(monkeypatch):
    monkeypatch.setattr("master_service.services.notifier._LOOK_S", 0.02)
    monkeypatch.setattr("master_service.api.routes.events._LOOK_S", 0.02)


@pytest.fixture
def settings(settings):
    quick = {"notice_retry_base_s": 0.01, "notice_tries": 3, "webhook_networks": ["127.0.0.0/8"]}
    patient = {"webhook_timeout_s": LIMIT_S, "smtp_timeout_s": LIMIT_S}
    return settings.model_copy(update=quick | patient)


class Mailbox:
    """Keeps what the mail server took."""

    def __init__(self):
        self.mails, self.answers = [], []

    async def handle_DATA(self, _server, _session, envelope):  # noqa: N802 - aiosmtpd's name
        if self.answers:
            return self.answers.pop(0)
        self.mails.append(message_from_bytes(envelope.content, policy=policy.default))
        return "250 OK"


@pytest.fixture
def certificate(tmp_path):
    """A certificate for 127.0.0.1, signed by itself: (its file, the file of its key)."""
    key, now = ec.generate_private_key(ec.SECP256R1()), dt.datetime.now(dt.UTC)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    (tmp_path / "mail.crt").write_bytes(made.public_bytes(serialization.Encoding.PEM))
    (tmp_path / "mail.key").write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return tmp_path / "mail.crt", tmp_path / "mail.key"


class Post(Controller):
    """Listens on a socket that it is given: a port that only looked free may be taken by then."""

    def __init__(self, handler, listening, **options):
        super().__init__(handler, *listening.getsockname(), **options)
        self.listening = listening

    def _create_server(self):
        return self.loop.create_server(self._factory_invoker, sock=self.listening)


@pytest.fixture
def mail(certificate):
    """A mail server that requires STARTTLS and a login. It keeps the accepted mails."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(*certificate)
    mailbox = Mailbox()
    listening = socket.create_server(("127.0.0.1", 0))
    mailbox.port = listening.getsockname()[1]

    def authenticate(_server, _session, _envelope, _mechanism, data):
        return AuthResult(success=(data.login, data.password) == (b"saltern", b"s3cret-of-mail"), handled=False)

    controller = Post(
        mailbox, listening, tls_context=context, require_starttls=True,
        auth_required=True, authenticator=authenticate, ready_timeout=LIMIT_S,
    )  # fmt: skip
    controller.start()
    yield mailbox
    controller.stop()


@pytest.fixture
def with_mail(settings, mail, certificate, tmp_path):
    (tmp_path / "smtp.secret").touch(mode=0o600)
    (tmp_path / "smtp.secret").write_text("s3cret-of-mail")
    given = {
        "smtp_host": "localhost", "smtp_port": mail.port, "smtp_ca_file": certificate[0],
        "smtp_user": "saltern", "smtp_password_file": tmp_path / "smtp.secret", "smtp_from": "saltern@example.org",
    }  # fmt: skip
    return settings.model_copy(update=given)


async def contact(world, who, **given):
    """Set addresses; those of mail as an administrator, so that they need no code."""
    headers = None if "email" in given else world.of(who)
    answer = await world.http.patch(f"/users/{who}/contact", json=given, headers=headers)
    assert answer.status_code == 200, answer.text
    return answer.json()


async def deliveries(world, actor=None):
    answer = await world.http.get("/notices", headers=world.of(actor) if actor else None)
    return [
        (notice["kind"], one["user"], one["channel"], one["state"], one["attempts"], one["problem"])
        for notice in answer.json()
        for one in notice["deliveries"]
    ]


async def settled(world, number):
    async def all_are():
        found = await deliveries(world)
        return len(found) == number and all(state != "waiting" for _, _, _, state, _, _ in found)

    await eventually(all_are)


async def test_failure_reaches_its_owner_signed(settings, salt, httpserver):
    async with running_world(settings, salt) as world:
        await world.person("uma")
        httpserver.expect_request("/hook/s3cret").respond_with_data("", 204)
        message = await contact(world, "uma", webhook_url=httpserver.url_for("/hook/s3cret"))
        await world.http.post("/vmachines", json=SPEC, headers=world.of("uma"))
        vm = await world.status("running")
        salt.workers["w1"].turn(vm["uuid"], Status.FAILED_TO_SAVE, HaltCause.GUEST)
        for _ in range(3):
            await world.poll()
        await settled(world, 1)
        assert await deliveries(world, "uma") == [("failed_to_save", "uma", "webhook", "delivered", 1, "")]
        ((request, _),) = httpserver.log
        timestamp, _, sent = request.headers["Saltern-Signature"].partition(",v1=")
        signed = timestamp.removeprefix("t=").encode() + b"." + request.data
        assert sent == hmac.new(message["webhook_secret"].encode(), signed, hashlib.sha256).hexdigest()
        body = json.loads(request.data)
        assert (body["user"], body["notice"]["kind"], body["notice"]["uuid"]) == ("uma", "failed_to_save", vm["uuid"])
        assert request.headers["Saltern-Delivery"] == str(body["delivery"])
        # The secret was shown once: neither the contact nor the audit has it, nor the URL's own secret.
        shown = (await world.http.get("/users/uma/contact")).json()
        url = httpserver.url_for("/hook/s3cret")
        assert shown == {"email": "", "email_pending": "", "webhook_url": url, "problem": ""}
        audit = (await world.http.get("/audit")).text
        assert "webhook_secret" in audit
        assert message["webhook_secret"] not in audit
        assert "s3cret" not in audit


@pytest.mark.parametrize("how", ["refused", "reported"])
async def test_failed_start_reaches_its_owner(settings, salt, httpserver, how):
    """Both for a refusal of the worker and for a start that it accepted and gave up later."""
    async with running_world(settings, salt) as world:
        await world.person("uma")
        httpserver.expect_request("/hook").respond_with_data("", 204)
        await contact(world, "uma", webhook_url=httpserver.url_for("/hook"))
        worker, salt.by_itself = salt.workers["w1"], False
        if how == "refused":
            worker.refusals["start"] = Code.BAD_IMAGE
        await world.http.post("/vmachines", json=SPEC, headers=world.of("uma"))
        if how == "reported":
            vm = await world.status("preparing")
            worker.turn(vm["uuid"], Status.FAILED_TO_START)
            salt.report("w1", vm["uuid"])
        vm = await world.status("failed")
        await settled(world, 1)
        ((request, _),) = httpserver.log
        body = json.loads(request.data)
        assert (body["user"], body["notice"]["kind"]) == ("uma", "failed_to_start")
        assert (body["notice"]["uuid"], body["notice"]["name"]) == (vm["uuid"], "web01")
        assert ("start is refused" if how == "refused" else "failed to start on w1") in body["notice"]["text"]


@on_both
async def test_webhook_that_fails_is_tried_again_and_given_up(settings, salt, httpserver, monkeypatch):
    monkeypatch.setattr("master_service.api.routes.notices._TEST_GAP", dt.timedelta(hours=1))
    async with running_world(settings, salt) as world:
        await world.person("uma")
        answers = [Response(status=500), Response(status=200)]
        httpserver.expect_request("/hook").respond_with_handler(lambda _: answers.pop(0))
        await contact(world, "uma", webhook_url=httpserver.url_for("/hook"))
        answer = await world.http.post("/users/me/contact/test", headers=world.of("uma"))
        assert (answer.status_code, answer.json()["kind"]) == (202, "test")
        await settled(world, 1)
        assert await deliveries(world, "uma") == [("test", "uma", "webhook", "delivered", 2, "")]
        assert len({request.headers["Saltern-Delivery"] for request, _ in httpserver.log}) == 1
        # Not again at once: a test notification is no way to flood a receiver.
        assert (await world.http.post("/users/me/contact/test", headers=world.of("uma"))).status_code == 429
        await world.person("otto")
        answers += [Response(status=503)] * 3
        await contact(world, "otto", webhook_url=httpserver.url_for("/hook"))
        await world.http.post("/users/me/contact/test", headers=world.of("otto"))
        await settled(world, 2)
        where = f"127.0.0.1:{httpserver.port}" if httpserver.host == "127.0.0.1" else f"localhost:{httpserver.port}"
        assert await deliveries(world, "otto") == [("test", "otto", "webhook", "failed", 3, f"{where} answered 503.")]


@pytest.mark.parametrize(
    ("networks", "path", "message"),
    [
        ([], "/hook", "not public"),
        (["127.0.0.0/8", "::1/128"], "/away", "redirects (302)"),
        (["127.0.0.0/8", "::1/128"], "/gone", "no longer exists"),
    ],
)
async def test_permanent_delivery_error_is_tried_once(settings, salt, httpserver, networks, path, message):
    httpserver.expect_request("/away").respond_with_data("", 302, {"Location": httpserver.url_for("/hook")})
    httpserver.expect_request("/gone").respond_with_data("", 410)
    async with running_world(settings.model_copy(update={"webhook_networks": networks}), salt) as world:
        await world.person("uma")
        await contact(world, "uma", webhook_url=httpserver.url_for(path))
        await world.http.post("/users/me/contact/test", headers=world.of("uma"))
        await settled(world, 1)
        ((_, _, _, state, attempts, problem),) = await deliveries(world)
        assert (state, attempts) == ("failed", 1)
        assert message in problem
        assert all(request.path != "/hook" for request, _ in httpserver.log)


async def test_receiver_that_never_answers(settings, salt):
    """It accepts the connection and sends nothing. The error names no path."""
    ends = asyncio.Event()

    async def hold(_reader, writer):
        await ends.wait()
        writer.close()

    async with await asyncio.start_server(hold, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        hasty = settings.model_copy(update={"webhook_timeout_s": 0.05, "notice_tries": 1})
        async with running_world(hasty, salt) as world:
            await world.person("uma")
            await contact(world, "uma", webhook_url=f"http://127.0.0.1:{port}/s3cret")
            await world.http.post("/users/me/contact/test", headers=world.of("uma"))
            await settled(world, 1)
            ((_, _, _, state, _, problem),) = await deliveries(world)
            assert (state, problem) == ("failed", f"127.0.0.1:{port} did not answer within 0.05 s.")
        ends.set()


async def test_mail_over_tls_with_a_login(with_mail, salt, mail):
    async with running_world(with_mail, salt) as world:
        await world.person("uma")
        await contact(world, "uma", email="uma@example.org")
        mail.answers.append("451 later")
        await world.http.post("/vmachines", json=SPEC, headers=world.of("uma"))
        vm = await world.status("running")
        salt.workers["w1"].turn(vm["uuid"], Status.FAILED_TO_SAVE, HaltCause.GUEST)
        await world.poll()
        await settled(world, 1)
        assert await deliveries(world, "uma") == [("failed_to_save", "uma", "mail", "delivered", 2, "")]
        (message,) = mail.mails
        assert (message["To"], message["From"]) == ("uma@example.org", "saltern@example.org")
        assert message["Subject"] == "Saltern: web01: failed to save"
        assert vm["uuid"] in message.get_content()


async def test_mail_server_with_another_password_or_certificate(with_mail, salt, mail, tmp_path):
    (tmp_path / "smtp.secret").write_text("another")
    async with running_world(with_mail.model_copy(update={"notice_tries": 1}), salt) as world:
        await world.person("uma")
        await contact(world, "uma", email="uma@example.org")
        await world.http.post("/users/me/contact/test", headers=world.of("uma"))
        await settled(world, 1)
        assert (await deliveries(world))[0][3:] == ("failed", 1, f"localhost:{mail.port} refuses smtp_user (535).")
    untrusted = with_mail.model_copy(update={"smtp_ca_file": None, "notice_tries": 1})
    async with running_world(untrusted, salt) as world:
        await world.person("otto")
        await contact(world, "otto", email="otto@example.org")
        await world.http.post("/users/me/contact/test", headers=world.of("otto"))
        await settled(world, 2)
        assert "its certificate is not accepted" in (await deliveries(world, "otto"))[0][5]
    assert mail.mails == []


@on_both
async def test_silent_worker_reaches_administrators_and_owners(settings, salt, httpserver):
    httpserver.expect_request("/hook").respond_with_data("", 200)
    async with running_world(settings, salt) as world:
        for name, role in (("uma", Role.USER), ("otto", Role.USER), ("ada", Role.ADMIN), ("oscar", Role.OPERATOR)):
            await world.person(name, role)
            await contact(world, name, webhook_url=httpserver.url_for("/hook"))
        for name in ("uma", "ada"):
            await world.http.post("/vmachines", json=SPEC | {"name": f"of-{name}"}, headers=world.of(name))
            await world.status("running", f"of-{name}")
        await world.quiet()
        salt.silent.add("w1")
        for _ in range(2):
            await world.poll()
        await settled(world, 2)
        assert sorted(one[1] for one in await deliveries(world)) == ["ada", "uma"]
        ((kind, _, _, state, _, _),) = await deliveries(world, "uma")
        assert (kind, state) == ("unreachable", "delivered")
        message = {
            json.loads(request.data)["user"]: json.loads(request.data)["notice"] for request, _ in httpserver.log
        }
        assert "of-uma" in message["uma"]["text"]
        assert "of-ada" not in message["uma"]["text"]


@on_both
async def test_try_that_was_cut_off_is_made_again(settings, salt, httpserver):
    """A master that ends after it has counted a try and before it has made it."""
    httpserver.expect_request("/hook").respond_with_data("", 200)
    async with running_world(settings, salt) as world:
        await world.person("uma")
        await contact(world, "uma", webhook_url=httpserver.url_for("/hook"))
        world.salt.down = True
        now, store = world.master.context.clock(), world.master.context.store.notices
        taken = []

        async def cut_off(at, again_at, limit):
            taken.extend(await type(store).take(store, at, again_at, limit))
            if taken:
                del store.take  # this once
            return []

        store.take = cut_off
        await world.http.post("/users/me/contact/test", headers=world.of("uma"))
        await settled(world, 1)
        assert (await deliveries(world))[0][3:5] == ("delivered", 2)
        assert len(httpserver.log) == 1
        assert taken[0].notice.at >= now


@on_both
async def test_removed_or_disabled_user_gets_no_notification(settings, salt, httpserver):
    async with running_world(settings, salt) as world:
        await world.person("uma")
        await contact(world, "uma", webhook_url=httpserver.url_for("/hook"))
        assert (await world.http.patch("/users/uma", json={"disabled": True})).status_code == 200
        await world.person("ada", Role.ADMIN)
        assert (await world.http.post("/users/ada/contact/test")).status_code == 409
        salt.silent.add("w1")
        await world.poll()
        assert await deliveries(world) == []
        assert (await world.http.post("/users/uma/contact/test")).status_code == 202
        assert (await world.http.delete("/users/uma")).status_code == 204
        assert await deliveries(world) == []


@pytest.mark.parametrize(
    "given",
    [
        {}, {"email": "no address"}, {"email": "a@b\nBcc: c@d"}, {"email": "@example.org"}, {"email": None},
        {"webhook_url": "ftp://host/"}, {"webhook_url": "https://user:pass@host/"}, {"webhook_url": "https:///x"},
        {"webhook_url": "https://host/#x"}, {"webhook_url": "http://host:0/"}, {"webhook_url": "http://ho st/"},
        {"webhook_url": "http://host/" + "x" * 2048}, {"webhook_url": "http://[::1/"}, {"role": "admin"},
    ],
)  # fmt: skip
async def test_addresses_that_make_no_sense_are_refused(world, given):
    answer = await world.http.patch("/users/me/contact", json=given)
    assert (answer.status_code, answer.json()["code"]) == (400, "bad_request")


async def test_event_stream_has_notifications_and_ends_with_token(served):
    world = served
    for name in ("uma", "otto"):
        await world.person(name)
    await world.http.post("/vmachines", json=SPEC, headers=world.of("uma"))
    vm = await world.status("running")
    message = {"uma": [], "otto": []}

    async def read(name):
        async with world.http.stream("GET", "/events", headers=world.of(name)) as response:
            async for line in response.aiter_lines():
                message[name].append(line)

    reading = [asyncio.create_task(read(name)) for name in message]
    await eventually(lambda: all(message.values()))
    world.salt.workers["w1"].turn(vm["uuid"], Status.FAILED_TO_SAVE, HaltCause.GUEST)
    await world.poll()
    await eventually(lambda: "event: notice" in message["uma"])
    for name in message:
        token = next(iter((await world.http.get("/tokens", headers=world.of(name))).json()))
        assert (await world.http.delete(f"/tokens/{token['id']}")).status_code == 204
    async with asyncio.timeout(LIMIT_S):
        await asyncio.gather(*reading)
    assert "event: notice" not in message["otto"]


async def test_stream_with_a_valid_token_continues(served):
    async with served.http.stream("GET", "/events") as response:
        lines = response.aiter_lines()
        assert await anext(lines) == ": connected"
        for name in ("a", "b"):
            await asyncio.sleep(0.1)  # several looks
            await served.create(name=name, run_policy="manual")
            async with asyncio.timeout(LIMIT_S):
                while not (line := await anext(lines)).startswith("event:"):
                    assert isinstance(line, str)
    assert isinstance(response, httpx2.Response)
