"""Validation of a VM's parameters by the master."""

import re

import pytest

from master_service.policy import validation
from worker_service.contract import SOURCE_SCHEMES, TARGET_SCHEMES
from worker_service.contract.words import HOW

DIGEST = "sha256=" + "0f" * 32


@pytest.mark.parametrize("name", ["0042", "1.10", "1e3", "0x2a", "1_000", "on", "null", "None", "2024-01-01"])
def test_name_that_yaml_reads_otherwise_is_refused(name):
    with pytest.raises(ValueError, match=re.escape(HOW)):
        validation.validate_name(name)


@pytest.mark.parametrize("name", ["web01", "v1.10", "1.2.3", "0042-db", "online"])
def test_name_that_is_a_word_is_accepted(name):
    assert validation.validate_name(name) == name


@pytest.mark.parametrize(
    "uri",
    [
        "file:/srv/images/a.qcow2",
        "file:///srv/images/a.qcow2",
        "http://127.0.0.1:8000/a.qcow2",
        f"https://example.org/a.qcow2#{DIGEST}",
        "s3://images/debian/a.qcow2",
        "sftp://store.test:2222/srv/a.qcow2",
        "salt://images/a.qcow2?saltenv=base",
        "salt://a.qcow2",
        "blank:20G",
    ],
)
def test_image_uri_is_accepted(uri):
    assert validation.validate_image_uri(uri) == uri


@pytest.mark.parametrize(
    ("uri", "why"),
    [
        ("ftp://host/a", "unknown scheme 'ftp'; known are file, http, https, s3, salt, sftp, blank"),
        ("/srv/a.qcow2", "it has no scheme; write a file on the worker as file:/path"),
        ("file:a.qcow2", "needs a whole path"),
        ("file://otherhost/a", "means a file on the worker"),
        ("file:/srv/", "needs a whole path to a file"),
        ("http://host", "needs a host and a path"),
        ("http:///a", "needs a host and a path"),
        ("https://host:99999/a", "is not a URI"),
        ("https://u:secret@host/a", "no passwords in a URI"),
        ("sftp://u:secret@host/a", "no passwords in a URI"),
        ("https://t0ken@host/a", "no passwords in a URI, and no user"),
        ("sftp://u@host/a", "and no user"),
        ("s3://u@bucket/a", "and no user"),
        ("s3://bucket", "needs a bucket and a path, such as s3://BUCKET/debian.qcow2"),
        ("sftp:///srv/a", "needs a host and a path"),
        ("salt:/images/a", "needs a path on Salt's file server"),
        ("https://host/a b", "no blanks"),
        ("https://host/a\n", "no control characters"),
        ("https://host/a#md5=1", "only a digest is known"),
        ("blank:", "blank:20G"),
        ("blank:0G", "blank:20G"),
        ("blank:20", "blank:20G"),
        ("https://host/" + "a" * 3000, "at most 2048"),
    ],
)
def test_bad_image_uri_is_refused(uri, why):
    with pytest.raises(ValueError, match=why):
        validation.validate_image_uri(uri)


@pytest.mark.parametrize(
    "uri", ["", "file:/srv/saved/a.qcow2", "http://host/a", "s3://saved/a?format=raw", "sftp://host/a"]
)
def test_save_uri_is_accepted(uri):
    assert validation.validate_save_uri(uri) == uri


@pytest.mark.parametrize("uri", ["blank:1G", "salt://a/b", f"file:/a#{DIGEST}", "relative"])
def test_bad_save_uri_is_refused(uri):
    with pytest.raises(ValueError, match=r"known are|no digest|no scheme"):
        validation.validate_save_uri(uri)


def test_cd_is_an_image_or_nothing_but_never_blank():
    assert validation.validate_cd_uri("") == ""
    assert validation.validate_cd_uri("file:/a.iso") == "file:/a.iso"
    with pytest.raises(ValueError, match="cannot be blank"):
        validation.validate_cd_uri("blank:1G")


@pytest.mark.parametrize("name", ["-rf", ".", "", "a" * 64, "a b", "a/b", "web01\n", "ü"])
def test_bad_vm_name_is_refused(name):
    with pytest.raises(ValueError, match="1 to 63"):
        validation.validate_name(name)


def test_user_data_is_a_uri_and_never_the_document():
    assert validation.validate_user_data("http://images.test/user-data") == "http://images.test/user-data"
    for wrong in ("#cloud-config\npassword: x", "blank:1G", "x"):
        with pytest.raises(ValueError, match=r"document|scheme"):
            validation.validate_user_data(wrong)


def test_networks_and_packages_are_validated():
    for network in ("user", "none", "network=default", "bridge=br0"):
        assert validation.validate_network(network) == network
    for network in ("", "bridge=", "network=a b", "host"):
        with pytest.raises(ValueError, match="network=NAME"):
            validation.validate_network(network)
    assert validation.guest_word_validator("soft_list")("g++-12:amd64=12*") == "g++-12:amd64=12*"
    with pytest.raises(ValueError, match="no name of a package"):
        validation.guest_word_validator("soft_list")("--force-yes; rm")


def test_every_scheme_that_workers_know_is_accepted():
    for scheme in SOURCE_SCHEMES:
        assert validation.validate_image_uri(f"{scheme}:/a/b" if scheme == "file" else f"{scheme}://a/b")
    for scheme in TARGET_SCHEMES:
        assert validation.validate_save_uri(f"{scheme}:/a/b" if scheme == "file" else f"{scheme}://a/b")


def test_scheme_of_an_installed_package_is_accepted(tmp_path, monkeypatch):
    info = tmp_path / "brought_schemes-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: brought-schemes\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[saltern.schemes]\nipfs = brought_schemes_that_no_master_loads:Ipfs\n")
    with pytest.raises(ValueError, match="unknown scheme 'ipfs'"):
        validation.validate_image_uri("ipfs://a/b")
    monkeypatch.syspath_prepend(tmp_path)
    assert (validation.validate_image_uri("ipfs://a/b"), validation.validate_save_uri("ipfs://a/b")) == (
        "ipfs://a/b",
        "ipfs://a/b",
    )
    with pytest.raises(ValueError, match="no passwords"):
        validation.validate_image_uri("ipfs://u:p@a/b")


@pytest.mark.parametrize("value", [{}, {"role": "web"}, {"a.b/c_d-e": "x" * 255}, {f"k{n}": "" for n in range(32)}])
def test_labels_are_accepted(value):
    assert validation.validate_labels(value) == value


@pytest.mark.parametrize(
    "value",
    [
        {f"k{n}": "" for n in range(33)},
        {"": "x"},
        {"-a": "x"},
        {"a" * 64: "x"},
        {"role": "x" * 256},
        {"role": "a\nb"},
    ],
    ids=["too many", "no name", "dash first", "long name", "long value", "control character"],
)
def test_labels_out_of_bounds_are_refused(value):
    with pytest.raises(ValueError, match=r"label|value of role"):
        validation.validate_labels(value)


def test_vm_name_is_accepted():
    assert validation.validate_name("web-01.a_b") == "web-01.a_b"


@pytest.mark.parametrize("name", ["6d6c7f0e-0000-4000-8000-000000000001", "6D6C7F0E000040008000000000000001"])
def test_name_like_a_uuid_is_refused(name):
    with pytest.raises(ValueError, match="like the uuid of a VM"):
        validation.validate_name(name)


def test_text_for_others_is_printable():
    assert validation.validate_text("ci, für Ann") == "ci, für Ann"
    for text in ("a\x1b[2J", "a\n", "a\u202eb"):
        with pytest.raises(ValueError, match="printable"):
            validation.validate_text(text)
