"""Addresses that a worker connects to: public ones, and those of the site's own networks."""

import ipaddress
import socket

import pytest

from worker_service.contract.public_address import is_public
from worker_service.core.errors import Refused
from worker_service.core.settings import ImagePolicy
from worker_service.transfer.address_policy import Connector, allowed_addresses
from worker_service.transfer.uri import parse

URI = parse("https://store.example/a.raw")

NEVER = [
    "0.0.0.0", "0.1.2.3", "10.0.0.1", "100.64.0.1", "127.0.0.1", "127.255.255.254", "169.254.169.254", "172.16.0.1",
    "192.0.2.1", "192.168.1.1", "198.18.0.1", "224.0.0.1", "239.255.255.250", "240.0.0.1", "255.255.255.255",
    "::", "::1", "fd00:ec2::254", "fe80::1", "fe80::1%lo", "fec0::1", "ff02::1", "ff0e::1", "100::1", "2001:db8::1",
    # IPv4 in IPv6: as the kernel maps it, as it once did, as SIIT and NAT64 translate it
    "::ffff:127.0.0.1", "::ffff:169.254.169.254", "::127.0.0.1", "::169.254.169.254", "::ffff:0:127.0.0.1",
    "64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe", "64:ff9b::a00:1", "64:ff9b::e000:1",
    # it hides its target, or any server may choose it
    "64:ff9b:1::a9fe:a9fe", "64:ff9b:1:7f00:0:100::", "2002:7f00:1::", "2002:808:808::", "2001:0:7f00:1::",
    "2001:0:4136:e378:8000:63bf:80ff:fffe",
]  # fmt: skip
PUBLIC = [
    "8.8.8.8", "93.184.216.34", "2606:4700::1111", "2a00:1450:4001:80b::200e",
    "::ffff:8.8.8.8", "64:ff9b::808:808",  # a worker without IPv4 reaches most of the world this way
]  # fmt: skip


@pytest.fixture
def resolved(monkeypatch):
    """Let the resolver give the answers of the test."""

    def answer(*addresses):
        found = [
            (socket.AF_INET6 if ":" in a else socket.AF_INET, socket.SOCK_STREAM, 6, "", (a, 443)) for a in addresses
        ]
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_args, **_kwargs: found)

    return answer


@pytest.mark.parametrize("address", NEVER)
def test_non_public_address_is_refused(resolved, address):
    resolved(address)
    with pytest.raises(Refused, match="not a public address") as refused:
        allowed_addresses(ImagePolicy(), URI, "store.example", 443)
    assert refused.value.http_status == 403


@pytest.mark.parametrize("address", PUBLIC)
def test_public_address_is_connected_to(resolved, address):
    resolved(address)
    assert allowed_addresses(ImagePolicy(), URI, "store.example", 443) == [str(ipaddress.ip_address(address))]


def test_wrong_answers_among_good_ones_are_left_out(resolved):
    """The connection goes to an address of the list, so the others are never connected to."""
    resolved("127.0.0.1", *PUBLIC, "::1", *PUBLIC)
    good = [str(ipaddress.ip_address(address)) for address in PUBLIC]
    assert allowed_addresses(ImagePolicy(), URI, "store.example", 443) == good


A, B, C = "8.8.8.8", "93.184.216.34", "2606:4700::1111"


@pytest.mark.parametrize(
    ("dead", "tried"),
    [
        ((), [A, A]),
        ((A,), [A, B, B]),  # the one that answered is the first the next time
        ((A, B), [A, B, C, C]),
        ((B, C), [A, A]),
        ((A, B, C), [A, B, C] * 2),
    ],
)
def test_addresses_are_tried_in_turn(resolved, dead, tried):
    resolved(A, B, C)
    dialled, connector = [], Connector(ImagePolicy())

    def dial(address):
        dialled.append(address)
        if address in dead:
            raise ConnectionError(address)
        return address

    for _time in range(2):
        if len(dead) == 3:
            with pytest.raises(ConnectionError, match=C):
                connector.connect(URI, "store.example", 443, dial, (OSError,))
        else:
            assert connector.connect(URI, "store.example", 443, dial, (OSError,)) == tried[-1]
    assert dialled == tried


def test_answer_that_moved_away_is_not_missed(resolved):
    resolved(A)
    connector = Connector(ImagePolicy())
    connector.connect(URI, "store.example", 443, str, (OSError,))
    resolved(C, B)
    assert connector.connect(URI, "store.example", 443, str, (OSError,)) == C
    assert connector.connect(URI, "other.example", 443, str, (OSError,)) == C


def test_other_failures_are_no_reason_to_go_on(resolved):
    resolved(A, B)
    with pytest.raises(ZeroDivisionError):
        Connector(ImagePolicy()).connect(URI, "store.example", 443, lambda _address: 1 / 0, (OSError,))


@pytest.mark.parametrize(
    ("network", "address"),
    [
        ("127.0.0.0/8", "127.0.0.1"),
        ("127.0.0.0/8", "::ffff:127.0.0.1"),
        ("10.0.0.0/8", "64:ff9b::a00:1"),
        ("::1/128", "::1"),
        ("64:ff9b:1::/48", "64:ff9b:1::a00:1"),
        ("fec0::/10", "fec0::1"),
    ],
)
def test_sites_own_networks_are_connected_to(resolved, network, address):
    resolved(address)
    policy = ImagePolicy(http_networks=(network,))
    expected = [str(ipaddress.ip_address(address))]
    assert allowed_addresses(policy, URI, "store.example", 443) == expected
    resolved("192.168.0.1", address)
    assert allowed_addresses(policy, URI, "store.example", 443) == expected
    resolved("192.168.0.1")
    with pytest.raises(Refused, match="192"):
        allowed_addresses(policy, URI, "store.example", 443)


def test_ipv4_address_is_public_by_itself_only(resolved):
    """An address that contains an IPv4 address is judged by that; the wrapper alone counts as no host's."""
    assert not is_public(ipaddress.ip_address("64:ff9b::808:808"))
    assert not is_public(ipaddress.ip_address("::8.8.8.8"))
