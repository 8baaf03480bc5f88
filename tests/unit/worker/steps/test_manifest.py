"""Which VM may replace a saved disk, and what may replace a manifest."""

import json
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import pytest

from tests.lib.support import sha256
from worker_service.contract import KEEP, Spec
from worker_service.images import flatten
from worker_service.operations.common import read_target_versions
from worker_service.state.command_rules import after_start
from worker_service.state.context import WorkerContext
from worker_service.state.record import NOT_FLAT, NOT_SAVED, Disk, Phase, Record, with_disk
from worker_service.steps import save as steps_save
from worker_service.steps.halt import flatten_disks
from worker_service.steps.manifest import Claim, Manifest, SavedBy, claim_of, lasting, may_replace, parse_manifest
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


BASE = {"hda": Disk(base="5a")}


@pytest.mark.parametrize(
    ("manifest", "owner", "image", "replaces"),
    [
        (there(B, "ann"), "ann", TARGET, True),  # the same owner, and started from these bytes
        (there(A, "ann"), "ann", TARGET, True),  # the save of its former life
        (there(A, None), "ann", TARGET, True),
        (there(A, "bob"), "ann", TARGET, True),  # it had another owner then
        (there(B, "ann"), "ann", f"{TARGET}#sha256={'5a' * 32}", True),
        (there(B, "ann"), "ann", "file:/srv/saved/x.qcow2", True),
        (there(B, "ann"), "ann", "file://localhost/srv/saved/x.qcow2", True),
        (there(A, "ann"), "ann", OTHER, False),  # its former life; this one started again from the image
        (there(A, None), "ann", OTHER, False),
        (there(A, "ann", "0f"), "ann", TARGET, False),  # saved there since it started
        (there(B, "ann", "0f"), "ann", TARGET, False),
        (there(B, None), "ann", TARGET, False),  # saved by 0.2, which did not say for which owner
        (there(B, None), "", TARGET, False),
        (there(B, "ann"), "ann", OTHER, False),
        (there(B, "ann"), "ann", "blank:1G", False),
        (there(B, "bob"), "ann", TARGET, False),
        (there(B, "bob"), "", TARGET, False),
        (there(B, ""), "ann", TARGET, False),
        (there(B, "ann"), "ann", "https://host/srv/saved/x.qcow2", False),
        (there(B, "ann"), "ann", f"{TARGET}?x", False),
        (None, "ann", TARGET, False),
        (None, "ann", OTHER, False),
    ],
)
def test_save_is_replaced_by_its_heirs_only(manifest, owner, image, replaces):
    known = record(owner=owner, image=image, disks=BASE)
    assert may_replace(claim_of(known, "hda", owner), parse(TARGET), manifest) is replaces


@pytest.mark.parametrize(
    ("manifest", "owner", "image", "replaces"),
    [
        (None, "ann", TARGET, True),  # a file that is no saved disk
        (None, "ann", OTHER, False),
        (there(B, "ann", "0f"), "ann", TARGET, True),  # the manifest is of other bytes than it has fetched
        (there(B, "bob", "0f"), "ann", TARGET, False),
        (there(A, "ann", "0f"), "ann", OTHER, False),
    ],
)
def test_file_that_was_just_fetched_is_known_by_its_version(manifest, owner, image, replaces):
    known = record(owner=owner, image=image, disks=BASE)
    assert may_replace(claim_of(known, "hda", owner), parse(TARGET), manifest, just_fetched=True) is replaces


@pytest.mark.parametrize(
    ("manifest", "replaces"),
    [(there(A, "ann", "0b"), True), (there(A, "ann", "0c"), False), (there(B, "ann", "0b"), False), (None, False)],
)
def test_own_save_of_this_life_is_replaced(manifest, replaces):
    own = Disk(base="5a", own_saves=(f"{TARGET}#sha256={'0a' * 32}", f"file:///elsewhere#sha256={'0b' * 32}"))
    manifest = manifest and msgspec.structs.replace(manifest, sha256=manifest.sha256 * 32)
    known = record(image=OTHER, disks={"hda": own, "hdb": Disk()})
    assert may_replace(claim_of(known, "hda", "ann"), parse(TARGET), manifest) is replaces
    assert not may_replace(claim_of(known, "hdb", "ann"), parse(TARGET), manifest)  # the other disk of the VM


def test_two_images_are_known_by_place_and_digest():
    """A copy of the one in the place of the other is not what the VM started from there."""
    known = record(disks={"hda": Disk(base="5a"), "hdb": Disk(base="5b")})
    known = msgspec.structs.replace(known, spec=msgspec.structs.replace(known.spec, hdb_image=OTHER))
    claim = claim_of(known, "hda", "ann")
    assert may_replace(claim, parse(OTHER), there(B, "ann", "5b"))
    assert not may_replace(claim, parse(OTHER), there(B, "ann", "5a"))


