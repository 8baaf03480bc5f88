"""The master's client, the gate, and a server that answers as rest_cherrypy does, including its traps."""

import asyncio
import json
import tempfile
import time
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from werkzeug import Response

from master_service.core import logging
from master_service.core.errors import SaltDenied, SaltError, SaltRequestTooLarge
from master_service.gate.__main__ import serve
from master_service.gate.rest_cherrypy import RestCherrypy
from master_service.gate.settings import GateSettings
from master_service.saltapi.client import Event, GateClient, SaltProfile, SizeLimits
from tests.functional.master.conftest import LIMIT_S, eventually

NONCE = "0123456789abcdef" * 2
ALIVE = {"tag": "vmachines/w1/alive", "data": {"id": "w1", "data": {}}}


def token(value="tok", expire_in=3600):
    return {"return": [{"token": value, "expire": time.time() + expire_in, "start": time.time(), "perms": []}]}


@asynccontextmanager
async def gate(url, limits=None, password="secret"):
    """A gate before the salt-api at `url`, and the client of a master."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:  # pytest's own are too long for unix sockets
        settings = GateSettings(
            socket=Path(folder, "gate.sock"),
            events_socket=Path(folder, "events.sock"),
            salt_api_url=url,
            salt_timeout_s=LIMIT_S,
        )
        serving = asyncio.create_task(serve(settings, password))
        client = GateClient(settings.socket, LIMIT_S, limits)
        try:
            await eventually(settings.socket.exists)
            client.events_socket = settings.events_socket
            yield client
        finally:
            await client.close()
            serving.cancel()
            await asyncio.gather(serving, return_exceptions=True)


@pytest.fixture
async def salt(httpserver):
    async with gate(httpserver.url_for("").rstrip("/")) as client:
        yield client


@pytest.fixture
async def narrow(httpserver):
    """A client that reads little."""
    async with gate(httpserver.url_for("").rstrip("/"), SizeLimits(reply=1000, answer=10_000)) as client:
        yield client


@asynccontextmanager
async def engine(client):
    """A Salt engine that is connected to the gate: a function that sends it a line."""
    reader, writer = await asyncio.open_unix_connection(client.events_socket)
    del reader

    async def send(event):
        writer.write((event if isinstance(event, bytes) else json.dumps(event).encode()) + b"\n")
        await writer.drain()

    yield send
    writer.close()


def login(httpserver, answer=None):
    httpserver.expect_ordered_request(
        "/login",
        method="POST",
        json={"eauth": "sharedsecret", "username": "saltern-master", "password": "secret"},
    ).respond_with_json(answer or token())


async def test_job_is_published_with_one_kwarg_dict_and_the_token(httpserver, salt):
    login(httpserver)
    httpserver.expect_ordered_request("/", method="POST", headers={"X-Auth-Token": "tok"}).respond_with_json(
        {"return": [{"jid": "20260101", "minions": ["w1"]}]}
    )
    assert await salt.publish(["w1"], "vmachines.apply", {"actions": []}, NONCE) == "20260101"
    (low,) = httpserver.log[-1][0].json
    assert low == {
        "client": "local_async",
        "tgt": ["w1"],
        "tgt_type": "list",
        "fun": "vmachines.apply",
        "kwarg": {"actions": []},
        "metadata": {"nonce": NONCE},
    }


async def test_worker_without_an_accepted_key_is_named(httpserver, salt):
    login(httpserver)
    httpserver.expect_ordered_request("/").respond_with_json({"return": [{}]})
    with pytest.raises(SaltError, match="no minion named w1"):
        await salt.publish(["w1"], "vmachines.apply", {}, NONCE)


async def test_call_asks_a_list_of_workers_and_misses_the_silent_ones(httpserver, salt):
    login(httpserver)
    httpserver.expect_ordered_request("/").respond_with_json({"return": [{"w1": {"success": True}}]})
    assert await salt.call(["w1", "w2"], "vmachines.list", {}, 7, NONCE) == {"w1": {"success": True}}
    (low,) = httpserver.log[-1][0].json
    assert low == {
        "client": "local",
        "tgt": ["w1", "w2"],
        "tgt_type": "list",
        "fun": "vmachines.list",
        "kwarg": {},
        "timeout": 7,
        "metadata": {"nonce": NONCE},
    }


@pytest.mark.parametrize("metadata", [None, "poll-7", [], {}, {"nonce": None}, {"nonce": ["poll-7"]}])
def test_other_metadata_of_a_return_is_no_nonce(metadata):
    assert Event(tag="salt/job/20260101/ret/w1", data={"metadata": metadata}).nonce == ""


async def test_salt_is_given_whole_seconds(httpserver, salt):
    """It takes any other number for none, and its own `timeout` instead: salt/client/__init__.py, _get_timeout."""
    login(httpserver)
    httpserver.expect_ordered_request("/").respond_with_json({"return": [{}]})
    await salt.call(["w1"], "vmachines.list", {}, 6.5, NONCE)
    (low,) = httpserver.log[-1][0].json
    assert json.dumps(low["timeout"]) == "7"


async def test_lost_session_logs_in_again_once(httpserver, salt):
    login(httpserver)
    httpserver.expect_ordered_request("/", headers={"X-Auth-Token": "tok"}).respond_with_data("", status=401)
    login(httpserver, token("fresh"))
    httpserver.expect_ordered_request("/", headers={"X-Auth-Token": "fresh"}).respond_with_json({"return": [{}]})
    assert await salt.call(["w1"], "vmachines.list", {}, 1, NONCE) == {}


async def test_token_is_kept_until_shortly_before_it_expires(httpserver):
    login(httpserver, token("short", expire_in=30))
    login(httpserver, token("long"))
    session = RestCherrypy(httpserver.url_for("").rstrip("/"), "saltern-master", "secret", timeout_s=LIMIT_S)
    for _ in range(5):
        await session.login()
    assert len(httpserver.log) == 2
    await session.close()


@pytest.mark.parametrize(
    ("answer", "error", "message"),
    [
        (Response("<html>500</html>", status=500), SaltError, "answered 500"),
        (Response("<html>fine?</html>", status=200), SaltError, "something other than JSON"),
        (Response('{"return": "x"}', status=200), SaltError, "unknown shape"),
        (Response("[]", status=200), SaltError, "unknown shape"),
        (Response("", status=403), SaltDenied, "does not let saltern-master run vmachines.list"),
    ],
)
async def test_answers_are_checked_by_shape(httpserver, salt, answer, error, message):
    login(httpserver)
    httpserver.expect_ordered_request("/").respond_with_response(answer)
    with pytest.raises(error, match=message):
        await salt.call(["w1"], "vmachines.list", {}, 1, NONCE)


async def test_refused_login_is_named(httpserver, salt):
    httpserver.expect_request("/login").respond_with_data("<html>", status=401)
    with pytest.raises(SaltDenied, match="refuses the login of saltern-master") as caught:
        await salt.check()
    assert "salt_api_password_file" in caught.value.hint
    assert "secret" not in str(caught.value)


async def test_missing_salt_api_is_an_error():
    async with gate("http://127.0.0.1:1") as salt:
        with pytest.raises(SaltError, match=r"salt-api at http.* does not answer"):
            await salt.check()


async def test_missing_gate_is_an_error(tmp_path):
    salt = GateClient(tmp_path / "none.sock", LIMIT_S)
    with pytest.raises(SaltError, match=r"The gate to Salt at .*none\.sock does not answer"):
        await salt.check()
    await salt.close()


async def test_events_of_workers_pass(salt):
    async with engine(salt) as send, _stream(salt) as events:
        for other in (b"no json", [1], {"tag": 1}, {"tag": "salt/job/1/new", "data": {"fun": "cmd.run"}}, ALIVE):
            await send(other)
        event = await anext(events)
        assert (event.tag, dict(event.data)) == (ALIVE["tag"], ALIVE["data"])


async def test_return_passes_if_the_job_is_ours(httpserver, salt):
    login(httpserver)
    httpserver.expect_ordered_request("/").respond_with_json({"return": [{"jid": "7"}]})
    returned = {"id": "w1", "fun": "vmachines.apply", "return": {}, "fun_args": [{"secret": 1}]}
    async with engine(salt) as send, _stream(salt) as events:
        await salt.publish(["w1"], "vmachines.apply", {"actions": []}, NONCE)
        for nonce in ("f" * 32, NONCE):
            await send({"tag": "salt/job/7/ret/w1", "data": returned | {"metadata": {"nonce": nonce, "more": 1}}})
        event = await anext(events)
        assert dict(event.data) == {k: returned[k] for k in ("id", "fun", "return")} | {"metadata": {"nonce": NONCE}}


async def test_stream_ends_with_the_engine(salt):
    with pytest.raises(SaltError, match="engine saltern_events is not connected"):
        async with salt.events():
            pass
    async with engine(salt) as send, _stream(salt) as events:
        await send(ALIVE)
        await anext(events)
        async with engine(salt):  # a new one, as after a restart of the Salt master
            assert [event async for event in events] == []


@asynccontextmanager
async def _stream(salt):
    """The stream, once the gate has noticed its engine."""
    async with asyncio.timeout(LIMIT_S):
        while True:
            try:
                async with salt.events() as events:
                    yield events
            except SaltError as err:
                if "not connected" not in str(err):
                    raise
            else:
                return


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ('"' + "x" * 2000 + '"', "at most 1000 are read"),
        (r'"\ud800"', "not text"),
        ("[" * 600 + "]" * 600, "at most 1000 are read"),
    ],
    ids=["large", "not text", "large and deep"],
)
async def test_bad_answer_costs_its_own_worker_alone(httpserver, narrow, bad, message):
    login(httpserver)
    body = f'{{"return": [{{"bad": {bad}, "good": {{"success": true}}}}]}}'
    httpserver.expect_ordered_request("/").respond_with_data(body)
    answers = await narrow.call(["w1"], "vmachines.list", {}, 1, NONCE)
    assert answers["good"] == {"success": True}
    assert message in answers["bad"]


@pytest.mark.parametrize(
    ("body", "message"),
    [('{"return": [{"w1": "' + "x" * 20_000 + '"}]}', "more than 10000 bytes"), ("[" * 9000, "something other")],
    ids=["large", "deep"],
)
async def test_response_size_is_bounded(httpserver, narrow, body, message):
    login(httpserver)
    httpserver.expect_ordered_request("/").respond_with_data(body)
    with pytest.raises(SaltError, match=message):
        await narrow.call(["w1"], "vmachines.list", {}, 1, NONCE)


async def test_large_or_deep_event_is_skipped(narrow):
    deep = b'{"tag": "vmachines/w1/alive", "data": ' + b'{"a":' * 100_000 + b"1" + b"}" * 100_000 + b"}"
    async with engine(narrow) as send, _stream(narrow) as events:
        for event in ({**ALIVE, "data": {"id": "large", "data": {"more": "x" * 5000}}}, deep, ALIVE):
            await send(event)
        assert (await anext(events)).data == ALIVE["data"]


async def test_request_that_salt_api_does_not_take_is_refused(httpserver, salt):
    """By the gate, before salt-api may break the connection; and in salt-api's words if its limit is a smaller one."""
    with pytest.raises(SaltRequestTooLarge, match=r"of 2000\d\d\d bytes .* which is 1048576 bytes"):
        await salt.publish(["w1"], "vmachines.apply", {"actions": ["x" * 2_000_000]}, NONCE)
    assert httpserver.log == []
    login(httpserver)
    httpserver.expect_ordered_request("/").respond_with_data("too large", status=413)
    with pytest.raises(SaltRequestTooLarge, match="more than salt-api takes"):
        await salt.publish(["w1"], "vmachines.apply", {"actions": []}, NONCE)


