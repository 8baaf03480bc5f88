"""The rules of permissions. functional/master/api/test_permissions.py tests every row against the real application."""

import itertools

import pytest

from master_service.policy.permissions import (
    PATH_PARAMETERS,
    READ_RULES,
    ROUTES,
    Reach,
    Role,
    Rule,
    Scope,
    Subject,
    Verdict,
    verdict,
)

ALLOWED, FORBIDDEN, HIDDEN = Verdict.ALLOWED, Verdict.FORBIDDEN, Verdict.HIDDEN
TABLE = {
    # (reach over the route, reach over looking, own): verdict
    (Reach.ALL, Reach.ALL, True): ALLOWED,
    (Reach.ALL, Reach.ALL, False): ALLOWED,
    (Reach.ALL, Reach.OWN, True): ALLOWED,
    (Reach.ALL, Reach.OWN, False): ALLOWED,
    (Reach.ALL, Reach.NONE, True): ALLOWED,
    (Reach.ALL, Reach.NONE, False): ALLOWED,
    (Reach.OWN, Reach.ALL, True): ALLOWED,
    (Reach.OWN, Reach.ALL, False): FORBIDDEN,
    (Reach.OWN, Reach.OWN, True): ALLOWED,
    (Reach.OWN, Reach.OWN, False): HIDDEN,
    (Reach.OWN, Reach.NONE, True): ALLOWED,
    (Reach.OWN, Reach.NONE, False): HIDDEN,
    (Reach.NONE, Reach.ALL, True): FORBIDDEN,
    (Reach.NONE, Reach.ALL, False): FORBIDDEN,
    (Reach.NONE, Reach.OWN, True): FORBIDDEN,
    (Reach.NONE, Reach.OWN, False): HIDDEN,
    (Reach.NONE, Reach.NONE, True): HIDDEN,
    (Reach.NONE, Reach.NONE, False): HIDDEN,
}


def test_table_has_every_case():
    assert set(TABLE) == set(itertools.product(Reach, Reach, (True, False)))


@pytest.mark.parametrize(("case", "expected"), TABLE.items())
def test_permission_depends_on_the_object(case, expected, monkeypatch):
    reach, looks, own = case
    monkeypatch.setattr(
        "master_service.policy.permissions.READ_RULES", {Subject.VM: Rule(user=looks, subject=Subject.VM)}
    )
    assert verdict(Rule(user=reach, subject=Subject.VM), Role.USER, own=own) is expected


@pytest.mark.parametrize("own", [True, False])
@pytest.mark.parametrize("reach", Reach)
def test_route_without_an_object_hides_nothing(reach, own):
    expected = FORBIDDEN if reach is Reach.NONE else ALLOWED
    assert verdict(Rule(user=reach), Role.USER, own=own) is expected


def test_administrator_may_do_everything():
    assert {key for key, rule in ROUTES.items() if rule.admin is not Reach.ALL} == set()


def test_viewer_changes_only_its_own_account():
    changing = {key: rule for key, rule in ROUTES.items() if not key.startswith("GET ") and not rule.public}
    assert {
        key for key, rule in changing.items() if rule.viewer is not Reach.NONE and rule.scope is not Scope.ACCOUNTS
    } == set()


def test_change_needs_more_than_the_read_scope():
    changing = {key for key, rule in ROUTES.items() if not key.startswith("GET ") and not rule.public}
    assert {key for key in changing if ROUTES[key].scope is Scope.READ} == set()


def test_object_is_in_the_path_exactly_where_a_rule_says_so():
    for key, rule in ROUTES.items():
        named = {subject for subject, parameter in PATH_PARAMETERS.items() if f"{{{parameter}}}" in key}
        assert named == ({rule.subject} if rule.subject else set()), key
    assert set(PATH_PARAMETERS) == set(READ_RULES) == set(Subject)


def test_scope_of_version_0_1_is_read():
    assert Scope("people") is Scope.ACCOUNTS
    with pytest.raises(ValueError, match="nonsense"):
        Scope("nonsense")