def test_packed_image_is_known_by_the_digest_of_its_file():
    claim = claim_of(record(disks={"hda": Disk(base="5a", base_source="5b")}), "hda", "ann")
    assert may_replace(claim, parse(TARGET), there(B, "ann", "5b"))
    assert not may_replace(claim, parse(TARGET), there(B, "ann", "5a"))


def test_place_with_a_port_is_the_same_place():
    claim = claim_of(record(image="https://store:443/a", disks=BASE), "hda", "ann")
    assert may_replace(claim, parse("https://STORE/a"), there(B, "ann"))
    assert not may_replace(Claim(uuid=A, owner="ann"), parse("https://store/a"), there(B, "ann"))


@pytest.mark.parametrize("data", [None, b"", b"QFI\xfb", b"[]", b"{}", b'{"sha256": "5a"}', b"[" * 100_000])
def test_other_files_are_no_manifests(data):
    assert parse_manifest(data) is None


@pytest.fixture
def disks():
    """What the guests have written, to be taken from the end: the contents of the next flattened disks."""
    return []


@pytest.fixture
def worker(tmp_path, monkeypatch, disks):
    def flatten_to(chain, part, *_):
        part.write_bytes(disks.pop() if disks else Path(chain.layers[0].path).parent.name.encode())

    monkeypatch.setattr(flatten, "flatten", flatten_to)
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
    return end(worker, made.uuid)


def end(worker, uuid):
    """Let a VM halt and save; return where its disk was saved."""
    flatten_disks(worker, worker.store.update(uuid, lambda r: msgspec.structs.replace(r, phase=Phase.FLATTENING)))
    save(worker, worker.store.read(uuid))
    return worker.store.read(uuid).disks["hda"].saved_to


def start_again(worker, uuid, **spec):
    """Start a VM that is off: a new life, or with its kept disks."""
    changed = msgspec.structs.replace(worker.store.read(uuid).spec, **spec)
    begun = worker.store.update(
        uuid,
        lambda r: after_start(
            r if r.phase is Phase.KEPT else msgspec.structs.replace(r, phase=Phase.DONE), changed, None, NOW, {}
        ),
    )
    if begun.phase is Phase.FETCHING:
        fetch(worker, begun)


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
    assert read_target_versions(worker, other, {"hda": target, "hdb": KEEP}, "ann") == {"hda": None}
    assert read_target_versions(worker, worker.store.read(A), {"hda": target}, "ann")["hda"]


def test_new_life_from_the_image_leaves_the_save_of_the_former(worker, tmp_path, disks):
    target = f"file://{tmp_path}/saved/x.qcow2"
    assert run(worker, record(A, image="blank:1M", save_to=target)) == target
    first = (tmp_path / "saved/x.qcow2").read_bytes()
    disks.append(b"of the second life")
    start_again(worker, A)
    assert "/x.conflict-" in end(worker, A)
    assert (tmp_path / "saved/x.qcow2").read_bytes() == first


@pytest.mark.parametrize("pinned", [False, True])
def test_life_that_goes_on_from_the_save_replaces_it(worker, tmp_path, disks, pinned):
    target = f"file://{tmp_path}/saved/x.qcow2"
    save_as_image(worker, tmp_path, disks, target)
    digest = worker.store.read(A).disks["hda"].saved_sha256
    disks.append(b"of the second life")
    start_again(worker, A, hda_image=f"{target}#sha256={digest}" if pinned else target)
    assert end(worker, A) == target
    assert (tmp_path / "saved/x.qcow2").read_bytes() == b"of the second life"


def test_saved_disk_that_was_edited_is_left(worker, tmp_path, disks):
    """The next life starts from the bytes that the cache has, and the manifest is as it was."""
    target = f"file://{tmp_path}/saved/x.qcow2"
    save_as_image(worker, tmp_path, disks, target)
    digest = worker.store.read(A).disks["hda"].saved_sha256
    start_again(worker, A, hda_image=f"{target}#sha256={digest}")  # the cache has it now
    saved = tmp_path / "saved/x.qcow2"
    edited = saved.read_bytes().replace(b"first", b"other")
    saved.chmod(0o600)
    saved.write_bytes(edited)
    start_again(worker, A, hda_image=f"{target}#sha256={digest}")
    disks.append(b"of the next life")
    assert "/x.conflict-" in end(worker, A)
    assert saved.read_bytes() == edited


def test_version_of_a_file_is_the_same_on_all_hosts():
    assert lasting(parse("file:///a"), "fd01-2a-100-17f") == "100-17f"
    assert lasting(parse("s3://b/a"), '"e-tag-1"') == '"e-tag-1"'
    assert lasting(parse("file:///a"), None) is None


