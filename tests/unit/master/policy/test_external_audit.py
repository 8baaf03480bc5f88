"""Audit entries for actions past the master, from the untrusted text of workers."""

from datetime import UTC, datetime

import msgspec
import pytest

from master_service.planning.outcomes import Outcome
from master_service.policy import external_audit
from worker_service.api.calls import SCOPE
from worker_service.contract import READ_ONLY_VERBS, AuditEvent

AT = datetime(2026, 1, 2, tzinfo=UTC)
UUID = "6d6c7f0e-0000-4000-8000-000000000001"


def test_looks_are_the_verbs_that_a_reader_may_call():
    assert {verb for verb, scope in SCOPE.items() if scope == "read"} == READ_ONLY_VERBS


EVENT = AuditEvent(
    at="2026",
    interface="worker-api",
    actor="ops",
    verb="destroy",
    name="web01",
    uuid=UUID,
    address="10.0.0.1",
    success=True,
)


def test_worker_event_becomes_an_audit_entry():
    line = external_audit.entry_from_worker_event("w1", EVENT, AT)
    assert (line.actor.name, line.actor.interface, line.actor.address) == ("ops@w1", "worker-api", "10.0.0.1")
    assert (line.verb, line.target, line.uuid, line.outcome) == ("destroy", "web01", UUID, Outcome.DONE)
    assert line.detail == "on w1 at 2026"
    refused = external_audit.entry_from_worker_event(
        "w1", msgspec.structs.replace(EVENT, success=False, code="not_found"), AT
    )
    assert (refused.outcome, refused.detail) == (Outcome.REFUSED, "on w1 at 2026: not_found")


@pytest.mark.parametrize("field", ["at", "actor", "name", "uuid", "address", "code"])
def test_worker_event_is_bounded_and_sanitized(field):
    event = msgspec.structs.replace(EVENT, success=False, **{field: "a\0\n\ud800\x1b[31m" * 10_000})
    line = external_audit.entry_from_worker_event("w" * 255, event, AT)
    texts = [line.actor.name, line.actor.address, line.target, line.uuid, line.detail]
    assert [len(word) <= most for word, most in zip(texts, (63, 45, 255, 36, 400), strict=True)] == [True] * 5
    assert all(word.isprintable() for word in texts)
    assert "@" in line.actor.name


@pytest.mark.parametrize("verb", ["list", "status", "", "x" * 33, "de stroy", "destroy\n"])
def test_invalid_worker_event_makes_no_entry(verb):
    assert external_audit.entry_from_worker_event("w1", msgspec.structs.replace(EVENT, verb=verb), AT) is None
