"""Schemes that a package brings along: what is installed is found by its entry point, without a change here."""

import sys

import pytest

from worker_service.errors import BadRequest, Refused
from worker_service.images import schemes
from worker_service.images.file import Files
from worker_service.images.uri import parse
from worker_service.settings import Images

PACKAGE = """
class Both:
    def __init__(self, policy): self.policy = policy
    def check(self, uri, *, write=False): pass
    def head(self, uri): pass
    def read(self, uri, offset, head): pass
    def commit(self, uri, token, sha256, seen, key, report): pass

class Reader:
    def __init__(self, policy): self.policy = policy
    def check(self, uri): pass
    def head(self, uri): pass
    def read(self, uri, offset, head): pass
"""
ENTRIES = """
[saltern.schemes]
ipfs = brought_schemes:Both
cdrom = brought_schemes:Reader
file = brought_schemes:Both
broken = brought_schemes_that_are_not_there:Both
gone = brought_schemes:Gone
"""


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """What `pip install` leaves of a package."""
    (tmp_path / "brought_schemes.py").write_text(PACKAGE)
    info = tmp_path / "brought_schemes-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: brought-schemes\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(ENTRIES)
    monkeypatch.syspath_prepend(tmp_path)
    yield
    sys.modules.pop("brought_schemes", None)


def test_a_package_brings_a_scheme(installed):
    policy = Images()
    reader, writer = schemes.source(parse("ipfs://a/b"), policy), schemes.target(parse("ipfs://a/b"), policy)
    assert type(reader).__name__ == type(writer).__name__ == "Both"
    assert reader.policy is policy
    assert "ipfs" in schemes.known_sources()
    assert "ipfs" in schemes.known_targets()


def test_one_that_only_reads_is_no_target(installed):
    assert type(schemes.source(parse("cdrom://a/b"), Images())).__name__ == "Reader"
    with pytest.raises(BadRequest, match=r"cdrom.*saved to.*ipfs"):
        schemes.target(parse("cdrom://a/b"), Images())
    assert "cdrom" in schemes.known_sources()
    assert "cdrom" not in schemes.known_targets()


def test_what_is_here_is_not_replaced(installed):
    assert isinstance(schemes.source(parse("file:///a"), Images()), Files)
    assert isinstance(schemes.target(parse("file:///a"), Images()), Files)
    with pytest.raises(BadRequest, match="saved to"):
        schemes.target(parse("salt://a"), Images())


@pytest.mark.parametrize("scheme", ["broken", "gone"])
def test_a_package_that_cannot_be_loaded_is_named_and_harms_no_other(installed, scheme):
    with pytest.raises(Refused, match=r"cannot be loaded.*Mend or remove") as refused:
        schemes.source(parse(f"{scheme}://a"), Images())
    assert refused.value.http_status == 422
    assert scheme not in schemes.known_sources()
    assert "ipfs" in schemes.known_sources()


def test_without_the_package_the_scheme_is_unknown():
    with pytest.raises(BadRequest, match=r"'ipfs'.*unknown.*file, http, https, s3, salt, sftp"):
        schemes.source(parse("ipfs://a/b"), Images())


def test_the_packages_are_not_looked_for_where_nobody_asks_for_them(monkeypatch):
    def never(**_asked):
        raise AssertionError

    monkeypatch.setattr("importlib.metadata.entry_points", never)
    schemes.source(parse("file:///a"), Images())
    with pytest.raises(AssertionError):
        schemes.source(parse("ipfs://a"), Images())
