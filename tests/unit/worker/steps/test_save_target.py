"""Where a disk is saved, and in which form: parsed when a VM is accepted, kept in its record, given to the steps."""

from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace

import msgspec
import pytest

from worker_service.contract import TRIES, Spec, uri
from worker_service.contract.uri import Form, save_target
from worker_service.core.errors import TransferFailed
from worker_service.hypervisor.base import ABSENT
from worker_service.images import flatten
from worker_service.operations import validation
from worker_service.state.context import WorkerContext
from worker_service.state.lifecycle import Step
from worker_service.state.record import Disk, Phase, Record, with_disk
from worker_service.steps import retry
from worker_service.steps.cleanup import remove_disks
from worker_service.steps.halt import flatten_disks
from worker_service.steps.remove import clean
from worker_service.steps.save import save
from worker_service.steps.start import fetch
from worker_service.transfer.file import Files

UUID = "6d6c7f0e-0000-4000-8000-000000000001"
NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
OLD = Path(__file__).parents[3] / "fixtures/0.1.0/worker/data"


@pytest.fixture
def worker(tmp_path):
    (tmp_path / "saved").mkdir()
    (tmp_path / "worker.toml").write_text(
        f'data_root = "{tmp_path}/data"\n[images]\nwrite_roots = ["{tmp_path}/saved"]\nreserve_mib = 0\n'
    )
    return WorkerContext(tmp_path / "worker.toml")


def record(**spec):
    return Record(
        uuid=UUID, spec=Spec(name="web01", hda_image="blank:1M", **spec), generation=1, phase=Phase.FETCHING,
        phase_since=NOW, created_at=NOW,
    )  # fmt: skip


def set_phase(worker, phase):
    return worker.store.update(UUID, lambda current: msgspec.structs.replace(current, phase=phase))


@pytest.fixture
def flattened(monkeypatch):
    """Flattening without QEMU."""
    monkeypatch.setattr(flatten, "flatten", lambda _overlay, part, *_: part.write_bytes(b"flat"))


@pytest.fixture
def parsed(monkeypatch):
    """The texts that were parsed."""
    texts, parse = [], uri.parse
    monkeypatch.setattr(uri, "parse", lambda text: texts.append(text) or parse(text))
    return texts


def test_target_is_parsed_once_at_acceptance(worker, flattened, parsed, tmp_path):
    save_to = f"file://{tmp_path}/saved/a.raw?format=raw"
    spec = validation.spec({"name": "web01", "hda_image": "blank:1M", "hda_save_to": save_to}, worker.settings.images)
    made = msgspec.structs.replace(record(), spec=spec)
    assert parsed.count(save_to) == 2  # it is checked, and the record is made
    worker.store.create(made)
    fetch(worker, worker.store.read(UUID))
    flatten_disks(worker, set_phase(worker, Phase.FLATTENING))
    save(worker, worker.store.read(UUID))
    assert parsed.count(save_to) == 2
    assert (tmp_path / "saved/a.raw").read_bytes() == b"flat"
    assert worker.store.read(UUID).disks["hda"].saved_to == f"file://{tmp_path}/saved/a.raw"


def test_targets_follow_the_spec():
    made = record(hda_save_to="file:///srv/a?format=raw", hdb_save_to="")
    assert made.targets == {"hda": save_target("file:///srv/a?format=raw")}
    assert (made.save_to("hda"), made.save_to("hdb"), made.disks_to_save) == (
        "file:///srv/a?format=raw",
        "",
        ("hda",),
    )
    changed = msgspec.structs.replace(made, spec=msgspec.structs.replace(made.spec, hda_save_to="file:///srv/b"))
    assert changed.targets["hda"].form == Form("qcow2")
    discarded = msgspec.structs.replace(made, spec=msgspec.structs.replace(made.spec, hda_save_to=""))
    assert (discarded.targets, discarded.disks_to_save) == ({}, ())


def test_stored_target_is_not_parsed_again(parsed):
    raw = msgspec.json.encode(record(hda_save_to="file:///srv/a"))
    parsed.clear()
    assert msgspec.json.decode(raw, type=Record).targets["hda"].uri.path == "/srv/a"
    assert parsed == []


@pytest.mark.parametrize("path", sorted(OLD.rglob("record.json")), ids=lambda path: path.parent.name)
def test_record_of_0_1_gets_its_targets(path):
    raw = msgspec.json.decode(path.read_bytes())
    assert "targets" not in raw
    old = msgspec.json.decode(path.read_bytes(), type=Record)
    uris = {disk: raw["spec"].get(f"{disk}_save_to") for disk in ("hda", "hdb")}
    assert {disk: target.uri.text for disk, target in old.targets.items()} == {d: u for d, u in uris.items() if u}