async def test_more_workers_than_fit_take_several_requests(httpserver, salt):
    workers = [f"{number:05}-{'x' * 240}" for number in range(6000)]
    httpserver.expect_request("/login").respond_with_json(token())
    httpserver.expect_request("/").respond_with_handler(
        lambda request: Response(json.dumps({"return": [{key: {"success": True} for key in request.json[0]["tgt"]}]}))
    )
    assert await salt.call(workers, "vmachines.list", {}, 1, NONCE) == {key: {"success": True} for key in workers}
    assert [len(request.json[0]["tgt"]) for request, _ in httpserver.log if request.path == "/"] == [3000, 3000]


WRONG = [
    ("cmd.run", {}, "is none of"),
    ("vmachines.apply,cmd.run", {}, "is none of"),
    ("vmachines.list", {"ret": "highstate"}, "has no parameter 'ret'"),
    ("vmachines.apply", {"__pub_jid": "../x"}, "has no parameter"),
]


@pytest.mark.parametrize(("fun", "kwarg", "message"), WRONG, ids=[each[2] for each in WRONG])
async def test_other_requests_reach_no_salt_api(httpserver, salt, fun, kwarg, message):
    for request in (salt.publish(["w1"], fun, kwarg, NONCE), salt.call(["w1"], fun, kwarg, 1, NONCE)):
        with pytest.raises(SaltError, match=message):
            await request
    assert httpserver.log == []


