"""The guard around every answer, by the messages of ASGI."""

import pytest
from starlette.responses import PlainTextResponse

from http_bounds.guard import MOST_BODY, Guard, host_name, host_of

HEAD = {"type": "http.response.start", "status": 200, "headers": [(b"cache-control", b"public"), (b"x-mine", b"1")]}


class TooLarge(Exception):
    pass


async def answer_of(guard, *, kind="http", body=(), **scope):
    """Return the messages that a guarded application sends for a request."""
    messages, sent = [{"type": "http.request", "body": part, "more_body": True} for part in body], []

    async def receive():
        return messages.pop(0) if messages else {"type": "http.disconnect"}

    async def send(message):
        sent.append(message)

    await guard({"type": kind, "headers": [], **scope}, receive, send)
    return sent


def guarded(app, refuse=lambda _: None):
    return Guard(app, refuse=refuse, most_body=10, too_large=TooLarge)


async def test_answer_has_the_headers_of_the_guard():
    async def app(scope, receive, send):
        await send(HEAD | {"headers": list(HEAD["headers"])})

    (head,) = await answer_of(guarded(app))
    headers = dict(head["headers"])
    assert headers[b"cache-control"] == b"no-store"  # whatever the application says
    assert headers[b"x-content-type-options"] == b"nosniff"
    assert headers[b"x-mine"] == b"1"


@pytest.mark.parametrize(
    ("parts", "most", "is_refused"),
    [([5, 5], None, False), ([5, 6], None, True), ([11], None, True), ([5, 5], 9, True), ([], 0, False)],
)
async def test_body_is_counted_as_it_comes(parts, most, is_refused):
    async def app(scope, receive, send):
        if most is not None:
            scope[MOST_BODY] = most
        while (await receive())["type"] == "http.request":
            pass

    async def call():
        await answer_of(guarded(app), body=[b"x" * size for size in parts])

    if is_refused:
        with pytest.raises(TooLarge):
            await call()
    else:
        await call()


async def test_refused_request_does_not_reach_the_application():
    async def app(scope, receive, send):
        raise AssertionError

    refusing = guarded(app, lambda _: PlainTextResponse("no", 403))
    for kind, first in (("http", "http.response.start"), ("websocket", "websocket.http.response.start")):
        sent = await answer_of(refusing, kind=kind, extensions={"websocket.http.response": {}})
        assert (sent[0]["type"], sent[0]["status"]) == (first, 403)


async def test_other_messages_pass():
    passed = []

    async def app(scope, receive, send):
        passed.append(scope["type"])

    for kind in ("lifespan", "websocket"):
        await answer_of(guarded(app), kind=kind)
    assert passed == ["lifespan", "websocket"]


@pytest.mark.parametrize(
    ("hosts", "found"), [([], ""), ([b"a"], "a"), ([b"a", b"b"], ""), ([b"a", b"a"], "")], ids=["no", "1", "2", "equal"]
)
def test_request_has_one_host(hosts, found):
    assert host_of({"type": "http", "headers": [(b"host", host) for host in hosts]}) == found


@pytest.mark.parametrize(
    ("host", "name"),
    [
        ("127.0.0.1:8081", "127.0.0.1"),
        ("127.0.0.1", "127.0.0.1"),
        ("[::1]:8081", "::1"),
        ("[::1]", "::1"),
        ("LOCALHOST:1", "localhost"),
        ("", ""),
        ("localhost@evil.example:80", "localhost@evil.example"),
    ],
)
def test_name_of_a_host_has_no_port(host, name):
    assert host_name(host) == name
