"""Untrusted replies: bad content in the right shape, and replies of another shape."""

import msgspec
import pytest

from master_service.reconciler.poller import sort_answers
from master_service.saltapi.untrusted import MOST_GENERATION, limit_size, sanitize_text, validate_list, validate_status
from tests.functional.master.fakes import FakeVM, FakeWorker
from tests.unit.master.builders import SPEC, UUID, status
from worker_service.contract import ListReply

LIMIT = 1 << 20


def listing(**changes):
    answer = FakeWorker(vms={UUID: FakeVM(spec=SPEC, generation=1)}).listing()
    return answer | changes


def with_vm(**changes):
    answer = listing()
    return answer | {"vmachines": [answer["vmachines"][0] | changes]}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"message": "x" * LIMIT}, f"{LIMIT} are read"),
        ({"message": "a\0b"}, "NUL"),
        ({"message": "\ud800"}, "not text"),
        ({"generation": MOST_GENERATION + 1}, "generation"),
        ({"generation": 10**30}, "generation"),
        ({"generation": -1}, "generation"),
        ({"problem": "\0"}, "NUL"),
        ({"spec": {"name": "web", "hda_image": "file:/x\0"}}, "NUL"),
    ],
    ids=str,
)
def test_unstorable_report_refuses_its_workers_list(changes, message):
    replies, refused = sort_answers({"bad": with_vm(**changes), "good": listing()}, LIMIT)
    assert list(replies) == ["good"]
    assert message in refused["bad"]
    refused["bad"].encode()  # can be kept and shown


@pytest.mark.parametrize(
    "changes",
    [
        {"tombstones": {UUID: MOST_GENERATION + 1}},
        {"tombstones": {"\0": 1}},
        {"foreign": [{"uuid": "u", "name": "\0", "state": "running"}]},
        {"foreign": [{"uuid": "u", "name": "\udcff", "state": "running"}]},
        {"version": "\0"},
        {"version": ["1"]},
        {"vmachines": {"all": "of them"}},
        {"capacity": None},
    ],
    ids=str,
)
def test_other_unstorable_parts_refuse_the_list(changes):
    replies, refused = sort_answers({"bad": listing(**changes), "good": listing()}, LIMIT)
    assert (list(replies), list(refused)) == (["good"], ["bad"])


def test_proper_list_fits():
    reply = msgspec.convert(listing(tombstones={UUID: 3}), ListReply)
    assert validate_list(reply, LIMIT) == ""
    assert validate_status(status(), LIMIT) == ""


def test_nesting_is_bounded():
    deep = []
    for _ in range(100_000):
        deep = [deep]
    assert "not text" in limit_size(deep, LIMIT)


def test_answer_is_measured():
    assert limit_size({"a": 1}, 100) == {"a": 1}
    assert "at most 10 are read" in limit_size("x" * 100, 10)


def test_text_is_sanitized():
    assert sanitize_text("a\0b\ud800") == "ab?"
    assert len(sanitize_text("x" * 10_000)) == 2000
