"""Limits of passwords that may be tried: a caller who guesses locks out nobody but themselves."""

import pytest

from master_service.core.errors import TooMany
from master_service.services.login_limits import FREE_TRIES, LOCK_S, LoginLimits, source_of

MINE, OTHER = "192.0.2.1", "198.51.100.7"
"""The address of a user, and of somebody who guesses."""


def test_tries_from_one_address_have_to_wait():
    limits = LoginLimits()
    assert [limits.count("uma", MINE, 0) for _ in range(FREE_TRIES)] == [""] * FREE_TRIES
    assert "this address" in limits.count("uma", MINE, 0)
    assert limits.waits(0) == {"uma": LOCK_S}
    assert limits.count("otto", MINE, 0) == ""
    assert limits.count("uma", MINE, LOCK_S) == ""
    assert "this address" in limits.count("uma", MINE, LOCK_S)
    limits.succeeded("uma", MINE)
    assert limits.count("uma", MINE, LOCK_S) == ""


def test_guesses_lock_no_other_address_out():
    limits = LoginLimits()
    for second in range(3600):  # an hour of guesses, one a second
        limits.count("uma", OTHER, second)
    assert limits.count("uma", MINE, 3600) == ""


def test_guesses_from_many_addresses_are_few():
    limits = LoginLimits()
    let_in = sum(limits.count("uma", f"10.0.{n // 256}.{n % 256}", n / 10) == "" for n in range(36_000))
    assert 300 < let_in < 500  # in an hour: 30, and then one in ten seconds


def test_known_address_is_let_in_among_many_guesses():
    limits = LoginLimits()
    limits.succeeded("uma", MINE)
    for n in range(1000):
        limits.count("uma", f"10.0.{n // 256}.{n % 256}", 0)
    assert "new addresses" in limits.count("uma", OTHER, 0)
    assert limits.count("uma", MINE, 0) == ""


def test_no_user_waits_longer_than_a_minute():
    limits = LoginLimits()
    for _ in range(100_000):
        limits.count("uma", MINE, 0)
    assert max(limits.waits(0).values()) <= LOCK_S
    assert limits.count("uma", MINE, LOCK_S) == ""


def test_new_password_begins_again():
    limits = LoginLimits()
    for n in range(100):
        limits.count("uma", f"10.0.0.{n % 20}", 0)
    limits.forget("uma")
    assert limits.count("uma", "10.0.0.1", 0) == ""
    assert limits.waits(0) == {}


def test_clock_that_is_set_back_locks_no_user_out():
    limits = LoginLimits()
    for _ in range(FREE_TRIES):
        limits.count("uma", MINE, 1e6)
    assert limits.count("uma", MINE, 0)
    assert limits.count("uma", MINE, LOCK_S) == ""


def test_one_address_costs_only_so_much_work():
    limits = LoginLimits()
    for _ in range(20):
        limits.admit(OTHER, 0)
    with pytest.raises(TooMany) as refused:
        limits.admit(OTHER, 0)
    assert refused.value.hint == "Try again in 2 s."
    limits.admit(MINE, 0)
    limits.admit(OTHER, 2)


def test_memory_is_bounded():
    limits = LoginLimits()
    for n in range(12_000):
        limits.count(f"u{n}", OTHER, 0)
        limits.succeeded(f"u{n}", MINE)
    assert len(limits._known) == len(list(limits._pairs.callers())) == 10_000


@pytest.mark.parametrize(
    ("address", "source"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2::", "2001:db8:1:2::/64"),
        ("::1", "::/64"),
        ("", ""),
        ("testclient", "testclient"),
    ],
)
def test_source_is_an_address_or_a_network(address, source):
    assert source_of(address) == source
