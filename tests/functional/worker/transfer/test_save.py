"""The form of saved disks, through whole lives of real VMs."""

import json
import subprocess
import tempfile
from pathlib import Path

import pytest
from backports import zstd

from devstack.guests import read_counter
from tests.lib.support import sha256
from worker_service.core.errors import TransferFailed
from worker_service.core.settings import ImagePolicy
from worker_service.transfer.file import Files
from worker_service.transfer.uri import parse


def info(path):
    argv = ["qemu-img", "info", "-f", "qcow2", "--output=json", str(path)]
    return json.loads(subprocess.run(argv, check=True, capture_output=True).stdout)


def manifest(path):
    return json.loads(Path(f"{path}.manifest.json").read_text())


def test_each_form_is_saved_and_boots(site, bootchain):
    image = bootchain("forms.raw", folder=site.images)
    data = site.images / "forms-data.raw"
    data.write_bytes(b"payload".ljust(1 << 20, b"\0"))
    packed, second = site.saved / "forms.raw.zst", site.saved / "forms-data.qcow2"
    site.start(
        "forms",
        image,
        hda_save_to=f"file://{packed}?format=raw&compress=zstd",
        hdb_image=f"file://{data}",
        hdb_save_to=f"file://{second}?compress=zstd",
    )
    reply = site.wait("forms", "halted")
    assert reply["disks"]["hda"]["saved_to"] == f"file://{packed}"  # the options are none of its name
    assert reply["disks"]["hda"]["sha256"] == sha256(packed) == manifest(packed)["sha256"]
    assert reply["disks"]["hda"]["size"] == packed.stat().st_size
    assert (manifest(packed)["format"], manifest(packed)["compress"]) == ("raw", "zstd")
    assert (manifest(second)["format"], manifest(second)["compress"]) == ("qcow2", "zstd")
    assert info(second)["format-specific"]["data"]["compression-type"] == "zstd"
    assert len(zstd.decompress(packed.read_bytes())) == 1 << 20
    assert site.leftovers() == set()

    raw = site.saved / "forms.raw"
    data = {"hdb_image": f"file://{second}", "hdb_save_to": ""}
    site.start("forms2", packed, hda_save_to=f"file://{raw}?format=raw", **data)
    site.wait("forms2", "halted")
    assert read_counter(raw, "raw") == 2
    assert manifest(raw)["format"] == "raw"
    assert site.start("forms3", raw, hda_save_to="")["success"]
    site.wait("forms3", "halted")


def test_another_form_after_a_failure_is_flattened_again(site, bootchain):
    image = bootchain("reform.raw", folder=site.images, variant="key")
    uuid = site.start("reform", image)["uuid"]
    site.wait("reform", "running")
    site.saved.rename(site.folder / "away")
    site.end("reform")
    kept = Path(site.wait("reform", "failed to save")["disks"]["hda"]["kept"])
    assert kept.name == "hda.flat.qcow2"
    (site.folder / "away").rename(site.saved)
    raw = site.saved / "reform.raw"
    assert site.call("modify", name="reform", hda_save_to=f"file://{raw}?format=raw")["success"]
    assert site.call("save_retry", uuid=uuid)["success"]
    reply = site.wait("reform", "halted")
    assert read_counter(raw, "raw") == 1
    assert reply["disks"]["hda"]["sha256"] == sha256(raw) == manifest(raw)["sha256"]
    assert site.leftovers() == set()


def test_unknown_options_are_refused(site, bootchain):
    image = bootchain("options.raw", folder=site.images)
    reply = site.start("options", image, hda_save_to=f"file://{site.saved}/x?format=vdi")
    assert (reply["code"], "?format=raw" in reply["message"]) == ("bad_request", True)
    assert site.call("status", name="options")["code"] == "not_found"


@pytest.mark.parametrize("elsewhere", [True, False])
def test_disk_is_linked_or_copied_across_filesystems(tmp_path, elsewhere):
    with tempfile.TemporaryDirectory(dir="/dev/shm") as memory:
        target = Path(memory) if elsewhere else tmp_path / "saved"
        target.mkdir(exist_ok=True)
        source = tmp_path / "hda.flat.qcow2"
        source.write_bytes(b"disk" * 100_000)
        files, uri = Files(ImagePolicy(write_roots=(target,))), parse(f"file://{target}/web.qcow2")
        digest = sha256(source)
        token = files.stage(uri, source, digest, "key", lambda done, size: None)
        staged = target / token
        assert (staged.stat().st_ino == source.stat().st_ino) is not elsewhere
        assert files.commit(uri, token, digest, None, "key", lambda done, size: None) == str(uri)
        source.unlink()
        saved = target / "web.qcow2"
        assert (sha256(saved), saved.stat().st_nlink, saved.stat().st_mode & 0o777) == (digest, 1, 0o600)
        assert list(target.iterdir()) == [saved]


def test_conflict_copy_lost_by_a_crash_is_not_saved_twice(tmp_path):
    """The name had the time in it, so that each try after a crash made another copy."""
    source = tmp_path / "hda.flat.qcow2"
    source.write_bytes(b"disk" * 1000)
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved/web.qcow2").write_text("somebody else's work")
    files, uri = Files(ImagePolicy(write_roots=(tmp_path / "saved",))), f"file://{tmp_path}/saved/web.qcow2"
    digest = sha256(source)

    def save():
        token = files.stage(parse(uri), source, digest, "key", lambda done, size: None)
        return files.commit(parse(uri), token, digest, None, "key", lambda done, size: None)

    saved = save()
    assert save() == saved
    names = sorted(path.name for path in (tmp_path / "saved").iterdir())
    assert names == [f"web.conflict-key-{digest[:12]}.qcow2", "web.qcow2"]
    source.write_bytes(b"another")
    digest = sha256(source)
    assert save() != saved
    assert (tmp_path / "saved/web.qcow2").read_text() == "somebody else's work"


def test_disk_that_reads_back_differently_is_not_staged(tmp_path):
    source = tmp_path / "hda.flat.qcow2"
    source.write_bytes(b"not what was flattened")
    (tmp_path / "saved").mkdir()
    files = Files(ImagePolicy(write_roots=(tmp_path / "saved",)))
    with pytest.raises(TransferFailed, match="reads back"):
        files.stage(parse(f"file://{tmp_path}/saved/web.qcow2"), source, "0" * 64, "key", lambda done, size: None)
    assert list((tmp_path / "saved").iterdir()) == []
