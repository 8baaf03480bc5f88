"""The master's API as a real server, against callers without a token and callers that are slow on purpose."""

import asyncio
import gc
import socket
import ssl
import time
from contextlib import ExitStack, suppress

import httpx2
import pytest
from fastapi.routing import iter_route_contexts
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from master_service.__main__ import _require_protection, server
from master_service.api.app import BODY_BYTES
from master_service.api.protocol.auth import PUBLIC_BODY_BYTES, PermittedRoute
from master_service.core.settings import Settings, SettingsError
from master_service.policy.permissions import ROUTES, Role
from tests.functional.master.conftest import LIMIT_S, SPEC, TOKEN, application, eventually, routes
from tests.lib.support import self_signed

PROCESSOR_S = 0.5
"""For one request that is meant to harm. Most of it is the time of an honest one."""
HEADERS = {
    "cache-control": "no-store",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
}
WITH_A_BODY = sorted(
    (f"{method} {context.path}", context.original_route)
    for context in iter_route_contexts(routes())
    for method in (getattr(context, "methods", None) or ())
    if method not in ("GET", "HEAD")
)


async def raw(served, text):
    """Open a connection, send a text, and return the two ends of it."""
    url = served.http.base_url
    reader, writer = await asyncio.open_connection(url.host, url.port)
    writer.write(text)
    await writer.drain()
    return reader, writer


def head(line, *headers, token=""):
    given = (f"Authorization: Bearer {token}",) if token else ()
    return "\r\n".join((f"{line} HTTP/1.1", "Host: 127.0.0.1", *given, *headers, "", "")).encode()


async def status(reader):
    async with asyncio.timeout(LIMIT_S):
        line = await reader.readline()
    return int(line.split()[1]) if line else None


NASTY = ["/" * 150_000, "//@" * 50_000, "//" + "@" * 100_000, "\\" * 50_000, "a" * 150_000]


@pytest.mark.parametrize("text", NASTY, ids=lambda text: text[:4])
async def test_no_text_keeps_the_master_busy(world, text):
    await world.person("uma")
    began = time.process_time()
    bodies = [
        ("POST", "/tokens", {"user": text, "password": "x"}, {"Authorization": ""}),
        ("POST", "/tokens", {"user": "x", "password": "x", "label": text, text: 1}, {"Authorization": ""}),
        ("POST", "/vmachines", SPEC | {"hda_image": text, "hostname": text, "ssh_keys": [text]}, world.of("uma")),
        ("POST", "/vmachines", SPEC | {"labels": {text: "x"}}, world.of("uma")),
    ]
    for method, path, body, headers in bodies:
        answer = await world.http.request(method, path, json=body, headers=headers)
        assert answer.status_code == (413 if path == "/tokens" else 400), answer.text[:300]
    assert time.process_time() - began < len(bodies) * PROCESSOR_S


@pytest.fixture
def no_collection():
    """Hold Python's collector, whose time depends on what the tests before have left in memory."""
    gc.disable()
    yield
    gc.enable()


async def test_many_bad_fields_make_a_short_answer(world, no_collection):
    body = {f"{n:x}": 1 for n in range(40_000)}
    began = time.process_time()
    answer = await world.http.post("/vmachines", json=body)
    assert (answer.status_code, len(answer.json()["errors"])) == (400, 20)
    assert time.process_time() - began < PROCESSOR_S


@pytest.mark.parametrize(("name", "route"), WITH_A_BODY, ids=[name for name, _ in WITH_A_BODY])
def test_route_with_a_body_asks_for_permission_first(name, route):
    assert isinstance(route, PermittedRoute)


async def test_permission_comes_before_the_body(served):
    """The body never comes: whoever waits for it does not answer."""
    length = "Content-Length: 1000", "Content-Type: application/json"
    private = {
        f"{method} /api/v1{path}" for method, path in (key.split() for key, rule in ROUTES.items() if not rule.public)
    }
    lines = [name.replace("{", "").replace("}", "") for name, _ in WITH_A_BODY if name in private]
    assert len(lines) > 20
    for line in lines:
        reader, writer = await raw(served, head(line, *length))
        assert await status(reader) == 401, line
        writer.close()
    token = await served.person("vera", Role.VIEWER)
    reader, writer = await raw(served, head("POST /api/v1/vmachines", *length, token=token))
    assert await status(reader) == 403
    writer.close()


async def test_body_is_not_read_beyond_its_bound(served):
    async def body():
        for _ in range(100):
            yield b" " * 10_000

    declared = await served.http.post("/vmachines", content=b" " * (BODY_BYTES + 1))
    streamed = await served.http.post("/vmachines", content=body(), headers={"Content-Type": "application/json"})
    login = await served.http.post("/tokens", content=b" " * (PUBLIC_BODY_BYTES + 1), headers={"Authorization": ""})
    for answer in (declared, streamed, login):
        assert (answer.status_code, answer.json()["code"]) == (413, "too_large")
    keys = [f"ssh-ed25519 {'A' * 8000} {'a' * 200}"] * 50
    largest = await served.http.post("/vmachines", json=SPEC | {"ssh_keys": keys, "run_policy": "manual"})
    assert largest.status_code == 201, largest.text[:200]


