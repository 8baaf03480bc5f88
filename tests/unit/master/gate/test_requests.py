"""The gate's requests: what it accepts, and what it sends to salt-api for that."""

import json

import pytest

from master_service.gate.requests import FUNCTIONS, Call, Publish, decode
from worker_service.contract import Spec

NONCE = "0123456789abcdef" * 2
PUBLISH = {"workers": ["w1"], "fun": "vmachines.apply", "kwarg": {"actions": []}, "nonce": NONCE}
CALL = {"workers": ["w1", "a.b-c_2"], "fun": "vmachines.list", "kwarg": {}, "nonce": NONCE, "timeout_s": 6.5}
LOWSTATE = (
    "client tgt tgt_type expr_form fun arg args kwarg kwargs ret ret_config ret_kwargs timeout gather_job_timeout jid "
    "metadata module_executors executor_opts token eauth username password batch subset sub full_return raw show_jid "
    "show_timeout verbose cli user listen delimiter state_output nodegroup failhard success_function mid opts key "
    "roster ssh_options pillar saltenv returner with_pillar arg_kwarg _process_name __kwarg__"
)
"""Every parameter that a low-state chunk of Salt 3008.3 can have, for any client."""


def test_requests_become_the_one_lowstate():
    assert decode(json.dumps(PUBLISH).encode(), Publish).lowstate() == {
        "client": "local_async",
        "tgt": ["w1"],
        "tgt_type": "list",
        "fun": "vmachines.apply",
        "kwarg": {"actions": []},
        "metadata": {"nonce": NONCE},
    }
    assert decode(json.dumps(CALL).encode(), Call).lowstate() == {
        "client": "local",
        "tgt": ["w1", "a.b-c_2"],
        "tgt_type": "list",
        "fun": "vmachines.list",
        "kwarg": {},
        "metadata": {"nonce": NONCE},
        "timeout": 7,
    }


@pytest.mark.parametrize("shape", [Publish, Call])
@pytest.mark.parametrize("parameter", LOWSTATE.split())
def test_no_parameter_of_salt_can_be_given(shape, parameter):
    good = PUBLISH if shape is Publish else CALL
    if parameter not in good:
        with pytest.raises(ValueError, match="unknown field"):
            decode(json.dumps(good | {parameter: "x"}).encode(), shape)
    with pytest.raises(ValueError, match=r"unknown field|Expected|has no parameter|is none of"):
        decode(json.dumps(good | {parameter: {"client": "runner"}}).encode(), shape)
    for fun in FUNCTIONS:
        if parameter not in FUNCTIONS[fun]:
            with pytest.raises(ValueError, match="has no parameter"):
                decode(json.dumps(good | {"fun": fun, "kwarg": {parameter: "x"}}).encode(), shape)


@pytest.mark.parametrize(
    "wrong",
    [
        {"fun": "cmd.run"},
        {"fun": "vmachines.list\n"},
        {"fun": "saltutil.find_job,cmd.run"},
        {"fun": ["vmachines.list", "cmd.run"]},
        {"workers": "*"},
        {"workers": ["*"]},
        {"workers": ["w1,w2"]},
        {"workers": ["w1\n"]},
        {"workers": ["E@.*"]},
        {"workers": [""]},
        {"workers": []},
        {"workers": [["w1"]]},
        {"kwarg": [{"actions": []}]},
        {"kwarg": None},
        {"nonce": ""},
        {"nonce": "../../../etc/passwd"},
        {"nonce": NONCE + "\n"},
        {"nonce": NONCE.upper()},
        {"timeout_s": 0},
        {"timeout_s": 1e9},
        {"timeout_s": "7"},
    ],
    ids=str,
)
def test_other_values_are_refused(wrong):
    with pytest.raises(ValueError):  # noqa: PT011 - each has a message of its own
        decode(json.dumps(CALL | wrong).encode(), Call)


UUID = "11111111-2222-4333-8444-555555555555"
PLAN = {"uuid": UUID, "owner": "ann", "name": "web01", "hda_image": "file:/a", "ssh_keys": ["k"], "run_agent": None}
PLAN["origin"] = {"hda": "file:/saved/a#sha256=" + "0" * 64}


def plan(**changes):
    given = CALL | {"fun": "vmachines.plan", "kwarg": PLAN | changes}
    return decode(json.dumps(given).encode(), Call)


def test_plan_passes_with_the_parameters_of_a_start():
    assert plan().kwarg == PLAN
    assert {"uuid", "owner", "origin", *Spec.__struct_fields__} == FUNCTIONS["vmachines.plan"]


@pytest.mark.parametrize(
    "wrong",
    [
        {"uuid": ""}, {"uuid": "A" + UUID[1:]}, {"uuid": UUID + "\n"}, {"uuid": "*"}, {"owner": "../bob"},
        {"owner": "a\n"},
        {"owner": None}, {"name": 42}, {"name": True}, {"name": ["a"]}, {"cpu_count": "2"}, {"mem_size": 1.5},
        {"hda_image": {"a": 1}}, {"soft_list": "a,b"}, {"ssh_keys": [1]}, {"run_policy": "x"}, {"__kwarg__": True},
        {"generation": 1}, {"timeout": 5}, {"origin": "file:/a"}, {"origin": {"hda": 1}},
    ],
    ids=str,
)  # fmt: skip
def test_plan_with_another_type_is_refused(wrong):
    with pytest.raises(ValueError, match=r"vmachines\.plan"):
        plan(**wrong)


@pytest.mark.parametrize("body", [b"", b"[]", b"[[]]", b"null", b"{" * 100_000, b"\xff", json.dumps([CALL]).encode()])
def test_other_bodies_are_refused(body):
    with pytest.raises(ValueError):  # noqa: PT011 - each has a message of its own
        decode(body, Call)
