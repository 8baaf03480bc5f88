"""Which events pass the gate."""

import importlib.util
import json
from pathlib import Path

import pytest

from master_service.gate.event_filter import Passed, passed
from master_service.reconciler import event_listener

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


def engine():
    """The Salt engine, which imports neither the master nor, before its start, Salt."""
    path = Path(__file__).parents[4] / "states/_engines/saltern_events.py"
    spec = importlib.util.spec_from_file_location("saltern_events", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("jid", "is_one"),
    [
        ("20260101000000000001", True),
        ("20260101000000000001_4194304", True),  # with unique_jid: True in the Salt master's settings
        ("7", True),
        ("", False),
        ("_7", False),
        ("20260101_1_1", False),
        ("20260101000000000001_", False),
        ("2026x", False),
        ("..", False),
        ("1" * 33, False),
        (f"1_{'1' * 11}", False),
    ],
)
def test_return_of_a_job_is_heard_on_the_whole_way(jid, is_one):
    event = {**RETURN, "tag": f"salt/job/{jid}/ret/w1"}
    assert (engine().line_of(event, 1 << 20) != b"") is is_one
    assert (through(event) is not None) is is_one
    match = event_listener._RETURN.fullmatch(event["tag"])
    assert (match is not None) is is_one
    assert match is None or match["minion"] == "w1"


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
