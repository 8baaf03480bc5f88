"""Tools that build guests: helpful errors, files that appear whole or not at all, and archives that cpio reads."""

from __future__ import annotations

import gzip
import subprocess
from pathlib import Path

import pytest

from devstack.console import Trouble
from devstack.guests import tools
from devstack.guests.initramfs import Initramfs


def test_missing_program_names_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(Trouble, match="mcopy is not installed; run: apt-get install mtools"):
        tools.run(["mcopy", "-V"])


def test_failed_program_is_quoted_and_its_log_is_named(tmp_path: Path) -> None:
    log = tmp_path / "build.log"
    with pytest.raises(Trouble, match=rf"sh failed with code 3: no room; the log is {log}"):
        tools.run(["sh", "-c", "echo some output; echo no room >&2; exit 3"], log=log)
    assert log.read_text() == "$ sh -c 'echo some output; echo no room >&2; exit 3'\nsome output\nno room\n"


def test_file_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "new" / "image"

    def fail_half_way() -> None:
        with tools.appearing(target) as part:
            part.write_bytes(b"half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail_half_way()
    assert not list(target.parent.iterdir())
    with tools.appearing(target) as part:
        part.write_bytes(b"whole")
        assert not target.exists()
    assert list(target.parent.iterdir()) == [target]
    assert target.read_bytes() == b"whole"


def test_cpio_unpacks_the_archive(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    (tree / "etc").mkdir(parents=True)
    (tree / "etc" / "inittab").write_text("content\n")
    (tree / "etc" / "start").write_text("#!/bin/sh\n")
    (tree / "etc" / "start").chmod(0o700)
    archive = Initramfs()
    archive.tree(tree)
    archive.folder("dev")
    archive.link("sbin/init", "/bin/busybox")
    out = tmp_path / "out"
    out.mkdir()
    data = gzip.decompress(archive.packed())
    subprocess.run(["cpio", "--extract", "--quiet", "--no-absolute-filenames"], cwd=out, input=data, check=True)
    assert (out / "etc" / "inittab").read_text() == "content\n"
    assert (out / "etc" / "inittab").stat().st_mode & 0o777 == 0o644
    assert (out / "etc" / "start").stat().st_mode & 0o777 == 0o755
    assert (out / "dev").is_dir()
    assert (out / "sbin" / "init").readlink() == Path("/bin/busybox")
    assert archive.packed() == archive.packed()
