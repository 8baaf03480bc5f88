"""A kept disk is examined before it is booted again, and only while no QEMU writes to it."""

import os
import subprocess
from datetime import UTC, datetime
from types import SimpleNamespace

import pytest

from worker_service.contract import HaltCause, Spec
from worker_service.core.errors import Refused
from worker_service.hypervisor.base import DomainState, Power
from worker_service.images import qemu_img
from worker_service.state.context import WorkerContext
from worker_service.state.record import Disk, Phase, Record
from worker_service.steps.start import build

UUID = "6d6c7f0e-0000-4000-8000-000000000001"
NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


@pytest.fixture
def kept(tmp_path):
    """Return a function that starts a VM from its kept disk, whose domain has a power state, as far as its boot."""
    (tmp_path / "worker.toml").write_text(f'data_root = "{tmp_path}/data"\n[images]\nreserve_mib = 0\n')
    worker = WorkerContext(tmp_path / "worker.toml")
    record = Record(
        uuid=UUID, spec=Spec(name="web01", hda_image="blank:8M"), generation=1, phase=Phase.BUILDING, phase_since=NOW,
        created_at=NOW, halt_cause=HaltCause.CRASHED, disks={"hda": Disk(virtual_size=8 << 20)},
    )  # fmt: skip
    worker.store.create(record)
    path = worker.store.folder(UUID) / "hda.qcow2"
    qemu_img.create_blank(path, 8 << 20)
    argv = ["qemu-io", "-f", "qcow2", "-c", "write -P 7 0 1M", path]
    subprocess.run(argv, check=True, stdout=subprocess.DEVNULL)

    def start(size, power):
        os.truncate(path, int(path.stat().st_size * size))
        state = DomainState(power)
        worker.hypervisor = lambda _: SimpleNamespace(states=dict, state=lambda _: state, forget=lambda _: None)
        build(worker, worker.store.read(UUID))
        return worker.store.read(UUID).phase

    return start


@pytest.mark.parametrize("power", [Power.OFF, Power.ABSENT, Power.RUNNING])
def test_whole_kept_disk_is_booted(kept, power):
    assert kept(1, power) is Phase.BOOTING


@pytest.mark.parametrize("power", [Power.OFF, Power.ABSENT])
def test_cut_kept_disk_is_not_booted(kept, power):
    with pytest.raises(Refused, match=r"hda\.qcow2 cannot be booted. It is cut off or damaged"):
        kept(0.5, power)


def test_disk_of_a_running_domain_is_not_examined(kept):
    assert kept(0.5, Power.RUNNING) is Phase.BOOTING
