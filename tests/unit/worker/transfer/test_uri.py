"""Options in a target URI: which are allowed, and which are refused."""

import pytest

from worker_service.contract import SOURCE_SCHEMES, TARGET_SCHEMES
from worker_service.core.errors import BadRequest
from worker_service.core.settings import ImagePolicy
from worker_service.transfer import registry
from worker_service.transfer.registry import check_target
from worker_service.transfer.uri import Form, parse, place, save_form


@pytest.mark.parametrize(
    ("query", "form", "suffix"),
    [
        ("", Form("qcow2"), "qcow2"),
        ("?format=qcow2", Form("qcow2"), "qcow2"),
        ("?format=raw", Form("raw"), "raw"),
        ("?compress=zstd", Form("qcow2", "zstd"), "qcow2"),
        ("?format=raw&compress=zstd", Form("raw", "zstd"), "raw.zst"),
        ("?compress=zstd&format=raw", Form("raw", "zstd"), "raw.zst"),
    ],
)
def test_target_form_is_parsed(query, form, suffix):
    uri = parse(f"file:///srv/a.img{query}")
    assert save_form(uri) == form
    assert form.suffix == suffix
    assert uri.path == "/srv/a.img"
    assert place(uri).text == "file:///srv/a.img"


@pytest.mark.parametrize(
    "query",
    [
        "format=vmdk",
        "format=",
        "format",
        "compress=gzip",
        "compress=",
        "compression=zstd",
        "format=raw&format=qcow2",
        "format=raw&owner=me",
        "FORMAT=raw",
        "&",
    ],
)
@pytest.mark.parametrize("scheme", ["file", "http"])
def test_unknown_options_are_refused_with_the_known_ones(query, scheme):
    with pytest.raises(BadRequest, match=r"\?format=raw"):
        check_target(parse(f"{scheme}://localhost/srv/a?{query}"), ImagePolicy(write_roots=("/srv",)))


def test_query_of_a_source_is_its_own():
    assert parse("https://host/a?version=3").text == "https://host/a?version=3"


def test_schemes_are_those_of_the_contract():
    """Masters list them to users as the sources of images, so neither list may grow alone."""
    assert (tuple(registry._SOURCES), tuple(registry._TARGETS)) == (SOURCE_SCHEMES, TARGET_SCHEMES)
