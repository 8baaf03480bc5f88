"""The address of a caller: only a trusted proxy says it, and only as an address."""

import ipaddress

import pytest

from master_service.api.protocol.client_address import ClientAddress, caller_address

NONE = []
LOCAL = ["127.0.0.0/8", "::1/128"]
CHAIN = ["127.0.0.1/32", "10.0.0.0/24"]


@pytest.mark.parametrize(
    ("peer", "forwarded", "trusted", "found"),
    [
        ("127.0.0.1", ["203.0.113.9"], NONE, "127.0.0.1"),
        ("203.0.113.7", ["198.51.100.1"], LOCAL, "203.0.113.7"),
        ("127.0.0.1", [], LOCAL, "127.0.0.1"),
        ("127.0.0.1", ["203.0.113.9"], LOCAL, "203.0.113.9"),
        ("::ffff:127.0.0.1", ["203.0.113.9"], LOCAL, "203.0.113.9"),
        ("::1", ["2001:DB8::0001"], LOCAL, "2001:db8::1"),
        ("127.0.0.1", ["1.1.1.1, 203.0.113.9"], LOCAL, "203.0.113.9"),
        ("127.0.0.1", ["1.1.1.1", "203.0.113.9"], LOCAL, "203.0.113.9"),
        ("127.0.0.1", ["1.1.1.1, 203.0.113.9, 10.0.0.5"], CHAIN, "203.0.113.9"),
        ("127.0.0.1", ["10.0.0.5"], CHAIN, "10.0.0.5"),
        ("127.0.0.1", ["203.0.113.9, <script>"], LOCAL, "127.0.0.1"),
        ("127.0.0.1", ["203.0.113.9:80"], LOCAL, "127.0.0.1"),
        ("127.0.0.1", [""], LOCAL, "127.0.0.1"),
        ("127.0.0.1", ["fe80::1%" + "z" * 5000], LOCAL, "127.0.0.1"),
        ("127.0.0.1", [", ".join(["127.0.0.1"] * 10_000)], LOCAL, "127.0.0.1"),
        ("not an address", ["203.0.113.9"], LOCAL, "not an address"),
    ],
)
def test_only_trusted_proxies_are_believed(peer, forwarded, trusted, found):
    assert caller_address(peer, forwarded, tuple(map(ipaddress.ip_network, trusted))) == found


@pytest.mark.parametrize(
    ("trusted", "proto", "type_", "client", "scheme"),
    [
        (LOCAL, "https", "http", ("203.0.113.9", 0), "https"),
        (LOCAL, "https", "websocket", ("203.0.113.9", 0), "wss"),
        (LOCAL, "http", "http", ("203.0.113.9", 0), "http"),
        (LOCAL, "javascript", "http", ("203.0.113.9", 0), "http"),
        (NONE, "https", "http", ("127.0.0.1", 5), "http"),
    ],
)
async def test_scope_has_the_callers_address(trusted, proto, type_, client, scheme):
    passed = []

    async def app(scope, receive, send):
        passed.append(scope)

    headers = [(b"x-forwarded-for", b"203.0.113.9"), (b"x-forwarded-proto", proto.encode())]
    scope = {"type": type_, "client": ("127.0.0.1", 5), "scheme": {"http": "http"}.get(type_, "ws"), "headers": headers}
    await ClientAddress(app, trusted)(scope, None, None)
    assert (passed[0]["client"], passed[0]["scheme"]) == (client, scheme)


async def test_scope_without_a_client_is_left_alone():
    passed = []

    async def app(scope, receive, send):
        passed.append(scope)

    for scope in ({"type": "lifespan"}, {"type": "http", "client": None, "headers": []}):
        await ClientAddress(app, LOCAL)(scope, None, None)
        assert passed[-1] is scope
