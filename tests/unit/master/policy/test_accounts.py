"""Accounts: names, passwords, tokens and scopes."""

from datetime import UTC, datetime, timedelta

import pytest

from master_service.policy.accounts import (
    NewToken,
    Token,
    allowed_scopes,
    digest,
    validate_name,
    validate_password,
)
from master_service.policy.permissions import Scope

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def test_scopes_never_grow():
    held = frozenset({Scope.READ, Scope.OPERATE})
    assert allowed_scopes(None, held) == held
    assert allowed_scopes([Scope.READ], held) == {Scope.READ}
    with pytest.raises(ValueError, match="accounts or console"):
        allowed_scopes([Scope.ACCOUNTS, Scope.CONSOLE, Scope.READ], held)


@pytest.mark.parametrize(
    ("expires_s", "revoked", "fault"),
    [
        (None, False, ""),
        (1, False, ""),
        (0, False, "has expired"),
        (-1, False, "has expired"),
        (1, True, "was revoked"),
    ],
)
def test_when_a_token_opens_nothing(expires_s, revoked, fault):
    token = Token(
        id="1",
        user="uma",
        kind="token",
        label="",
        scopes=frozenset(),
        created_at=NOW,
        expires_at=None if expires_s is None else NOW + timedelta(seconds=expires_s),
        revoked_at=NOW if revoked else None,
    )
    assert token.fault(NOW).startswith(fault)
    assert bool(token.fault(NOW)) is bool(fault)


def test_token_is_random_and_is_not_shown_with_its_value():
    one, other = (NewToken(user="uma", kind="token", label="", scopes=frozenset(), expires_at=None) for _ in range(2))
    assert one.secret != other.secret
    assert len(one.secret) == len("saltern_") + 43
    assert one.secret not in repr(one)
    assert len(digest(one.secret)) == 64


@pytest.mark.parametrize("value", ["a", "ada", "a.b_c-1", "a" * 63])
def test_user_name_is_accepted(value):
    assert validate_name(value) == value


@pytest.mark.parametrize("value", ["", "Ada", "1a", "-a", "a b", "a" * 64, "a\n", "me", "saltern", "nobody"])
def test_user_name_that_is_none_or_reserved_is_refused(value):
    with pytest.raises(ValueError, match=r"letters|another name"):
        validate_name(value)


@pytest.mark.parametrize("value", ["abcde12345", "correct horse battery", "abcde" * 51])
def test_password_is_accepted(value):
    assert validate_password(value) == value


@pytest.mark.parametrize("value", ["", "abcde1234", "a" * 257, "aaaaaaaaaaaa", "abcdabcdabcd"])
def test_password_that_is_weak_or_too_long_is_refused(value):
    with pytest.raises(ValueError, match="a password has") as refused:
        validate_password(value)
    assert not value or value not in str(refused.value)