def test_form_of_a_newer_worker_keeps_its_record_readable(parsed):
    """After a downgrade such a disk cannot be flattened; it is then moved to failed_to_save, as after any error."""
    raw = msgspec.to_builtins(record(hda_save_to="file:///srv/a"))
    raw["spec"]["hda_save_to"] = raw["targets"]["hda"]["uri"]["text"] = "file:///srv/a?format=vhdx"
    raw["targets"]["hda"]["form"]["format"] = "vhdx"
    parsed.clear()
    newer = msgspec.convert(raw, Record)
    assert (newer.disks_to_save, newer.targets["hda"].form.suffix, parsed) == (("hda",), "vhdx", [])


def test_flattened_file_is_named_in_the_record(worker, flattened, tmp_path):
    worker.store.create(record(hda_save_to=f"file://{tmp_path}/saved/a?format=raw&compress=zstd"))
    fetch(worker, worker.store.read(UUID))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(flatten.compression, "pack", lambda _raw, target, _report: target.write_bytes(b"packed"))
        flatten_disks(worker, set_phase(worker, Phase.FLATTENING))
    assert worker.store.read(UUID).disks["hda"].flat_name("hda") == "hda.flat.raw.zst"
    assert (worker.store.folder(UUID) / "hda.flat.raw.zst").exists()


def test_flattened_file_of_0_1_is_found_saved_and_removed(worker, tmp_path):
    made = with_disk(record(hda_save_to=f"file://{tmp_path}/saved/a"), "hda", flat_sha256="0f", flat_size=4)
    raw = msgspec.json.decode(msgspec.json.encode(made))
    assert "flat_file" not in raw["disks"]["hda"]
    old = msgspec.convert(raw, Record)
    assert old.disks["hda"].flat_name("hda") == "hda.sealed.qcow2"
    assert Disk(flat_sha256="0f", flat_form=Form("raw", "zstd")).flat_name("hdb") == "hdb.sealed.raw.zst"
    worker.store.create(old)
    folder = worker.store.folder(UUID)
    for name in ("hda.qcow2", "hda.sealed.qcow2", "hdb.sealed.raw.zst", "hda.flat.raw", "hdb.flat.part"):
        (folder / name).write_bytes(b"disk")
    remove_disks(worker, old)
    assert {path.name for path in folder.iterdir()} == {"record.json"}


def test_missing_manifest_fails_no_save(worker, flattened, monkeypatch, tmp_path):
    """The disk lies whole at its target. It is committed once, and a person reads what is missing."""
    worker.store.create(record(hda_save_to=f"file://{tmp_path}/saved/a"))
    fetch(worker, worker.store.read(UUID))
    flatten_disks(worker, set_phase(worker, Phase.FLATTENING))

    def no_note(*_):
        raise TransferFailed("There is no rename.")

    monkeypatch.setattr(Files, "note", no_note)
    for _ in range(TRIES - 1):
        with pytest.raises(TransferFailed) as failed:
            save(worker, worker.store.read(UUID))
        retry.failed(worker, worker.store.read(UUID), Step.SAVE, failed.value)
        assert worker.store.read(UUID).disks["hda"].saved_to == f"file://{tmp_path}/saved/a"
    save(worker, worker.store.read(UUID))
    after = worker.store.read(UUID)
    assert (after.phase, (tmp_path / "saved/a").read_bytes()) == (Phase.CLEANING, b"flat")
    assert after.message == f"The manifest of file://{tmp_path}/saved/a could not be written: There is no rename."
    worker.hypervisor = lambda _: SimpleNamespace(state=lambda _: ABSENT, snapshots=lambda _: (), forget=lambda _: None)
    clean(worker, after)
    assert worker.store.read(UUID).message.endswith(f"saved to file://{tmp_path}/saved/a. {after.message}")


def test_manifest_is_written_by_the_next_try(worker, flattened, monkeypatch, tmp_path):
    worker.store.create(record(hda_save_to=f"file://{tmp_path}/saved/a"))
    fetch(worker, worker.store.read(UUID))
    flatten_disks(worker, set_phase(worker, Phase.FLATTENING))
    with monkeypatch.context() as patch:
        patch.setattr(Files, "note", lambda *_: Path("/nowhere/manifest").read_bytes())
        with pytest.raises(OSError, match="nowhere"):
            save(worker, worker.store.read(UUID))
    save(worker, worker.store.read(UUID))
    assert sorted(path.name for path in (tmp_path / "saved").iterdir()) == ["a", "a.manifest.json"]
