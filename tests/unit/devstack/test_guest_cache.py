"""The cache of what takes long to build: built once for each version, complete or absent."""

import pytest

from devstack.console import Trouble
from devstack.guests import debian, mmdebstrap
from devstack.guests.cache import built_once, digest


@pytest.mark.parametrize("suffix", ["", ".qcow2"])
def test_other_version_replaces_what_was_built(tmp_path, suffix):
    built = []

    def make(folder, log):
        built.append(log.name)
        result = folder / "result"
        if suffix:
            result.touch()
        else:
            result.mkdir()
        return result

    first = built_once(tmp_path, "thing", "1", make, suffix=suffix)
    assert built_once(tmp_path, "thing", "1", make, suffix=suffix) == first
    assert built == ["thing.log"]
    (tmp_path / f"thing-left-by-a-killed-build{suffix}").mkdir()
    other = built_once(tmp_path, "other", "1", make, suffix=suffix)
    second = built_once(tmp_path, "thing", "2", make, suffix=suffix)
    assert {path for path in tmp_path.iterdir() if path.suffix not in {".log", ".lock"}} == {second, other}


def test_failed_build_leaves_its_log_and_the_version_before(tmp_path):
    before = built_once(tmp_path, "thing", "1", lambda folder, _: _made(folder))

    def fail(folder, log):
        _made(folder)
        log.write_text("no room")
        raise Trouble("mke2fs failed")

    with pytest.raises(Trouble, match="mke2fs failed"):
        built_once(tmp_path, "thing", "2", fail)
    assert {path.name for path in tmp_path.iterdir()} == {before.name, "thing.log", ".thing.lock"}
    assert (tmp_path / "thing.log").read_text() == "no room"


def _made(folder):
    (folder / "result").mkdir()
    return folder / "result"


def test_digest_changes_with_content_names_and_modes(tmp_path):
    parts = tmp_path / "parts"
    parts.mkdir()
    script = parts / "init"
    script.write_text("#!/bin/sh\n")
    found = [digest(parts)]
    script.write_text("#!/bin/bash\n")
    found.append(digest(parts))
    script.chmod(0o755)
    found.append(digest(parts))
    script.rename(parts / "setup")
    found += [digest(parts), digest(parts, "xen"), digest(parts / "setup")]
    assert len(set(found)) == len(found)
    assert digest(parts) == found[3]


def test_image_of_debian_changes_with_its_script(tmp_path, monkeypatch):
    script = tmp_path / "debian.py"
    script.write_text("PACKAGES = ('cloud-init',)")
    monkeypatch.setattr(debian, "_MADE_FROM", (script,))
    monkeypatch.setattr(debian, "_make", lambda folder, _: script.rename(folder / "x"))
    image = debian.build_debian(tmp_path)
    script.write_text("PACKAGES = ('cloud-init', 'hello')")
    assert debian.build_debian(tmp_path) != image


def test_command_of_mmdebstrap(tmp_path):
    argv = mmdebstrap.command(tmp_path / "root", tmp_path / "sources.list", ("git", "python3"), "--variant=minbase")
    assert argv[2:4] == ["mmdebstrap", "--mode=root"]
    assert argv[4:] == [
        "--variant=minbase", "--include=git,python3", "bookworm", f"{tmp_path}/root", f"{tmp_path}/sources.list",
    ]  # fmt: skip


def test_only_root_may_make_a_debian(tmp_path, monkeypatch):
    monkeypatch.setattr(mmdebstrap.os, "geteuid", lambda: 1000)
    with pytest.raises(Trouble, match=r"^Only root can make a Debian with mmdebstrap"):
        mmdebstrap.install(tmp_path / "root", (), tmp_path / "log")
