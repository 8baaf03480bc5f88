"""Which addresses workers fetch from and webhooks are posted to: one table for both services."""

import ipaddress

import pytest

from worker_service.contract.public_address import allowed_of, is_allowed, is_loopback, is_public

NEVER = [
    "0.0.0.0", "0.1.2.3", "10.0.0.1", "100.64.0.1", "127.0.0.1", "127.255.255.254", "169.254.169.254", "172.16.0.1",
    "192.0.2.1", "192.168.1.1", "198.18.0.1", "224.0.0.1", "239.255.255.250", "240.0.0.1", "255.255.255.255",
    "::", "::1", "fd00:ec2::254", "fe80::1", "fe80::1%lo", "fec0::1", "ff02::1", "ff0e::1", "100::1", "2001:db8::1",
    # IPv4 in IPv6, as the kernel maps it and as NAT64 translates it
    "::ffff:127.0.0.1", "::ffff:169.254.169.254", "64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe", "64:ff9b::a00:1",
    "64:ff9b::e000:1",
    # deprecated notations: nobody needs them, so they lead nowhere, not even to public addresses
    "::127.0.0.1", "::169.254.169.254", "::8.8.8.8", "::ffff:0:127.0.0.1", "::ffff:0:8.8.8.8",
    # other systems decide where these lead
    "64:ff9b:1::a9fe:a9fe", "64:ff9b:1:7f00:0:100::", "2002:7f00:1::", "2002:808:808::", "2001:0:7f00:1::",
    "2001:0:4136:e378:8000:63bf:80ff:fffe",
]  # fmt: skip
PUBLIC = [
    "8.8.8.8", "93.184.216.34", "2606:4700::1111", "2a00:1450:4001:80b::200e", "::ffff:8.8.8.8", "64:ff9b::808:808",
]  # fmt: skip


@pytest.mark.parametrize("address", NEVER)
def test_address_that_is_not_one_public_host_is_refused(address):
    assert not is_allowed(address)
    assert not is_allowed(address, ["198.51.100.0/24"])
    assert not is_allowed(ipaddress.ip_address(address))


@pytest.mark.parametrize("address", PUBLIC)
def test_public_address_is_allowed(address):
    assert is_allowed(address)
    assert is_allowed(address, ["198.51.100.0/24"])


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
def test_address_in_the_sites_networks_is_allowed(network, address):
    assert is_allowed(address, ["198.51.100.0/24", network])


def test_ipv4_address_in_an_ipv6_one_is_judged_by_itself():
    assert not is_public(ipaddress.ip_address("64:ff9b::808:808"))
    assert not is_public(ipaddress.ip_address("::8.8.8.8"))


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("localhost", True), ("127.0.0.1", True), ("127.9.9.9", True), ("::1", True),
        ("0.0.0.0", False), ("192.168.0.1", False), ("::", False), ("worker1", False), ("localhost.evil.test", False),
    ],
)  # fmt: skip
def test_loopback_hosts(host, expected):
    assert is_loopback(host) is expected


def test_allowed_addresses_keep_their_order():
    mixed = ["::1", *PUBLIC, *NEVER, *PUBLIC]
    assert allowed_of(iter(mixed)) == PUBLIC
    assert allowed_of(["10.0.0.1", "127.0.0.1", "::1"], iter(["127.0.0.0/8", "::1/128"])) == ["127.0.0.1", "::1"]
    assert allowed_of(NEVER) == allowed_of([]) == []
