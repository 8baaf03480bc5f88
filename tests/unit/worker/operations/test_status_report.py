"""The reports of a worker: what its VMs take, and a size that fits into Salt's events."""

from datetime import UTC, datetime, timedelta

import pytest

from worker_service.contract import HaltCause, Spec, Taken
from worker_service.operations.status_report import fitting, taken_by
from worker_service.state.record import Phase, Record

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
KEPT_FOR = timedelta(minutes=15)
TAKES = {
    Phase.FETCHING: "starting", Phase.BUILDING: "starting", Phase.BOOTING: "starting", Phase.UP: "on",
    Phase.FLATTENING: "ending", Phase.SAVING: "ending", Phase.CLEANING: "ending", Phase.DESTROYING: "ending",
    Phase.KEPT: "kept", Phase.DONE: None, Phase.START_FAILED: None, Phase.SAVE_FAILED: None,
}  # fmt: skip
"""Phase -> how its memory and processors count as taken."""


def record(phase, since=NOW, cause=HaltCause.CRASHED, **spec):
    made = Spec(name="a", hda_image="blank:1M", cpu_count=2, mem_size=64, **spec)
    return Record(uuid="u", spec=made, generation=1, phase=phase, phase_since=since, created_at=NOW, halt_cause=cause)


@pytest.mark.parametrize("phase", list(Phase))
@pytest.mark.parametrize("ago", [timedelta(), KEPT_FOR, timedelta(days=400)])
def test_what_counts_follows_from_the_phase(phase, ago):
    """A VM that went off counts while its next start is due, and one that failed to start does not."""
    lapsed = phase is Phase.KEPT and ago >= KEPT_FOR
    expected = {} if lapsed or TAKES[phase] is None else {TAKES[phase]: Taken(vms=1, cpus=2, mem=64)}
    assert taken_by([record(phase, NOW - ago)], NOW, KEPT_FOR) == expected


@pytest.mark.parametrize(
    ("cause", "policy", "counts"),
    [
        (HaltCause.GUEST, "on_failure", False),
        (HaltCause.OPERATOR, "on_failure", False),
        (HaltCause.HOST, "on_failure", False),
        (HaltCause.GUEST, "always", True),
        (HaltCause.OPERATOR, "always", False),
        (HaltCause.KILLED, "on_failure", True),
        (None, "on_failure", True),
    ],
)
def test_vm_that_is_meant_to_be_off_takes_only_space(cause, policy, counts):
    assert bool(taken_by([record(Phase.KEPT, NOW, cause, run_policy=policy)], NOW, KEPT_FOR)) is counts


def test_vms_in_one_state_are_added():
    found = taken_by([record(Phase.UP), record(Phase.UP), record(Phase.KEPT)], NOW, KEPT_FOR)
    assert found == {"on": Taken(vms=2, cpus=4, mem=128), "kept": Taken(vms=1, cpus=2, mem=64)}


@pytest.mark.parametrize(
    ("texts", "limit", "kept"),
    [
        ((), 0, ()),
        (("abc", "de"), 5, ("abc", "de")),
        (("abc", "de"), 4, ("abc",)),
        (("abc", "de", "f"), 3, ("abc",)),
        (("x" * 10, "a"), 9, ()),
        (["file:///srv/" + "x" * 1000] * 2000, 256 << 10, ("file:///srv/" + "x" * 1000,) * 259),
    ],
)
def test_images_beyond_the_limit_are_left_out(texts, limit, kept):
    assert fitting(texts, limit) == kept
