"""The production configuration of Salt in salt/, read as rules."""

import re

import pytest
import yaml

from devstack.layout import REPO
from worker_service.contract import ACTIONS

MASTER = yaml.safe_load((REPO / "salt/master.d/saltern.conf").read_text())
DEDICATED = yaml.safe_load((REPO / "salt/master.d/saltern_dedicated.conf").read_text())
MINION = yaml.safe_load((REPO / "salt/minion.d/saltern.conf").read_text())
ACCOUNT = MASTER["external_auth"]["sharedsecret"]["saltern-master"]
ALLOWED = [rule for target in ACCOUNT for rules in target.values() for rule in rules]
DENIED = DEDICATED["publisher_acl_blacklist"]["modules"]
VERBS = {*ACTIONS, "apply", "list", "status", "plan", "version"}


def permitted(function):
    """As Salt does it: re.match, a prefix match, for both."""
    return any(re.match(rule, function) for rule in ALLOWED)


def refused(function):
    return any(re.match(rule, function) for rule in DENIED)


@pytest.mark.parametrize("function", [f"vmachines.{verb}" for verb in sorted(VERBS)])
def test_master_account_may_call_what_it_needs(function):
    assert permitted(function)
    assert not refused(function)


@pytest.mark.parametrize(
    "function",
    [
        "cmd.run",
        "vmachines.start_evil",
        "vmachines",
        "xvmachines.start",
        "state.apply",
        "test.ping2",
        "cp.push",
        "*",
        "",
    ],
)
def test_everything_else_is_closed_twice(function):
    assert not permitted(function)
    assert function == "" or refused(function)


def test_salts_own_check_of_a_job_passes():
    assert not refused("saltutil.find_job")


def test_blacklist_names_nothing_beyond_the_account():
    """An allowed function can be part of a list of functions, past the account's own rules."""
    open_to_lists = re.search(r"\(\?!\((.*)\)\$\)", DENIED[0]).group(1)
    inner = "|".join(rule.removesuffix("$") for rule in ALLOWED)
    assert open_to_lists == f"{inner}|saltutil\\.find_job"


def test_profile_dedicated_is_one_file_and_nothing_else():
    """Salt joins the lists of all files, so no later file could take a blacklist back: `shared` leaves the file out."""
    assert list(DEDICATED) == ["publisher_acl_blacklist"]
    assert "publisher_acl_blacklist" not in MASTER


def test_salt_api_has_only_two_open_clients():
    assert MASTER["netapi_enable_clients"] == ["local", "local_async"]
    # Without a certificate salt-api refuses to listen, unless it is configured to: on loopback alone.
    assert (MASTER["rest_cherrypy"]["host"], MASTER["rest_cherrypy"]["disable_ssl"]) == ("127.0.0.1", True)


def test_no_account_is_trusted_by_default():
    assert not any(
        MASTER[key] for key in ("auto_accept", "open_mode", "file_recv", "peer", "peer_run", "publisher_acl")
    )


def test_messages_are_not_signed():
    """Salt 3008.3 puts the signatures into events, and /events breaks off at their bytes."""
    assert "require_minion_sign_messages" not in MASTER
    assert "minion_sign_messages" not in MINION


def test_folder_never_hides_the_real_salt():
    assert not list((REPO / "salt").rglob("*.py"))
