"""Which events pass the gate."""

import json

import pytest

from master_service.gate.event_filter import Passed, passed

STATUS = {"tag": "vmachines/w1/6d6c7f0e-0000-4000-8000-000000000001/running", "data": {"id": "w1", "data": {"a": 1}}}
RETURN = {
    "tag": "salt/job/20260101000000000001/ret/w1",
    "data": {"id": "w1", "fun": "vmachines.list", "return": {"success": True}, "metadata": {"nonce": "n"}},
}


def through(event):
    return passed(event if isinstance(event, bytes) else json.dumps(event).encode(), {"n"}.__contains__)


@pytest.mark.parametrize("event", [STATUS, RETURN], ids=["status", "return"])
def test_events_for_the_master_pass(event):
    assert through(event) == Passed(**event)


def test_more_than_the_needed_fields_is_left_out():
    more = {"cmd": "_minion_event", "fun_args": [{"password": "hush"}], "_stamp": "2026"}
    assert through({**STATUS, "data": STATUS["data"] | more}) == Passed(**STATUS)
    assert through({**RETURN, "data": RETURN["data"] | more}) == Passed(**RETURN)
    marked = RETURN["data"] | {"metadata": {"nonce": "n", "more": "hush"}}
    assert through({**RETURN, "data": marked}) == Passed(**RETURN)


@pytest.mark.parametrize(
    "event",
    [
        {"tag": "salt/job/20260101000000000001/new", "data": {"id": "w1", "data": {}, "arg": ["hush"]}},
        {"tag": "salt/auth", "data": {"id": "w1", "data": {}}},
        {"tag": "salt/minion/w1/start", "data": {"id": "w1", "data": {}}},
        {**STATUS, "tag": STATUS["tag"] + "\ndata: {}"},
        {**STATUS, "tag": "vmachines/../w1/alive"},
        {**STATUS, "tag": "x/" + STATUS["tag"]},
        {**STATUS, "data": {"data": {}}},
        {**STATUS, "data": {"id": "w1", "data": []}},
        {**STATUS, "data": {"id": 1, "data": {}}},
        {**RETURN, "data": RETURN["data"] | {"metadata": {"nonce": "other"}}},
        {**RETURN, "data": RETURN["data"] | {"metadata": "n"}},
        {**RETURN, "data": RETURN["data"] | {"fun": "cmd.run"}},
        {**RETURN, "data": RETURN["data"] | {"fun": ["vmachines.list", "cmd.run"]}},
        {**RETURN, "tag": "salt/job/7/ret/w1/more"},
        b"",
        b"[]",
        b'{"tag": ' + b"[" * 100_000,
    ],
    ids=str,
)
def test_other_events_do_not_pass(event):
    assert through(event) is None
