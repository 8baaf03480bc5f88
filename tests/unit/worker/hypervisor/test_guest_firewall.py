"""The rules that keep guests on the network `user` from the host and its networks."""

import ipaddress

import pytest

from worker_service.core import host
from worker_service.core.errors import BadRequest, HypervisorError
from worker_service.core.settings import GUEST_DENIED_NETWORKS, Settings, load
from worker_service.hypervisor import guest_firewall

DENIED = [ipaddress.ip_network(network) for network in GUEST_DENIED_NETWORKS]
PRIVATE = (
    *("10.0.0.1", "10.255.255.255", "172.16.0.1", "172.31.255.254", "192.168.1.1", "100.64.0.1", "127.0.0.1"),
    *("127.255.0.1", "0.0.0.0", "169.254.169.254", "100.100.100.200", "168.63.129.16", "192.0.0.192", "224.0.0.1"),
    *("239.255.255.250", "255.255.255.255", "::", "::1", "fd00:ec2::254", "fc00::1", "fe80::1", "fec0::1", "ff02::1"),
    *("::ffff:10.0.0.1", "64:ff9b::a00:1"),
)
PUBLIC = (
    *("1.1.1.1", "9.255.255.255", "11.0.0.1", "172.15.0.1", "172.32.0.1", "192.169.0.1", "223.255.255.254"),
    *("2600::1", "2a00::1"),
)


def denied(address):
    return any(ipaddress.ip_address(address) in network for network in DENIED)


@pytest.mark.parametrize("address", PRIVATE)
def test_default_denies_what_is_not_public(address):
    assert denied(address)


@pytest.mark.parametrize("address", PUBLIC)
def test_default_leaves_public_addresses(address):
    assert not denied(address)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", ["127.0.0.1"]),
        ("# nameserver 1.1.1.1\nsearch example\n", ["127.0.0.1"]),
        ("nameserver 127.0.0.53\noptions edns0\n", ["127.0.0.53"]),
        ("nameserver 10.0.0.1\n nameserver\t2001:db8::1 # second\n", ["10.0.0.1", "2001:db8::1"]),
        ("nameserver fe80::1%eth0\nnameserver 10.0.0.1; drop\n", ["fe80::1"]),
        ("nameserver } accept\n", ["127.0.0.1"]),
    ],
)
def test_resolvers_of_a_resolv_conf(text, found):
    assert guest_firewall.resolvers_in(text) == found


def test_rules_are_for_one_user_and_let_resolvers_through():
    text = guest_firewall.rules(["10.0.0.0/8", "fc00::/7"], 64055, ["10.0.0.53", "fd00::53"])
    lines = [line.strip() for line in text.splitlines()]
    order = [
        "meta skuid != 64055 accept",
        "ct state established,related accept",
        "ip daddr 10.0.0.53 meta l4proto { tcp, udp } th dport 53 accept",
        "ip6 daddr fd00::53 meta l4proto { tcp, udp } th dport 53 accept",
        "fib daddr type local goto refuse",
        "ip daddr @denied4 goto refuse",
        "ip6 daddr @denied6 goto refuse",
    ]
    assert [lines.index(line) for line in order] == sorted(lines.index(line) for line in order)
    assert "elements = { 10.0.0.0/8 };" in lines
    assert "elements = { fc00::/7 };" in lines


def test_no_denied_network_still_denies_the_host():
    text = guest_firewall.rules([], 1, [])
    assert "elements" not in text
    assert "fib daddr type local goto refuse" in text


@pytest.mark.parametrize(("user", "reason"), [("nobody-of-that-name", "no user"), ("root", "QEMU as root")])
def test_user_that_no_rule_can_name_is_refused(user, reason):
    with pytest.raises(HypervisorError, match=reason):
        guest_firewall.script(Settings(qemu_user=user))


def test_check_of_a_missing_user_says_so():
    assert guest_firewall.check(Settings(qemu_user="nobody-of-that-name")) == (
        False,
        "This host has no user nobody-of-that-name; qemu_user in the worker's settings names QEMU's.",
    )


def test_missing_program_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(host, "user", lambda _: host.User(64055, 64055))
    with pytest.raises(HypervisorError, match="install the package nftables"):
        guest_firewall.apply(Settings())


def test_kernel_without_the_modules_is_named(monkeypatch, tmp_path):
    (tmp_path / "nft").write_text(
        "#!/bin/sh\necho 'Error: Could not process rule: Operation not supported' >&2; exit 1\n"
    )
    (tmp_path / "nft").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin")
    with pytest.raises(HypervisorError, match=r"Operation not supported.*kernel with nf_tables"):
        guest_firewall.remove()


def test_network_that_is_none_is_refused(tmp_path):
    (tmp_path / "worker.toml").write_text('guest_denied_networks = ["10.0.0.0/8", "office"]\n')
    with pytest.raises(BadRequest, match="office"):
        load(tmp_path / "worker.toml")
