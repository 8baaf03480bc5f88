"""A report of a halted VM names the last save of each disk, also of one that was discarded since."""

from datetime import UTC, datetime

import pytest

from worker_service.contract import Spec
from worker_service.hypervisor.base import ABSENT
from worker_service.operations.desired_state import last_saves
from worker_service.operations.status_report import vm_status
from worker_service.state.context import WorkerContext
from worker_service.state.record import Disk, Phase, Record

NOW = datetime(2026, 11, 30, tzinfo=UTC)
SAVE, FROM = f"file:/saved/a#sha256={'a' * 64}", f"file:/saved/b#sha256={'b' * 64}"


STARTED_FROM = {"hda": FROM, "hdb": FROM}


@pytest.mark.parametrize(
    ("phase", "saved_to", "origin"),
    [
        (Phase.DONE, None, {"hda": SAVE, "hdb": FROM}),
        (Phase.DONE, "file:/saved/a", STARTED_FROM),
        (Phase.KEPT, None, STARTED_FROM),
    ],
)
def test_discarded_disk_goes_on_from_its_last_save(tmp_path, phase, saved_to, origin):
    """This life saved hda at an earlier halt, at which hdb had no target and so both were kept."""
    (tmp_path / "worker.toml").write_text(f'data_root = "{tmp_path}/data"\n')
    record = Record(
        uuid="6d6c7f0e-0000-4000-8000-000000000001",
        spec=Spec(name="web01", hda_image="file:/a", hdb_image="file:/b", hda_save_to="", hdb_save_to=""),
        generation=1,
        phase=phase,
        phase_since=NOW,
        created_at=NOW,
        disks={"hda": Disk(own_saves=(SAVE,), saved_to=saved_to, saved_sha256="a" * 64), "hdb": Disk()},
        origin=STARTED_FROM,
    )
    report = vm_status(WorkerContext(tmp_path / "worker.toml"), record, ABSENT)
    assert report.origin == origin
    assert last_saves(report) == (origin if phase is Phase.KEPT else {"hda": SAVE, "hdb": FROM})
