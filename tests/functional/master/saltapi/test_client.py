"""The client of salt-api, against a server that answers as rest_cherrypy does, including its traps."""

import json
import time

import pytest
from werkzeug import Response

from master_service.core.errors import SaltDenied, SaltError
from master_service.saltapi.client import Event, RestSalt, SizeLimits
from tests.functional.master.conftest import LIMIT_S


def token(value="tok", expire_in=3600):
    return {"return": [{"token": value, "expire": time.time() + expire_in, "start": time.time(), "perms": []}]}


@pytest.fixture
async def salt(httpserver):
    made = RestSalt(httpserver.url_for("").rstrip("/"), "saltern-master", "secret", timeout_s=LIMIT_S)
    yield made
    await made.close()


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
    assert await salt.publish(["w1"], "vmachines.apply", {"actions": []}) == "20260101"
    (low,) = httpserver.log[-1][0].json
    assert low == {
        "client": "local_async",
        "tgt": ["w1"],
        "tgt_type": "list",
        "fun": "vmachines.apply",
        "kwarg": {"actions": []},
    }


async def test_worker_without_an_accepted_key_is_named(httpserver, salt):
    login(httpserver)
    httpserver.expect_ordered_request("/").respond_with_json({"return": [{}]})
    with pytest.raises(SaltError, match="no minion named w1"):
        await salt.publish(["w1"], "vmachines.apply", {})


async def test_glob_asks_all_workers_and_misses_the_silent_ones(httpserver, salt):
    login(httpserver)
    httpserver.expect_ordered_request("/").respond_with_json({"return": [{"w1": {"success": True}}]})
    assert await salt.call("*", "vmachines.list", {}, 7) == {"w1": {"success": True}}
    (low,) = httpserver.log[-1][0].json
    assert (low["client"], low["tgt"], low["tgt_type"], low["timeout"]) == ("local", "*", "glob", 7)


async def test_job_is_marked_and_its_returns_are_known_by_that(httpserver, salt):
    login(httpserver)
    httpserver.expect_ordered_request("/").respond_with_json({"return": [{}]})
    await salt.call("*", "vmachines.list", {}, 1, "poll-7")
    (low,) = httpserver.log[-1][0].json
    returned = {"id": "w1", "fun": "vmachines.list", "metadata": low["metadata"]}
    assert Event(tag="salt/job/20260101/ret/w1", data=returned).mark == "poll-7"


@pytest.mark.parametrize("metadata", [None, "poll-7", [], {}, {"mark": None}, {"mark": ["poll-7"]}])
def test_other_metadata_of_a_return_is_no_job_mark(metadata):
    assert Event(tag="salt/job/20260101/ret/w1", data={"metadata": metadata}).mark == ""


async def test_salt_is_given_whole_seconds(httpserver, salt):
    """It takes any other number for none, and its own `timeout` instead: salt/client/__init__.py, _get_timeout."""
    login(httpserver)
    httpserver.expect_ordered_request("/").respond_with_json({"return": [{}]})
    await salt.call("*", "vmachines.list", {}, 6.5)
    (low,) = httpserver.log[-1][0].json
    assert json.dumps(low["timeout"]) == "7"


async def test_lost_session_logs_in_again_once(httpserver, salt):
    login(httpserver)
    httpserver.expect_ordered_request("/", headers={"X-Auth-Token": "tok"}).respond_with_data("", status=401)
    login(httpserver, token("fresh"))
    httpserver.expect_ordered_request("/", headers={"X-Auth-Token": "fresh"}).respond_with_json({"return": [{}]})
    assert await salt.call("*", "vmachines.list", {}, 1) == {}


async def test_token_is_kept_until_shortly_before_it_expires(httpserver, salt):
    login(httpserver, token("short", expire_in=30))
    login(httpserver, token("long"))
    for _ in range(5):
        await salt.login()
    assert len(httpserver.log) == 2


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
        await salt.call("*", "vmachines.list", {}, 1)


async def test_refused_login_is_named(httpserver, salt):
    httpserver.expect_request("/login").respond_with_data("<html>", status=401)
    with pytest.raises(SaltDenied, match="refuses the login of saltern-master") as caught:
        await salt.login()
    assert "salt_api_password_file" in caught.value.hint
    assert "secret" not in str(caught.value)


async def test_missing_salt_api_is_an_error():
    salt = RestSalt("http://127.0.0.1:1", "u", "p", timeout_s=1)
    with pytest.raises(SaltError, match="does not answer"):
        await salt.login()
    await salt.close()


def sse(*events):
    """As rest_cherrypy writes them: a `tag:` line that is no part of SSE, then the data."""
    return "retry: 400\n" + "".join(f"tag: {tag}\ndata: {data}\n\n" for tag, data in events)


async def test_stream_yields_events_and_skips_the_rest(httpserver, salt):
    login(httpserver)
    good = {"tag": "vmachines/w1/alive", "data": {"id": "w1", "data": {}}}
    stream = sse(("x", "no json"), ("y", "[1]"), ("z", '{"tag": 1}'), (good["tag"], json.dumps(good)))
    httpserver.expect_ordered_request("/events", headers={"X-Auth-Token": "tok"}).respond_with_data(
        stream, content_type="text/event-stream;charset=utf-8"
    )
    async with salt.events() as events:
        found = [event async for event in events]
    assert [(event.tag, dict(event.data)) for event in found] == [(good["tag"], good["data"])]


async def test_session_that_ended_makes_the_stream_log_in_again(httpserver, salt):
    login(httpserver)
    httpserver.expect_ordered_request("/events").respond_with_data("", status=401)
    with pytest.raises(SaltDenied, match="next try logs in again"):
        async with salt.events():
            pass
    login(httpserver, token("fresh"))
    httpserver.expect_ordered_request("/events", headers={"X-Auth-Token": "fresh"}).respond_with_data(
        "", content_type="text/event-stream"
    )
    async with salt.events() as events:
        assert [event async for event in events] == []


@pytest.fixture
async def narrow(httpserver):
    """A client that reads little."""
    url = httpserver.url_for("").rstrip("/")
    made = RestSalt(url, "saltern-master", "secret", timeout_s=LIMIT_S, limits=SizeLimits(reply=1000, answer=10_000))
    yield made
    await made.close()


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
    answers = await narrow.call("*", "vmachines.list", {}, 1)
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
        await narrow.call("*", "vmachines.list", {}, 1)


async def test_large_or_deep_event_is_skipped(httpserver, narrow):
    login(httpserver)
    good = {"tag": "vmachines/w1/alive", "data": {"id": "w1", "data": {}}}
    deep = '{"tag": "deep", "data": ' + "[" * 400 + "]" * 400 + "}"
    stream = sse(("large", json.dumps(good | {"more": "x" * 5000})), ("deep", deep), (good["tag"], json.dumps(good)))
    httpserver.expect_ordered_request("/events").respond_with_data(stream, content_type="text/event-stream")
    async with narrow.events() as events:
        assert [event.tag async for event in events] == [good["tag"]]


async def test_event_nested_without_end_is_left_out(httpserver, salt):
    login(httpserver)
    good = {"tag": "vmachines/w1/alive", "data": {}}
    deep = '{"tag": "deep", "data": ' + '{"a":' * 100_000 + "1" + "}" * 100_000 + "}"
    stream = sse(("deep", deep), (good["tag"], json.dumps(good)))
    httpserver.expect_ordered_request("/events").respond_with_data(stream, content_type="text/event-stream")
    async with salt.events() as events:
        assert [event.tag async for event in events] == [good["tag"]]