async def test_a_flood_of_a_body_takes_no_memory(served):
    """The master stops reading: the sender comes to a stand after what the kernel holds."""
    reader, writer = await raw(served, head("POST /api/v1/vmachines", "Content-Length: 300000000"))
    assert await status(reader) == 401
    (connection,) = [one for one in served.server.server_state.connections if one.client[1] == port_of(writer)]
    for _ in range(300):
        writer.write(b"x" * 100_000)
        with suppress(TimeoutError):
            async with asyncio.timeout(0.001):
                await writer.drain()
    assert len(connection.cycle.body) < 1 << 20
    writer.close()


def port_of(writer):
    return writer.get_extra_info("sockname")[1]


@pytest.fixture
async def bounded(settings, salt):
    """A function that serves the master with other settings, and returns its server."""
    async with asyncio.TaskGroup() as group:
        running = []

        async def serve(**changed):
            own = settings.model_copy(update={"port": 0, **changed})
            one = server(application(own, salt), own, lifespan="on", timeout_graceful_shutdown=1)
            one.install_signal_handlers = lambda: None
            group.create_task(one.serve())
            await eventually(lambda: one.started)
            running.append(one)
            return one, one.servers[0].sockets[0].getsockname()[1]

        yield serve
        for one in running:
            one.should_exit = True


async def test_unfinished_requests_give_way(bounded):
    _, port = await bounded(connections=20, receive_timeout_s=LIMIT_S)
    starts = (b"", b"GET / HT", head("POST /api/v1/tokens", "Content-Length: 9") + b"{")
    with ExitStack() as held:
        drips = []
        for number in range(60):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            held.callback(writer.close)
            writer.write(starts[number % len(starts)])
            drips.append(reader)
            honest = await asyncio.open_connection("127.0.0.1", port)
            honest[1].write(head("GET /healthz", "Connection: close"))
            assert await status(honest[0]) == 200
        for reader in drips[:30]:  # those that have kept it back longest
            with suppress(ConnectionResetError):
                async with asyncio.timeout(LIMIT_S):
                    await reader.read()


async def test_busy_master_says_so(bounded):
    _, port = await bounded(connections=3)
    with ExitStack() as held:
        for _ in range(3):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            held.callback(writer.close)
            writer.write(head("GET /api/v1/events", token=TOKEN))
            assert await status(reader) == 200
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        held.callback(writer.close)
        answer = (await reader.read()).decode()
    assert answer.startswith("HTTP/1.1 503")
    assert "application/problem+json" in answer
    assert '"code":"busy"' in answer


async def test_slow_callers_are_cut_off(bounded):
    running, port = await bounded(receive_timeout_s=0.2)
    for start in (b"", b"GET / HT", head("POST /api/v1/tokens", "Content-Length: 9") + b"{"):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(start)
        with suppress(ConnectionResetError):
            async with asyncio.timeout(LIMIT_S):
                while await reader.read(4096):
                    pass
        writer.close()
    with socket.create_connection(("127.0.0.1", port)) as reads_nothing:
        reads_nothing.setblocking(False)
        connections = running.server_state.connections
        await eventually(lambda: any(one.cycle for one in connections) or send(reads_nothing))
        await eventually(lambda: not connections or send(reads_nothing))


def send(one):
    """Ask for more of a long answer than the kernel holds, and return False."""
    with suppress(OSError):
        one.send(head("GET /openapi.json") * 100)
    return False


async def test_requests_that_are_no_http_are_answered_and_not_logged(bounded, caplog):
    _, port = await bounded()
    upgrade = head("GET /healthz", "Connection: Upgrade, close", "Upgrade: h2c")
    for text, expected in ((b"\0\r\n\r\n", 400), (b"GET / HTTP/1.1\r\n\r\n", 400), (upgrade, 200)):
        caplog.clear()
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(text)
        answer = (await reader.read()).decode().lower()
        writer.close()
        assert answer.startswith(f"http/1.1 {expected}")
        assert "cache-control: no-store" in answer
        assert "x-content-type-options: nosniff" in answer
        assert caplog.text == ""


