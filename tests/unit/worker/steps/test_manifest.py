"""Which VM may replace a saved disk, and what may replace a manifest."""

import json
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import pytest

from worker_service.contract import Spec
from worker_service.images import flatten
from worker_service.operations.common import read_target_versions
from worker_service.state.context import WorkerContext
from worker_service.state.record import Disk, Phase, Record
from worker_service.steps.halt import flatten_disks
from worker_service.steps.manifest import Claim, Manifest, SavedBy, claim_of, may_replace, parse_manifest
from worker_service.steps.save import save
from worker_service.steps.start import fetch
from worker_service.transfer.uri import parse

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
A, B = (f"6d6c7f0e-0000-4000-8000-00000000000{n}" for n in (1, 2))
TARGET = "file:///srv/saved/x.qcow2"
OTHER = "file:///srv/images/debian.qcow2"


def there(uuid, owner, sha256="5a"):
    return Manifest(sha256=sha256, saved_to=TARGET, vm=SavedBy(uuid, owner))


def record(uuid=A, *, owner="ann", image=TARGET, save_to=TARGET, disks=None):
    spec = Spec(name=f"vm-{uuid[-1]}", hda_image=image, hda_save_to=save_to)
    return Record(
        uuid=uuid, spec=spec, generation=1, phase=Phase.FETCHING, phase_since=NOW, created_at=NOW, owner=owner,
        disks=disks or {},
    )  # fmt: skip


@pytest.mark.parametrize(
    ("manifest", "owner", "image", "replaces"),
    [
        (there(A, "ann"), "ann", OTHER, True),  # the same VM
        (there(A, None), "ann", OTHER, True),
        (there(B, "ann"), "ann", TARGET, True),  # the same owner, and started from it
        (there(B, "ann"), "ann", f"{TARGET}#sha256={'0' * 64}", True),
        (there(B, "ann"), "ann", "file:/srv/saved/x.qcow2", True),
        (there(B, "ann"), "ann", "file://localhost/srv/saved/x.qcow2", True),
        (there(B, None), "ann", TARGET, True),  # saved by 0.2
        (there(B, "ann"), "ann", OTHER, False),
        (there(B, "ann"), "ann", "blank:1G", False),
        (there(B, "bob"), "ann", TARGET, False),
        (there(B, "bob"), "", TARGET, False),
        (there(B, ""), "ann", TARGET, False),
        (there(B, "ann"), "ann", "https://host/srv/saved/x.qcow2", False),
        (None, "ann", TARGET, True),  # a file that is no saved disk
        (None, "ann", OTHER, False),
    ],
)
def test_saved_disk_is_replaced_by_its_heirs_only(manifest, owner, image, replaces):
    claim = claim_of(record(owner=owner, image=image), owner, just_fetched=True)
    assert may_replace(claim, parse(TARGET), manifest) is replaces


@pytest.mark.parametrize(("sha256", "replaces"), [("5a", True), ("0f", False), (None, False)])
def test_later_target_must_be_what_the_vm_started_from(sha256, replaces):
    """`modify` may come long after the fetch: another VM may have saved there meanwhile."""
    claim = claim_of(record(disks={"hda": Disk(base="5a")}), "ann", just_fetched=False)
    assert may_replace(claim, parse(TARGET), there(B, "ann", sha256) if sha256 else None) is replaces


def test_place_with_a_port_is_the_same_place():
    claim = claim_of(record(image="https://store:443/a"), "ann", just_fetched=True)
    assert may_replace(claim, parse("https://STORE/a"), None)
    assert not may_replace(Claim(uuid=A, owner="ann"), parse("https://store/a"), None)


@pytest.mark.parametrize("data", [None, b"", b"QFI\xfb", b"[]", b"{}", b'{"sha256": "5a"}', b"[" * 100_000])
def test_other_files_are_no_manifests(data):
    assert parse_manifest(data) is None


@pytest.fixture
def worker(tmp_path, monkeypatch):
    monkeypatch.setattr(
        flatten, "flatten", lambda chain, part, *_: part.write_bytes(Path(chain.layers[0].path).parent.name.encode())
    )
    (tmp_path / "saved").mkdir()
    (tmp_path / "worker.toml").write_text(
        f'data_root = "{tmp_path}/data"\n[images]\nread_roots = ["{tmp_path}/saved"]\n'
        f'write_roots = ["{tmp_path}/saved"]\nreserve_mib = 0\n'
    )
    return WorkerContext(tmp_path / "worker.toml")


def run(worker, made):
    """Let a VM start, halt and save, without a hypervisor; return where its disk was saved."""
    worker.store.create(made)
    fetch(worker, worker.store.read(made.uuid))
    move = lambda phase: worker.store.update(made.uuid, lambda r: msgspec.structs.replace(r, phase=phase))  # noqa: E731
    flatten_disks(worker, move(Phase.FLATTENING))
    save(worker, worker.store.read(made.uuid))
    return worker.store.read(made.uuid).disks["hda"].saved_to


def names(worker):
    return sorted(path.name for path in (worker.settings.data_root.parent / "saved").iterdir())


def test_vm_saves_beside_the_disk_of_another(worker, tmp_path):
    target = f"file://{tmp_path}/saved/x.qcow2"
    assert run(worker, record(A, owner="ann", image="blank:1M", save_to=target)) == target
    saved = run(worker, record(B, owner="ann", image="blank:1M", save_to=target))
    assert "/x.conflict-" in saved
    assert (tmp_path / "saved/x.qcow2").read_text() == A
    manifest = json.loads((tmp_path / "saved/x.qcow2.manifest.json").read_text())
    assert manifest["vm"] == {"uuid": A, "name": "vm-1", "generation": 1, "owner": "ann"}


def test_disk_with_a_manifests_name_stays(worker, tmp_path):
    """Such disks are refused today; those of older versions are still there."""
    disk = tmp_path / "saved/x.qcow2.manifest.json"
    disk.write_bytes(b"QFI\xfb a disk")
    target = f"file://{tmp_path}/saved/x.qcow2"
    assert run(worker, record(A, image="blank:1M", save_to=target)) == target
    assert disk.read_bytes() == b"QFI\xfb a disk"
    beside = next(name for name in names(worker) if "conflict" in name)
    assert json.loads((tmp_path / "saved" / beside).read_text())["saved_to"] == target


def test_modify_looks_at_the_new_target(worker, tmp_path):
    target = f"file://{tmp_path}/saved/x.qcow2"
    run(worker, record(A, image="blank:1M", save_to=target))
    other = record(B, image="blank:1M", save_to="")
    assert read_target_versions(worker, other, {"hda": target}, "ann") == {"hda": None}
    assert read_target_versions(worker, worker.store.read(A), {"hda": target}, "ann")["hda"]
