"""Images behind a redirector that names another mirror each time. The mirrors have equal bytes and unequal ETags."""

import hashlib
import os
import re
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from werkzeug import Response

from tests.functional.worker.images.test_download import Shelf
from tests.lib.support import PATIENCE_S
from worker_service.core.errors import TransferFailed
from worker_service.images.cache import BeingFetched, Cache
from worker_service.steps import seed_files
from worker_service.transfer.uri import parse

BREAK = 3 << 20
"""Bytes after which a mirror breaks off."""


class Mirrors:
    """`/a` leads to `/m0/a`, `/m1/a` and so on, one after the other.

    Attributes:
        broken: the mirrors that break off in the middle.
        requests: the mirrors that were asked, with the byte at which their answers began.
        order: the next mirrors.
    """

    def __init__(self, httpserver, data):
        self.data, self.broken, self.requests, self.order = data, set(), [], list(range(100))
        self.url = httpserver.url_for("/a")
        httpserver.expect_request("/a").respond_with_handler(self.redirect)
        for number in range(4):
            httpserver.expect_request(f"/m{number}/a").respond_with_handler(self.serve)

    def redirect(self, _request):
        return Response(status=302, headers={"Location": f"/m{self.order.pop(0)}/a"})

    def serve(self, request):
        mirror, etag = int(request.path[2]), f'"{request.path}"'
        begin = 0
        if request.headers.get("If-Range") == etag:
            begin = int(request.headers["Range"].removeprefix("bytes=").rstrip("-"))
        self.requests.append((mirror, begin))
        body = self.data[begin:BREAK] if mirror in self.broken else self.data[begin:]
        headers = {"ETag": etag, "Content-Length": str(len(self.data) - begin)}
        if begin:
            headers["Content-Range"] = f"bytes {begin}-{len(self.data) - 1}/{len(self.data)}"
        return Response(iter([body]), status=206 if begin else 200, headers=headers)


@pytest.fixture
def mirrors(httpserver):
    return Mirrors(httpserver, os.urandom(510) + b"\x55\xaa" + os.urandom((4 << 20) - 512))


@pytest.fixture
def shelf(tmp_path):
    return Shelf(tmp_path)


def test_head_and_body_are_one_visit(shelf, mirrors):
    assert shelf.fetch(mirrors.url).path.read_bytes() == mirrors.data
    assert mirrors.requests == [(0, 0)]


def test_digest_makes_validators_irrelevant(shelf, mirrors):
    uri = f"{mirrors.url}#sha256={hashlib.sha256(mirrors.data).hexdigest()}"
    first = shelf.fetch(uri)
    assert shelf.fetch(uri) == first
    assert first.path.read_bytes() == mirrors.data
    assert mirrors.requests == [(0, 0)]


@pytest.mark.parametrize(
    ("order", "requests"),
    [
        ([0, 0], [(0, 0), (0, BREAK)]),  # under the same validator: it resumes
        ([0, 1], [(0, 0), (1, 0)]),
    ],
)
def test_resume_only_at_the_same_mirror(shelf, mirrors, order, requests):
    mirrors.order, mirrors.broken = order, {0}
    uri = f"{mirrors.url}#sha256={hashlib.sha256(mirrors.data).hexdigest()}"
    with pytest.raises(TransferFailed, match="broke off"):
        shelf.fetch(uri)
    mirrors.broken = set()
    assert shelf.fetch(uri).path.read_bytes() == mirrors.data
    assert mirrors.requests == requests
    assert shelf.leftovers() == set()


def test_documents_are_one_visit_too(shelf, mirrors):
    mirrors.data = b"#cloud-config\n{}\n"
    assert seed_files.fetched(parse(mirrors.url), shelf.policy.for_owner("")) == mirrors.data
    assert mirrors.requests == [(0, 0)]


def test_same_digest_is_fetched_once_at_a_time(shelf, mirrors, httpserver):
    """The second fetch waits for the first, although its URI is another one and each mirror has another ETag."""
    waits = threading.Event()
    serve, content = mirrors.serve, mirrors.data

    def slowly(request):
        assert waits.wait(PATIENCE_S)
        return serve(request)

    httpserver.clear()
    httpserver.expect_request("/a").respond_with_handler(mirrors.redirect)
    httpserver.expect_request(re.compile("/m./a")).respond_with_handler(slowly)
    uris = [f"{mirrors.url}?t={number}#sha256={hashlib.sha256(content).hexdigest()}" for number in range(2)]
    with ThreadPoolExecutor() as pool:
        fetches = [pool.submit(shelf.fetch, uri, "disk", lambda done, _total: done or waits.set()) for uri in uris]
        assert len({fetch.result(PATIENCE_S).digest for fetch in fetches}) == 1
    assert len(mirrors.requests) == 1
    assert not shelf.cache.are_being_fetched(map(parse, uris))


def test_slow_source_of_an_owner_blocks_no_other(shelf, mirrors):
    """A digest is no secret: whoever names that of a popular image must not hold up all others."""
    uri = parse(f"{mirrors.url}#sha256={hashlib.sha256(mirrors.data).hexdigest()}")
    elsewhere = parse(f"{mirrors.url}?slow#sha256={uri.sha256}")
    ann, bob = (Cache(shelf.data, shelf.policy.for_owner(owner)) for owner in ("ann", "bob"))
    with ann._single_flight(elsewhere, lambda: None, 0):
        assert ann.are_being_fetched([uri])
        assert not bob.are_being_fetched([uri])
        assert bob.fetch(uri, "disk", lambda done, total: None).digest == uri.sha256
        with pytest.raises(BeingFetched):
            ann.fetch(uri, "disk", lambda done, total: None, patience_s=0)
