"""Regression: a running guest looked suspended if the change of its CD began between the reads of record and domain."""

from datetime import UTC, datetime

import pytest

from worker_service.contract import TRIES, Spec, Status
from worker_service.hypervisor.base import DomainState, Power
from worker_service.state.lifecycle import is_forgotten, status_of
from worker_service.state.record import Phase, Record

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
HELD = DomainState(Power.PAUSED, held=True)


@pytest.mark.parametrize(("tries", "status"), [(0, Status.RUNNING), (TRIES, Status.SUSPENDED)])
def test_guest_is_held_while_a_change_is_due(tries, status):
    spec = Spec(name="a", hda_image="file:///a.qcow2", cd_image="file:///a.iso")
    due = Record(uuid="u", spec=spec, generation=1, phase=Phase.UP, phase_since=NOW, created_at=NOW, tries=tries)
    assert status_of(due, HELD) is status
    assert not is_forgotten(due, HELD)
