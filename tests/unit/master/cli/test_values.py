"""Values as people write them: paths for URIs, sizes of memory, files of keys."""

from pathlib import Path

import pytest
import typer

from master_service.cli.common.values import as_uri, keys, memory_mib
from worker_service.contract.uri import parse

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ7mJ9Q0 me at home, with a comma"
OTHER = "ssh-rsa AAAAB3NzaC1yc2EAAAADAQABAAABAQ other"
DIGEST = f"#sha256={'a' * 64}"


@pytest.mark.parametrize(
    ("text", "mib"),
    [("512", 512), ("512M", 512), ("1G", 1024), ("1.5g", 1536), ("2 GiB", 2048), ("0.5G", 512), ("1T", 1048576)],
)
def test_memory_is_read_in_the_usual_units(text, mib):
    assert memory_mib(text) == mib


@pytest.mark.parametrize("text", ["", "G", "1X", "1.3", "-1G", "1e3", "0.0001G", "512KiB", "512iB"])
def test_other_memory_is_refused_with_the_form(text):
    with pytest.raises(typer.BadParameter, match=r"1G or 1\.5G"):
        memory_mib(text)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The current folder, which is also the home, with an image and a folder for saves."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "saved").mkdir()
    (tmp_path / "web 1.qcow2").touch()
    (tmp_path / "web.qcow2").touch()
    return tmp_path


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("./web.qcow2", "web.qcow2"),
        ("web.qcow2", "web.qcow2"),
        ("./web 1.qcow2", "web 1.qcow2"),
        ("~/web.qcow2", "web.qcow2"),
        ("./saved/../web.qcow2", "web.qcow2"),
        ("saved/new.qcow2", "saved/new.qcow2"),
        ("./new#1?.qcow2", "new#1?.qcow2"),
    ],
)
def test_path_becomes_a_uri_of_the_same_file(folder, text, path):
    assert Path(parse(as_uri(text)).path) == folder / path


@pytest.mark.parametrize("end", ["?format=raw", DIGEST, f"?format=raw&compress=zstd{DIGEST}"])
def test_path_keeps_form_and_digest(folder, end):
    assert as_uri(f"./saved/x{end}") == f"file://{folder}/saved/x{end}"


def test_path_of_a_folder_stays_one(folder):
    assert as_uri("./saved/") == f"file://{folder}/saved/"


@pytest.mark.parametrize(
    "text", ["", "file:/srv/a", "https://host.test/a", "blank:20G", "debian12", "no/such/folder", "keep"]
)
def test_other_text_is_no_path(folder, text):
    (folder / "keep").touch()
    assert as_uri(text) == text


def test_keys_come_from_words_and_files(folder):
    (folder / "id.pub").write_text(f"# mine\n\n{KEY}\n  {OTHER}\n")
    assert keys([OTHER, "~/id.pub"]) == [OTHER, KEY, OTHER]
    assert keys(["id.pub"]) == [KEY, OTHER]
    assert keys([f"{KEY},{OTHER}"]) == [KEY, OTHER]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"-----BEGIN OPENSSH PRIVATE KEY-----", r"is a private key.*id\.pub"),
        (b"# nothing\n", "has no public key"),
        (b"\xff\xfe", "it is no text"),
        (None, "No such file"),
    ],
)
def test_file_without_public_keys_is_refused(folder, content, message):
    if content is not None:
        (folder / "id").write_bytes(content)
    with pytest.raises(typer.BadParameter, match=message):
        keys(["./id"])
