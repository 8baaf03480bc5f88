"""A VM that was saved between the reads of its record and of its domain was reported as powered off from outside."""

from datetime import timedelta

import msgspec

from tests.unit.worker.steps.test_manifest import A, record
from worker_service.contract import HaltCause, Status
from worker_service.hypervisor.base import ABSENT
from worker_service.operations.status_report import vm_status
from worker_service.state.context import WorkerContext
from worker_service.state.record import Disk, Phase


def test_status_follows_the_newest_record(tmp_path, monkeypatch):
    (tmp_path / "worker.toml").write_text(f'data_root = "{tmp_path}/data"\n')
    worker = WorkerContext(tmp_path / "worker.toml")
    monkeypatch.setattr(worker, "domain", lambda _: ABSENT)
    up = msgspec.structs.replace(record(), phase=Phase.UP, disks={"hda": Disk()})
    worker.store.create(up)
    saved = Disk(saved_to="file:/srv/saved/a.qcow2", saved_sha256="a" * 64, saved_size=1)
    later = up.phase_since + timedelta(seconds=1)
    done = {"phase": Phase.DONE, "phase_since": later, "halt_cause": HaltCause.GUEST, "disks": {"hda": saved}}
    worker.store.update(A, lambda current: msgspec.structs.replace(current, **done))
    status = vm_status(worker, up, ABSENT)
    assert (status.status, status.halt_cause) == (Status.HALTED, HaltCause.GUEST)
    assert status.disks["hda"].sha256 == "a" * 64


def test_vm_that_was_removed_from_outside_is_still_said_so(tmp_path, monkeypatch):
    (tmp_path / "worker.toml").write_text(f'data_root = "{tmp_path}/data"\n')
    worker = WorkerContext(tmp_path / "worker.toml")
    monkeypatch.setattr(worker, "domain", lambda _: ABSENT)
    up = msgspec.structs.replace(record(), phase=Phase.UP, disks={"hda": Disk()})
    worker.store.create(up)
    assert vm_status(worker, up, ABSENT).halt_cause is HaltCause.KILLED
