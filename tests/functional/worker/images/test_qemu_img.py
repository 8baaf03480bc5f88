"""Bounds for qemu-img on untrusted images, which real images never reach."""

import subprocess
import sys

import pytest

from worker_service.core.errors import BadImage, TransferFailed
from worker_service.images import qemu_img


@pytest.fixture
def mad(tmp_path, monkeypatch):
    """A qemu-img that does something else than it should."""

    def make(code):
        path = tmp_path / "bin/qemu-img"
        path.parent.mkdir()
        path.write_text(f"#!{sys.executable} -SE\n{code}\n")
        path.chmod(0o755)
        monkeypatch.setenv("PATH", f"{path.parent}:/usr/bin:/bin")

    return make


def test_qemu_img_that_computes_endlessly_is_stopped(mad, tmp_path, monkeypatch):
    monkeypatch.setattr(qemu_img, "_BOUNDS", ("prlimit", "--cpu=1:2", *qemu_img._BOUNDS[2:]))
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
