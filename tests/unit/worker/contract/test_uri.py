"""The parser that both services use: the URIs that either one was tested with, and what both say of them."""

import pytest

from master_service.policy import validation
from worker_service.contract.uri import Form, InvalidUri, Uri, blank_size, parse, save_target
from worker_service.contract.uri_secrets import shown
from worker_service.core.errors import BadRequest
from worker_service.transfer import uri as worker_uri

DIGEST = "0f" * 32
GOOD = {
    "file:/srv/images/a.qcow2": ("file", "", "/srv/images/a.qcow2", None, ""),
    "file:///srv/images/a.qcow2": ("file", "", "/srv/images/a.qcow2", None, ""),
    "FILE:///srv/a%20b": ("file", "", "/srv/a b", None, ""),
    "http://127.0.0.1:8000/a.qcow2": ("http", "127.0.0.1:8000", "/a.qcow2", None, ""),
    f"https://example.org/a.qcow2#sha256={DIGEST}": ("https", "example.org", "/a.qcow2", DIGEST, ""),
    "https://host/a?version=3": ("https", "host", "/a", None, "version=3"),
    "s3://images/debian/a.qcow2": ("s3", "images", "/debian/a.qcow2", None, ""),
    "sftp://store.test:2222/srv/a.qcow2": ("sftp", "store.test:2222", "/srv/a.qcow2", None, ""),
    "salt://images/a.qcow2?saltenv=base": ("salt", "images", "/a.qcow2", None, "saltenv=base"),
    "blank:20G": ("blank", "", "20G", None, ""),
}
BAD = {
    "": "not empty",
    "https://host/" + "a" * 3000: "at most 2048",
    "https://host/a b": "no blanks",
    "https://host/a\n": "no control characters",
    "https://host/a\\b": "no backslashes",
    "https://u:s3cret@host:99999/a": "HOST:PORT",
    "https://[::1/a": "HOST:PORT",
    "/srv/a.qcow2": "no scheme",
    "relative": "no scheme",
    "https://host/a#md5=1": "only a digest",
    f"https://host/a#sha256={DIGEST}0": "only a digest",
    "blank:": "blank:20G",
    "blank:0G": "blank:20G",
    "blank:20": "blank:20G",
    "blank:20G?x=1": "blank:20G",
    f"blank:20G#sha256={DIGEST}": "blank:20G",
    "BLANK:20G": "blank:20G",
}


@pytest.mark.parametrize("text", GOOD)
def test_both_services_accept(text):
    scheme, netloc, path, sha256, query = GOOD[text]
    assert parse(text) == Uri(text.partition("#")[0], scheme, netloc, path, sha256, query) == worker_uri.parse(text)
    assert validation.validate_image_uri(text) == text


@pytest.mark.parametrize("text", BAD)
def test_both_services_refuse_with_the_same_reason(text):
    with pytest.raises(InvalidUri, match=BAD[text]) as err:
        parse(text)
    assert "s3cret" not in str(err.value)
    with pytest.raises(BadRequest, match=BAD[text]) as refused:
        worker_uri.parse(text)
    assert str(err.value) in str(refused.value)
    assert "s3cret" not in str(refused.value)
    with pytest.raises(ValueError, match=BAD[text]):
        validation.validate_image_uri(text)


@pytest.mark.parametrize(
    ("text", "size"),
    [("blank:512M", 512 << 20), ("blank:20G", 20 << 30), ("blank:1T", 1 << 40), ("blank:1K", None), ("file:/a", None)],
)
def test_sizes_of_blank_disks(text, size):
    assert blank_size(text) == size


@pytest.mark.parametrize("query", ["format=vmdk", "compress=gzip", "format=raw&format=qcow2", "owner=me", "&"])
def test_both_services_refuse_unknown_options_of_a_target(query):
    text = f"s3://saved/a?{query}"
    for check in (save_target, validation.validate_save_uri):
        with pytest.raises(ValueError, match=r"\?format=raw"):
            check(text)
    with pytest.raises(BadRequest, match=r"\?format=raw"):
        worker_uri.save_form(parse(text))


def test_target_is_a_place_and_a_form():
    target = save_target("s3://saved/a?format=raw&compress=zstd")
    assert (target.uri.path, target.form, target.form.suffix) == ("/a", Form("raw", "zstd"), "raw.zst")


@pytest.mark.parametrize("text", ["https://u:p@host/a", "https://u:p@ss@host/a", "//u@host\n"])
def test_users_are_not_shown(text):
    assert "u" not in shown(text).partition("//")[2].partition("@")[0]


@pytest.mark.parametrize(
    ("netloc", "text"),
    [("host", "https://host/a"), ("u:secret@host", "https://***@host/a"), ("t@h", "https://***@h/a")],
)
def test_uri_is_shown_without_its_user(netloc, text):
    assert str(Uri(text=f"https://{netloc}/a", scheme="https", netloc=netloc, path="/a")) == text