async def test_unfinished_handshakes_give_way(bounded, tmp_path):
    certificate, key = self_signed(tmp_path)
    tls = {"tls_cert": certificate, "tls_key": key}
    running, port = await bounded(connections=20, receive_timeout_s=LIMIT_S, **tls)
    trusting = ssl.create_default_context(cafile=certificate)
    hello = b"\x16\x03\x01\x02\x00\x01"  # the begin of a client's first message
    async with httpx2.AsyncClient(verify=trusting, timeout=LIMIT_S) as http:
        with ExitStack() as held:
            drips = []
            for number in range(60):
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                held.callback(writer.close)
                writer.write(hello[: number % len(hello)])
                drips.append(reader)
                if number % 5 == 0:
                    answer = await http.get(f"https://127.0.0.1:{port}/healthz", headers={"Connection": "close"})
                    assert answer.status_code == 200
            for reader in drips[:30]:
                with suppress(ConnectionResetError):
                    async with asyncio.timeout(LIMIT_S):
                        await reader.read()
        await eventually(lambda: not running.server_state.connections)
        _, port = await bounded(receive_timeout_s=0.2, **tls)
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        with suppress(ConnectionResetError):
            async with asyncio.timeout(LIMIT_S):
                await reader.read()
        writer.close()
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(head("GET /healthz"))  # without TLS
        with suppress(ConnectionResetError):
            assert b"HTTP" not in await reader.read()
        writer.close()


async def test_every_answer_has_the_headers_and_an_id(world, monkeypatch):
    async def broken(self, *arguments):
        raise RuntimeError

    monkeypatch.setattr("master_service.store.accounts.AccountStore.accounts", broken)
    requests = [
        ("GET", "/vmachines", 200),
        ("GET", "/nothing", 404),
        ("PUT", "/vmachines", 405),
        ("GET", "/users", 500),
        ("GET", "http://master/docs", 200),
        ("GET", "http://master/openapi.json", 200),
        ("GET", "http://master/console/static/console.js", 200),
        ("GET", "http://elsewhere/healthz", 403),
    ]
    for method, path, expected in requests:
        answer = await world.http.request(method, path)
        assert answer.status_code == expected, path
        assert {name: answer.headers[name] for name in HEADERS} == HEADERS, path
        assert "default-src 'none'" in answer.headers["content-security-policy"]
        assert answer.headers["x-request-id"]


async def test_stream_has_the_headers_too(served):
    async with served.http.stream("GET", "/events") as answer:
        assert {name: answer.headers[name] for name in HEADERS} == HEADERS


async def test_foreign_host_is_refused(served):
    for host in ("elsewhere", "master.evil.example", "localhost@evil.example", "[::2]:80"):
        answer = await served.http.get("/vmachines", headers={"Host": host})
        assert (answer.status_code, answer.json()["code"]) == (403, "forbidden"), host
        assert "allowed_hosts" in answer.json()["hint"]
    for host in ("master", "MASTER:8080", "localhost:1", "[::1]:8080"):
        assert (await served.http.get("/vmachines", headers={"Host": host})).status_code == 200
    for hosts in ("Host:", "Host: master\r\nHost: elsewhere"):
        reader, writer = await raw(served, f"GET /healthz HTTP/1.1\r\n{hosts}\r\n\r\n".encode())
        assert await status(reader) in (400, 403)
        writer.close()
    port = served.http.base_url.port
    with pytest.raises(InvalidStatus) as refused:
        await connect(f"ws://elsewhere:{port}/api/v1/console/x/screen", host="127.0.0.1", port=port, proxy=None)
    assert refused.value.response.status_code == 403


NAMES = [
    ({}, {"127.0.0.1", "localhost", "::1"}),
    ({"host": "192.0.2.8"}, {"127.0.0.1", "localhost", "::1", "192.0.2.8"}),
    ({"public_url": "https://Saltern.example:8443/x"}, {"127.0.0.1", "localhost", "::1", "saltern.example"}),
    ({"allowed_hosts": ["M1"]}, {"127.0.0.1", "localhost", "::1", "m1"}),
]


@pytest.mark.parametrize(("given", "names"), NAMES)
def test_master_has_these_names(given, names):
    assert Settings(**given).host_names == names


async def test_forged_addresses_are_not_believed(served):
    for address in ("203.0.113.9", "x" * 5000):
        await served.http.get("/vmachines", headers={"Authorization": "Bearer no", "X-Forwarded-For": address})
    (line,) = (await served.http.get("/audit", params={"outcome": "denied"})).json()
    assert line["address"] == "127.0.0.1"


TLS = {"tls_cert": "/etc/hostname", "tls_key": "/etc/hostname"}


@pytest.mark.parametrize("given", [{}, {"host": "::1"}, {"host": "0.0.0.0", **TLS}, {"host": "::", "tls_proxy": True}])
def test_protected_master_may_start(given):
    _require_protection(Settings(**given))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"host": "0.0.0.0"}, "without TLS"),
        ({"host": "192.0.2.8"}, "tls_proxy"),
        ({"tls_cert": "/etc/hostname"}, "belong together"),
        ({"tls_cert": "/nonexistent", "tls_key": "/etc/hostname"}, "cannot be read"),
    ],
)
def test_unprotected_master_does_not_start(given, message):
    with pytest.raises(SettingsError, match=message):
        _require_protection(Settings(**given))
