"""Disks saved to folders of this host: what they may replace, and filesystems that cannot do everything."""

import ctypes
import errno
import os
from contextlib import suppress
from pathlib import Path

import pytest

from tests.lib.support import sha256
from worker_service.contract.uri import Uri
from worker_service.core.errors import BadRequest, Refused, TransferFailed
from worker_service.core.settings import ImagePolicy
from worker_service.fs import advice, atomic_files
from worker_service.operations import validation
from worker_service.steps import manifest
from worker_service.transfer.file import Files
from worker_service.transfer.registry import check_target
from worker_service.transfer.uri import parse

KEY = "6d6c7f0e-0000-4000-8000-000000000000-hda"
OTHER = "99999999-0000-4000-8000-000000000000-hda"


class Place:
    """A folder that disks are saved to, and a disk to save."""

    def __init__(self, folder):
        self.saved = folder / "saved"
        self.saved.mkdir()
        self.disk = folder / "hda.flat.raw"
        self.disk.write_bytes(b"disk" * 1000)
        self.target = self.saved / "web.raw"
        self.policy = ImagePolicy(read_roots=(folder,), write_roots=(self.saved,)).for_owner("")
        self.files = Files(self.policy)

    def uri(self, path=None) -> Uri:
        return parse(f"file://{path or self.target}")

    def save(self, observed=None, key=KEY):
        digest = sha256(self.disk)
        token = self.files.stage(self.uri(), self.disk, digest, key, lambda _done, _total: None)
        return self.files.commit(self.uri(), token, digest, observed, key, lambda _done, _total: None)

    def names(self):
        return sorted(path.name for path in self.saved.iterdir())


@pytest.fixture
def place(tmp_path):
    return Place(tmp_path)


@pytest.fixture
def other(tmp_path):
    """A file that is not the VM's."""
    path = tmp_path / "others"
    path.write_text("of others")
    return path


@pytest.fixture
def linkless(monkeypatch):
    """A filesystem without RENAME_NOREPLACE and without hard links, such as exFAT."""

    class NoFlags:
        @staticmethod
        def renameat2(*_arguments):
            ctypes.set_errno(errno.EINVAL)
            return -1

    def no_link(*_arguments, **_keywords):
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(atomic_files.ctypes, "CDLL", lambda *_, **__: NoFlags)
    monkeypatch.setattr(os, "link", no_link)


OBSTACLES = {
    "folder": lambda path, _other: path.mkdir(),
    "symbolic link": lambda path, other: path.symlink_to(other),
    "symbolic link to nothing": lambda path, _other: path.symlink_to("/nowhere"),
    "device": lambda path, _other: os.mkfifo(path),
}


@pytest.mark.parametrize("obstacle", OBSTACLES)
def test_place_that_is_no_file_is_refused_at_the_start(place, other, obstacle):
    OBSTACLES[obstacle](place.target, other)
    given = {"name": "web", "hda_image": "blank:1M", "hda_save_to": f"{place.uri()}?format=raw"}
    for refused in (
        lambda: place.files.observe(place.uri()),
        lambda: validation.spec(given, place.policy),
        lambda: validation.changes({"hda_save_to": str(place.uri())}, place.policy),
    ):
        with pytest.raises(Refused, match=f"is a {obstacle.partition(' to ')[0]}"):
            refused()


def test_missing_folder_is_no_reason_to_refuse_yet(place):
    place.saved.rmdir()
    validation.check_save_to(str(place.uri()), place.policy)


@pytest.mark.parametrize("obstacle", OBSTACLES)
def test_what_is_no_file_is_never_replaced(place, other, obstacle):
    """It has come while the VM ran. Even a validator that fits does not help."""
    OBSTACLES[obstacle](place.target, other)
    before = place.target.lstat()
    fits = f"{before.st_dev:x}-{before.st_ino:x}-{before.st_size:x}-{before.st_mtime_ns:x}"
    for observed in (None, fits):
        saved = parse(place.save(observed)).path
        assert "web.conflict-" in saved
        assert sha256(place.saved / saved) == sha256(place.disk)
    assert place.target.lstat() == before
    assert other.read_text() == "of others"


@pytest.mark.parametrize("obstacle", OBSTACLES)
def test_manifest_replaces_no_link_and_no_folder(place, other, obstacle):
    OBSTACLES[obstacle](place.saved / "web.raw.manifest.json", other)
    manifest.write(place.files, place.save(), b"{}", KEY, "0" * 64)
    assert place.names() == ["web.conflict-6d6c7f0e-000000000000.raw.manifest.json", "web.raw", "web.raw.manifest.json"]
    assert other.read_text() == "of others"


def test_disk_is_saved_where_there_are_no_links(place, linkless):
    assert place.save() == str(place.uri())
    assert (place.names(), sha256(place.target)) == (["web.raw"], sha256(place.disk))
    place.disk.write_bytes(b"newer")
    assert place.save(place.files.observe(place.uri())) == str(place.uri())
    assert place.target.read_bytes() == b"newer"
    place.disk.write_bytes(b"of a VM that may not replace it")
    assert "conflict" in place.save(None, OTHER)
    assert place.target.read_bytes() == b"newer"