def test_cached_bytes_of_a_digest_say_nothing_about_the_place(worker, tmp_path, disks):
    """A digest is satisfied by the cache. Another file may lie at that place by now, even one without a manifest."""
    target = f"file://{tmp_path}/saved/x.qcow2"
    save_as_image(worker, tmp_path, disks, target)
    digest = worker.store.read(A).disks["hda"].saved_sha256
    start_again(worker, A, hda_image=f"{target}#sha256={digest}")
    for name in ("x.qcow2", "x.qcow2.manifest.json"):
        (tmp_path / "saved" / name).unlink()
    (tmp_path / "saved/x.qcow2").write_bytes(b"somebody else's work")
    start_again(worker, A, hda_image=f"{target}#sha256={digest}")
    disks.append(b"of the next life")
    assert "/x.conflict-" in end(worker, A)
    assert (tmp_path / "saved/x.qcow2").read_bytes() == b"somebody else's work"


def test_kept_vm_saves_each_halt_under_one_name(worker, tmp_path, disks):
    """One of its disks stays, so all do; the other one is saved at each halt, and replaces its own last save."""
    target = f"file://{tmp_path}/saved/x.qcow2"
    made = record(A, image="blank:1M", save_to=target)
    made = msgspec.structs.replace(made, spec=msgspec.structs.replace(made.spec, hdb_image="blank:1M"))
    assert run(worker, made) == target
    for content in (b"of the second run", b"of the third run"):
        kept = worker.store.read(A)
        assert (kept.phase, kept.disks["hda"].flat_sha256, kept.disks["hda"].saved_to) == (Phase.KEPT, None, target)
        assert kept.disks["hda"].saved_sha256 == sha256(tmp_path / "saved/x.qcow2")
        assert f"Saved to {target}." in kept.message
        assert not list(worker.store.folder(A).glob("*.flat.*"))
        disks.append(content)
        start_again(worker, A)
        worker.store.update(A, lambda r: with_disk(r, "hda", **NOT_SAVED))
        assert end(worker, A) == target
        assert (tmp_path / "saved/x.qcow2").read_bytes() == content
    assert [name for name in names(worker) if "conflict" in name] == []


def test_crash_between_the_save_and_its_note_saves_once(worker, tmp_path, disks, monkeypatch):
    target = f"file://{tmp_path}/saved/x.qcow2"
    made = record(A, image="blank:1M", save_to=target)
    made = msgspec.structs.replace(made, spec=msgspec.structs.replace(made.spec, hdb_image="blank:1M"))
    points = ("save.committed", "save.noted", "save.kept")
    worker.store.create(made)
    fetch(worker, worker.store.read(A))
    for number, point in enumerate(points):
        disks.append(b"run %d" % number)

        def crash(name, point=point):
            if name == point:
                raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(steps_save, "failpoint", crash)
            with pytest.raises(KeyboardInterrupt):
                end(worker, A)
        assert worker.store.read(A).phase is Phase.SAVING
        save(worker, worker.store.read(A))
        kept = worker.store.read(A)
        assert (kept.phase, kept.disks["hda"].saved_to) == (Phase.KEPT, target)
        assert (tmp_path / "saved/x.qcow2").read_bytes() == b"run %d" % number
        start_again(worker, A)
        worker.store.update(A, lambda r: with_disk(r, "hda", **NOT_SAVED))
    assert names(worker) == ["x.qcow2", "x.qcow2.manifest.json"]


def test_two_disks_with_one_target_do_not_replace_each_other(worker, tmp_path, disks):
    target = f"file://{tmp_path}/saved/x.qcow2"
    made = record(A, image="blank:1M", save_to=target)
    spec = msgspec.structs.replace(made.spec, hdb_image="blank:1M", hdb_save_to=target)
    found = set()
    worker.store.create(msgspec.structs.replace(made, spec=spec))
    fetch(worker, worker.store.read(A))
    for contents in ((b"first hda", b"first hdb"), (b"second hda", b"second hdb")):
        disks += reversed(contents)
        end(worker, A)
        ended = worker.store.read(A)
        found |= {ended.disks["hda"].saved_to, ended.disks["hdb"].saved_to}
        assert (tmp_path / "saved/x.qcow2").read_bytes() == contents[0]
        # As if it had been kept, and modified back and forth.
        for disk in ("hda", "hdb"):
            worker.store.update(A, lambda r, disk=disk: with_disk(r, disk, **NOT_SAVED, **NOT_FLAT))
        again = worker.store.read(A)
        versions = read_target_versions(worker, again, {"hda": target, "hdb": target}, "ann")
        assert (versions["hda"] is not None, versions["hdb"]) == (True, None)
        worker.store.update(A, lambda r, v=versions: with_disk(r, "hda", target_version=v["hda"]))
    assert len(found) == 3  # the first disk's, and two conflict names of the second one


def save_as_image(worker, tmp_path, disks, target):
    """Let a VM save a disk that is an image of its own."""
    disks.append((b"of the first life".ljust(510, b"\0") + b"\x55\xaa").ljust(1 << 20, b"\0"))  # with a boot sector
    assert run(worker, record(A, image="blank:1M", save_to=f"{target}?format=raw")) == target
