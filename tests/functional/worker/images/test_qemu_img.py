"""qemu-img runs as QEMU's user, reads what the record names, and within bounds that real images never reach."""

import os
import shutil
import stat
import subprocess
import tempfile
from pathlib import Path

import pytest

from worker_service.core import host
from worker_service.core.errors import BadImage, TransferFailed
from worker_service.images import qemu_img
from worker_service.images.overlay import Chain, Layer
from worker_service.transfer.uri import Form

USER = host.user("libvirt-qemu")


@pytest.fixture
def folder():
    """A folder that QEMU's user may pass, which pytest's are not."""
    path = Path(tempfile.mkdtemp(prefix="saltern-images-", dir="/var/tmp"))
    path.chmod(0o711)
    yield path
    shutil.rmtree(path)


@pytest.fixture
def mad(folder, monkeypatch):
    """A qemu-img that does something else than it should."""

    def make(code, interpreter="/usr/bin/python3 -SE"):
        path = folder / "bin/qemu-img"
        path.parent.mkdir()
        path.write_text(f"#!{interpreter}\n{code}\n")
        path.chmod(0o755)
        monkeypatch.setenv("PATH", f"{path.parent}:/usr/bin:/bin")

    return make


def chain(path, base, size):
    return Chain(layers=(Layer(str(path)),), base=base, base_format="raw", largest=size)


def top(disk):
    return Path(disk.layers[0].path)


@pytest.fixture
def disk(folder):
    """A disk that a VM has left: an overlay of root's, and its base."""
    base = folder / "0123"
    base.write_bytes(bytes(range(256)) * 4096)
    base.chmod(0o440)
    os.chown(base, -1, USER.gid)
    qemu_img.create_overlay(folder / "hda.qcow2", base, "raw", 1 << 20, USER)
    return chain(folder / "hda.qcow2", base, 1 << 20)


@pytest.fixture
def secret(folder):
    """A file that only root may read."""
    path = folder / "secret"
    path.write_bytes(b"for root only".ljust(1 << 20, b"."))
    path.chmod(0o600)
    return path


def rewrite(overlay, base, base_format="raw"):
    """Write another base into the header of an overlay, as QEMU's user could."""
    argv = ["qemu-img", "rebase", "-u", "-f", "qcow2", "-b", str(base), "-F", base_format, overlay.layers[0].path]
    subprocess.run(argv, check=True)


def access(path):
    found = path.stat()
    return found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)


def silent(_done, _total):
    pass


WHO = """exec >"$5" 2>&1
id -u; id -G; grep -E '^(CapEff|CapPrm|NoNewPrivs)' /proc/self/status; ulimit -c; cat SECRET || true"""


def test_qemu_img_runs_as_qemus_user_without_rights(mad, folder, secret):
    mad(WHO.replace("SECRET", str(secret)), "/bin/sh")
    qemu_img.create_blank(folder / "who", 1 << 20, USER)
    uid, groups, *rights, core, refused = (folder / "who").read_text().splitlines()
    assert (uid, groups, core) == (str(USER.uid), str(USER.gid), "0")
    assert {line.split()[0]: int(line.split()[1], 16) for line in rights} == {
        "CapPrm:": 0,
        "CapEff:": 0,
        "NoNewPrivs:": 1,
    }
    assert "Permission denied" in refused
    assert access(folder / "who") == (0, 0, 0o600)


def test_disks_are_roots_again_after_each_command(disk, folder):
    before = access(top(disk))
    assert before == (0, 0, 0o600)
    qemu_img.flatten(disk, folder / "flat", silent, Form("raw"), USER)
    assert (folder / "flat").read_bytes() == disk.base.read_bytes()
    assert access(top(disk)) == before
    assert access(folder / "flat") == (0, 0, 0o600)