async def test_password_for_salt_api_stays_where_it_is(httpserver, capfd):
    """Also when a broken salt-api repeats its request in an error."""
    logging.configure("debug")
    password = "c4nary-of-salt"
    echo = Response(f"{password} " * 50, status=500)
    for answer in (echo, Response(f"<p>{password}</p>", status=401), Response(f'{{"return": ["{password}"]}}')):
        httpserver.clear()
        httpserver.expect_request("/login").respond_with_response(answer)
        httpserver.expect_request("/").respond_with_response(echo)
        async with gate(httpserver.url_for("").rstrip("/"), password=password) as salt:
            for request in (salt.check(), salt.publish(["w1"], "vmachines.apply", {}, NONCE)):
                with pytest.raises(SaltError) as caught:
                    await request
                assert "c4nary" not in str(caught.value) + caught.value.hint
    out, err = capfd.readouterr()
    assert "c4nary" not in out + err


@pytest.mark.parametrize(("status", "in_force"), [(401, "dedicated"), (200, "shared")])
async def test_profile_is_measured_at_the_salt_master(httpserver, salt, status, in_force):
    """Salt refuses a list with a function outside its blacklist's exceptions, or sends the job to no minion."""
    login(httpserver)
    httpserver.expect_request("/", method="POST").respond_with_json({"return": [{}]}, status=status)
    httpserver.expect_request("/login", method="POST").respond_with_json(token())
    assert await salt.profile() == SaltProfile(chosen="dedicated", in_force=in_force)
    (low,) = next(request.json for request, _ in httpserver.log if request.path == "/")
    assert (low["client"], low["fun"]) == ("local_async", ["saltutil.find_job", "test.true"])


async def test_refused_login_is_no_profile(httpserver, salt):
    httpserver.expect_request("/login").respond_with_json({}, status=401)
    with pytest.raises(SaltDenied, match="refuses the login"):
        await salt.profile()


async def test_older_gate_has_no_profile(salt, monkeypatch):
    async def older(*_arguments):
        return b"Not Found"

    monkeypatch.setattr(salt, "_request", older)
    with pytest.raises(SaltError, match="unknown shape"):
        await salt.profile()