def test_interrupted_save_without_links_goes_on(place, linkless, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", lambda *_: os.open("/nowhere", 0))
        with pytest.raises(TransferFailed):
            place.save()
    assert b"kept for" in place.target.read_bytes()
    assert "conflict" in place.save(None, OTHER)  # the mark is not another VM's
    assert place.save() == str(place.uri())
    assert sha256(place.target) == sha256(place.disk)


@pytest.mark.parametrize("there", ["file", "folder"])
def test_rename_without_links_replaces_nothing(tmp_path, linkless, there):
    source, target = tmp_path / "source", tmp_path / "target"
    if there == "file":
        source.write_text("new")
        target.write_text("old")
    else:
        source.mkdir()
        (source / "new").touch()
        target.mkdir()
        (target / "old").touch()
    with pytest.raises(OSError, match=r"exists|not empty"):
        atomic_files.rename_new(source, target)
    assert source.exists()
    assert target.read_text() == "old" if there == "file" else (target / "old").exists()
    free = tmp_path / "free"
    atomic_files.rename_new(source, free)
    assert free.exists()
    assert not source.exists()


def test_failed_rename_leaves_no_mark(tmp_path, linkless, monkeypatch):
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_text("new")
    monkeypatch.setattr(atomic_files, "_mark", lambda _: 1 / 0)
    with suppress(ZeroDivisionError):
        atomic_files.rename_new(source, target)
    assert not target.exists()


@pytest.mark.parametrize("extents", [[], [0], [5, 40], [63], [0, 63]])
def test_copy_keeps_holes(place, monkeypatch, extents):
    """A raw disk of 4 KiB of data became as large as it looks."""
    with place.disk.open("wb") as file:
        for mib in extents:
            file.seek(mib << 20)
            file.write(os.urandom(1 << 20) if mib == 63 else b"data" * 1024)
        file.truncate(64 << 20)

    def far(*_arguments, **_keywords):
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))

    monkeypatch.setattr(os, "link", far)
    place.save()
    assert place.target.stat().st_size == 64 << 20
    assert sha256(place.target) == sha256(place.disk)
    assert place.target.stat().st_blocks <= place.disk.stat().st_blocks + 8


@pytest.mark.parametrize(
    ("name", "fits"),
    [("a" * 200, True), ("a" * 201, False), ("a" * 230, False), ("ä" * 100, True), ("ä" * 101, False), ("", False)],
)
@pytest.mark.parametrize("scheme", ["file", "http"])
def test_name_has_to_leave_room_for_its_manifest(place, scheme, name, fits):
    policy = ImagePolicy(write_roots=(place.saved,), save_hosts=("host",)).for_owner("")
    text = f"file://{place.saved}/{name}" if scheme == "file" else f"http://host/disks/{name}"
    if fits:
        check_target(parse(f"{text}?format=raw"), policy)
    else:
        with pytest.raises(Refused, match=r"names a folder|Choose a shorter name"):
            check_target(parse(f"{text}?format=raw"), policy)


def test_key_of_s3_may_be_longer(place):
    with pytest.raises(Refused, match=r"not in the settings|images\.stores"):
        check_target(parse(f"s3://bucket/{'a' * 900}"), place.policy)
    with pytest.raises(Refused, match="at most 970"):
        check_target(parse(f"s3://bucket/{'a' * 980}"), place.policy)


def test_longest_name_can_be_saved_with_all_that_belongs_to_it(place):
    place.target = place.saved / ("a" * 200)
    place.target.write_text("of others")
    saved = place.save()
    assert "conflict" in saved
    manifest.write(place.files, saved, b"{}", KEY, sha256(place.disk))
    (place.saved / parse(saved).path).with_name(f"{parse(saved).path.rpartition('/')[2]}.manifest.json").write_text("?")
    place.files.note(saved, b"{}")


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (errno.ENOSPC, "No space left on device. Free space there."),
        (errno.EDQUOT, "Disk quota exceeded. Free space there, or raise the quota."),
        (errno.EFBIG, "File too large. That filesystem, or a limit, takes no file of this size: choose another place."),
        (errno.EIO, "Input/output error. Check that disk; the kernel's log says more."),
        (errno.EBADMSG, "Bad message. Check that disk."),
    ],
)
def test_advice_is_about_the_cause(code, words):
    assert advice.explained(OSError(code, os.strerror(code))) == words


def test_words_of_a_program_name_the_cause():
    assert advice.advice_on("error while writing at byte 0: No space left on device") == "Free space there."
    assert advice.advice_on("Image is corrupt") == ""


def test_unknown_options_of_a_target_are_refused(place):
    with pytest.raises(BadRequest):
        check_target(parse(f"{place.uri()}?format=vdi"), place.policy)
