"""Schemes of installed packages, found by their entry points."""

import sys

import pytest

from worker_service.core.errors import BadRequest, Refused
from worker_service.core.settings import ImagePolicy
from worker_service.transfer import registry
from worker_service.transfer.file import Files
from worker_service.transfer.uri import parse

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
    """The files that `pip install` leaves of a package."""
    (tmp_path / "brought_schemes.py").write_text(PACKAGE)
    info = tmp_path / "brought_schemes-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: brought-schemes\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(ENTRIES)
    monkeypatch.syspath_prepend(tmp_path)
    yield
    sys.modules.pop("brought_schemes", None)


def test_package_brings_a_scheme(installed):
    policy = ImagePolicy()
    reader, writer = registry.source(parse("ipfs://a/b"), policy), registry.target(parse("ipfs://a/b"), policy)
    assert type(reader).__name__ == type(writer).__name__ == "Both"
    assert reader.policy is policy
    assert "ipfs" in registry.known_sources()
    assert "ipfs" in registry.known_targets()


def test_read_only_scheme_is_no_target(installed):
    assert type(registry.source(parse("cdrom://a/b"), ImagePolicy())).__name__ == "Reader"
    with pytest.raises(BadRequest, match=r"cdrom.*saved to.*ipfs"):
        registry.target(parse("cdrom://a/b"), ImagePolicy())
    assert "cdrom" in registry.known_sources()
    assert "cdrom" not in registry.known_targets()


def test_built_in_scheme_is_not_replaced(installed):
    assert isinstance(registry.source(parse("file:///a"), ImagePolicy()), Files)
    assert isinstance(registry.target(parse("file:///a"), ImagePolicy()), Files)
    with pytest.raises(BadRequest, match="saved to"):
        registry.target(parse("salt://a"), ImagePolicy())


@pytest.mark.parametrize("scheme", ["broken", "gone"])
def test_broken_package_is_named_and_affects_no_other(installed, scheme):
    with pytest.raises(Refused, match=r"cannot be loaded.*Repair or remove") as refused:
        registry.source(parse(f"{scheme}://a"), ImagePolicy())
    assert refused.value.http_status == 422
    assert scheme not in registry.known_sources()
    assert "ipfs" in registry.known_sources()


def test_scheme_without_its_package_is_unknown():
    with pytest.raises(BadRequest, match=r"'ipfs'.*unknown.*file, http, https, s3, salt, sftp"):
        registry.source(parse("ipfs://a/b"), ImagePolicy())


def test_packages_are_searched_only_when_needed(monkeypatch):
    def never(**_parameters):
        raise AssertionError

    monkeypatch.setattr("importlib.metadata.entry_points", never)
    registry.source(parse("file:///a"), ImagePolicy())
    with pytest.raises(AssertionError):
        registry.source(parse("ipfs://a"), ImagePolicy())
