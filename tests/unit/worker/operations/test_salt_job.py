"""The answer of a verb to a Salt job: a list has tombstones for a master, and for callers that request them."""

from types import SimpleNamespace

import pytest

from worker_service.operations import salt_job, verbs

NONCE = "0123456789abcdef" * 2
BY_HAND = {"fun": "vmachines.list", "user": "root"}


@pytest.fixture
def worker(monkeypatch):
    def list_(_worker, *, tombstones=False):
        return {"success": True, "tombstones": tombstones}

    monkeypatch.setattr(verbs, "list_", list_)
    identity = SimpleNamespace(last_event=lambda: 0, sign=lambda reply, *_: reply)
    return SimpleNamespace(identity=identity, record_audit_event=lambda _: None)


@pytest.mark.parametrize(
    ("job", "given", "shown"),
    [
        pytest.param({}, False, False, id="salt-call or HTTP"),
        pytest.param({}, True, True, id="requested"),
        pytest.param(BY_HAND, False, False, id="somebody's job"),
        pytest.param(BY_HAND | {"metadata": "mine"}, False, False, id="somebody's metadata"),
        pytest.param(BY_HAND | {"metadata": {"ticket": 1}}, False, False, id="somebody's field"),
        pytest.param(BY_HAND | {"metadata": {"nonce": NONCE}}, False, True, id="a master's"),
        pytest.param(BY_HAND | {"metadata": {"mark": NONCE}}, False, True, id="a master's of version 0.2"),
    ],
)
def test_list_has_tombstones_for_masters_and_if_requested(worker, job, given, shown):
    reply = salt_job.answer(worker, verbs.list_, {"tombstones": given}, job, {"id": "w1"})
    assert reply["tombstones"] is shown