@pytest.mark.parametrize("base_format", ["raw", "qcow2"])
def test_rewritten_header_is_refused(disk, secret, folder, base_format):
    rewrite(disk, secret, base_format)
    with pytest.raises(BadImage, match=r"header of hda.qcow2 was changed.*its base is '.*secret'") as failed:
        qemu_img.flatten(disk, folder / "flat", silent, Form("raw"), USER)
    assert not failed.value.retry
    assert not (folder / "flat").exists()


def test_header_rewritten_after_the_check_leads_nowhere(disk, secret, folder, monkeypatch):
    rewrite(disk, secret)
    monkeypatch.setattr(Chain, "require_unchanged", lambda *_: None)
    qemu_img.flatten(disk, folder / "flat", silent, Form("raw"), USER)
    assert (folder / "flat").read_bytes() == disk.base.read_bytes()


def test_data_file_in_the_header_is_refused(disk, secret, folder):
    """It would have QEMU read all data from another file, whatever is stated about bases."""
    with top(disk).open("r+b") as file:
        file.seek(72)
        file.write((4).to_bytes(8))
    with pytest.raises(BadImage, match="other features"):
        qemu_img.flatten(disk, folder / "flat", silent, Form("raw"), USER)


@pytest.mark.parametrize("compress", [None, "zstd"])
def test_flattening_fits_its_bounds(folder, compress, monkeypatch):
    """Bytes that cannot be compressed, in a disk as large as they are."""
    size = 64 << 20
    base = folder / "noise"
    base.write_bytes(os.urandom(size))
    base.chmod(0o444)
    disk = chain(folder / "hda.qcow2", base, size)
    qemu_img.create_overlay(top(disk), base, "raw", size, USER)
    qemu_img.flatten(disk, folder / "flat", silent, Form("qcow2", compress), USER)
    monkeypatch.setattr(qemu_img, "_METADATA", -size // 2)
    with pytest.raises(TransferFailed, match="failed"):
        qemu_img.flatten(disk, folder / "flat", silent, Form("qcow2", compress), USER)
    assert not (folder / "flat").exists()


def test_flattening_that_hangs_is_stopped(mad, disk, folder, monkeypatch):
    monkeypatch.setattr(qemu_img, "_LIMIT_S", 0.1)
    mad("import time; time.sleep(60)")
    with pytest.raises(TransferFailed, match="took too long"):
        qemu_img.flatten(disk, folder / "flat", silent, Form("raw"), USER)


def test_qemu_img_that_computes_endlessly_is_stopped(mad, tmp_path, monkeypatch):
    monkeypatch.setattr(qemu_img, "_CPU_S", 1)
    mad("while True: pass")
    with pytest.raises(BadImage, match="SIGXCPU") as failed:
        qemu_img.create_blank(tmp_path / "a.qcow2", 1 << 20)
    assert not failed.value.retry


def test_qemu_img_that_wants_all_memory_is_stopped(mad, tmp_path):
    mad("bytearray(2 << 30)")
    with pytest.raises(BadImage, match="MemoryError"):
        qemu_img.create_blank(tmp_path / "a.qcow2", 1 << 20)


def test_qemu_img_that_hangs_is_stopped(mad, tmp_path, monkeypatch):
    monkeypatch.setattr(qemu_img, "_LIMIT_S", 0.5)
    mad("import time; time.sleep(60)")
    with pytest.raises(TransferFailed, match="took more than") as failed:
        qemu_img.create_blank(tmp_path / "a.qcow2", 1 << 20)
    assert failed.value.retry


def test_largest_that_is_allowed_is_made_within_them(tmp_path):
    """With its L1 table, a base of 60 TiB is the hardest there is to look at."""
    base, overlay = tmp_path / "base.qcow2", tmp_path / "overlay.qcow2"
    qemu_img.create_blank(base, 60 << 40)
    qemu_img.create_overlay(overlay, base, "qcow2", 60 << 40)
    argv = ["qemu-img", "info", "-f", "qcow2", "--backing-chain", str(overlay)]
    said = subprocess.run(argv, check=True, capture_output=True, text=True).stdout
    assert said.count("virtual size: 60 TiB") == 2
