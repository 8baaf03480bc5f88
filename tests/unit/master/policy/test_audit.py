"""Audit entries: which of them are operations, whose outcome comes later."""

from datetime import UTC, datetime

import pytest

from master_service.planning.outcomes import Outcome
from master_service.policy.audit import Actor, AuditEntry


@pytest.mark.parametrize(
    ("kind", "verb", "outcome", "is_operation"),
    [
        ("vm", "start", Outcome.QUEUED, True),
        ("vm", "start", Outcome.DENIED, False),
        ("user", "login", Outcome.DENIED, False),
        ("user", "create", Outcome.DONE, False),
    ],
)
def test_operation_is_an_entry_about_a_vm(kind, verb, outcome, is_operation):
    at = datetime(2026, 1, 1, tzinfo=UTC)
    entry = AuditEntry(at=at, actor=Actor(name="ada"), verb=verb, kind=kind, target="x", outcome=outcome)
    assert entry.is_operation is is_operation
