"""Disks saved by HTTP PUT, to a real server that keeps, changes, corrupts or refuses them."""

import base64
import hashlib
import json
import os

import pytest
from werkzeug import Response

from worker_service.core.errors import Refused, SalternError, TransferFailed
from worker_service.core.settings import ImagePolicy
from worker_service.transfer.http_put import Put
from worker_service.transfer.uri import parse

KEY = "6d6c7f0e-0000-4000-8000-000000000000-hda"


class Shop:
    """A store with ETags and conditions, as S3 and its like have them."""

    def __init__(self, httpserver):
        self.kept = {}
        self.said = []
        self.spoil = lambda data: data
        self.after_put = lambda path: None
        self.etags = True
        self.host = f"{httpserver.host}:{httpserver.port}"
        self.url = httpserver.url_for("/disks/a.qcow2")
        httpserver.expect_request(_Any()).respond_with_handler(self.serve)

    def tag(self, path):
        return f'"{hashlib.md5(self.kept[path]).hexdigest()}"'

    def serve(self, request):
        path = request.path
        self.said.append((request.method, path, dict(request.headers)))
        if request.method == "PUT":
            return self.put(request, path)
        if path not in self.kept:
            return Response(status=404)
        if request.method == "DELETE":
            if request.headers["If-Match"] != self.tag(path):
                return Response(status=412)
            del self.kept[path]
            return Response(status=204)
        return Response(self.kept[path], headers={"ETag": self.tag(path)} if self.etags else {})

    def put(self, request, path):
        there = path in self.kept
        match = request.headers.get("If-Match")
        if (request.headers.get("If-None-Match") == "*" and there) or (match and match != self.tag(path)):
            return Response(status=412)
        self.kept[path] = self.spoil(request.get_data())
        answer = Response(status=204 if there else 201, headers={"ETag": self.tag(path)} if self.etags else {})
        self.after_put(path)
        return answer

    def puts(self):
        return [(path, headers) for method, path, headers in self.said if method == "PUT"]


class _Any(str):
    """Equal to each path: one handler serves them all."""

    __slots__ = ()
    __hash__ = str.__hash__

    def __eq__(self, other):
        return True


@pytest.fixture
def shop(httpserver):
    return Shop(httpserver)


@pytest.fixture
def put(shop):
    return Put(policy(shop))


@pytest.fixture
def disk(tmp_path):
    path = tmp_path / "hda.flat.qcow2"
    path.write_bytes(os.urandom(3 << 20))
    return path


def policy(shop, **changes):
    return ImagePolicy(**{"http_networks": ("127.0.0.0/8",), "save_hosts": (shop.host,), "timeout_s": 20, **changes})


def save(put, url, disk, observed=None, report=lambda done, total: None):
    uri, digest = parse(url), hashlib.sha256(disk.read_bytes()).hexdigest()
    token = put.stage(uri, disk, digest, KEY, report)
    return put.commit(uri, token, digest, observed, KEY, report)


def test_disk_is_sent_whole_with_its_digest_and_read_back(shop, put, disk):
    said = []
    saved = save(put, f"{shop.url}?format=raw", disk, report=lambda done, total: said.append((done, total)))
    assert saved == shop.url  # the options are none of its name
    assert shop.kept == {"/disks/a.qcow2": disk.read_bytes()}
    [(_path, headers)] = shop.puts()
    size = disk.stat().st_size
    digest = base64.b64encode(hashlib.sha256(disk.read_bytes()).digest()).decode()
    assert headers["Content-Length"] == str(size)
    assert "Transfer-Encoding" not in headers
    assert headers["Repr-Digest"] == f"sha-256=:{digest}:"
    assert headers["If-None-Match"] == "*"
    assert headers["Host"] == shop.host
    assert shop.said[-1][0] == "GET"
    assert said[-1] == (size, size)


def test_manifest_is_saved_beside_the_disk(shop, put, disk):
    put.note(save(put, shop.url, disk), json.dumps({"format": "qcow2"}).encode())
    assert json.loads(shop.kept["/disks/a.qcow2.manifest.json"]) == {"format": "qcow2"}


def test_known_target_is_replaced_conditionally(shop, put, disk):
    shop.kept["/disks/a.qcow2"] = b"old"
    observed = put.observe(parse(shop.url))
    assert observed == shop.tag("/disks/a.qcow2")
    assert save(put, shop.url, disk, observed) == shop.url
    assert shop.puts()[0][1]["If-Match"] == observed
    assert shop.kept == {"/disks/a.qcow2": disk.read_bytes()}


@pytest.mark.parametrize("observed", [None, '"something else"'])
def test_changed_target_is_kept_and_a_conflict_name_used(shop, put, disk, observed):
    shop.kept["/disks/a.qcow2"] = b"somebody else's work"
    saved = save(put, f"{shop.url}?compress=zstd", disk, observed)
    assert shop.kept["/disks/a.qcow2"] == b"somebody else's work"
    assert "/disks/a.conflict-" in saved
    assert saved.endswith(".qcow2")
    assert shop.kept[saved.partition(shop.host)[2]] == disk.read_bytes()
    assert save(put, shop.url, disk, observed) == saved  # after a crash before that was noted
    assert len(shop.kept) == 2


def test_target_without_etag_counts_as_changed(shop, put, disk):
    shop.kept["/disks/a.qcow2"], shop.etags = b"old", False
    saved = save(put, shop.url, disk, put.observe(parse(shop.url)))
    assert "conflict" in saved
    assert shop.kept["/disks/a.qcow2"] == b"old"


def test_concurrent_write_is_not_overwritten(shop, put, disk):
    def report(done, total):
        if 0 < done < total:  # the server has not got all of it, and so has not judged it yet
            shop.kept.setdefault("/disks/a.qcow2", b"in between")

    with pytest.raises(TransferFailed, match="changed during the upload") as failed:
        save(put, shop.url, disk, report=report)
    assert failed.value.retry
    assert shop.kept == {"/disks/a.qcow2": b"in between"}
    assert "conflict" in save(put, shop.url, disk)  # the next try


def test_saved_already_before_a_crash(shop, put, disk):
    save(put, shop.url, disk)
    assert save(put, shop.url, disk) == shop.url
    assert len(shop.puts()) == 1


@pytest.mark.parametrize("spoil", [lambda data: data[:-1], lambda data: b"x" + data[1:], lambda _data: b""])
def test_server_that_spoils_it_is_found_out(shop, put, disk, spoil):
    shop.spoil = spoil
    with pytest.raises(TransferFailed, match="reads back"):
        save(put, shop.url, disk)
    assert shop.kept == {}  # and the place is free for the next try
    shop.spoil = lambda data: data
    assert save(put, shop.url, disk) == shop.url


def test_only_own_uploads_are_removed(shop, put, disk):
    shop.after_put = lambda path: shop.kept.update({path: b"somebody was faster"})
    with pytest.raises(TransferFailed, match="reads back"):
        save(put, shop.url, disk)
    assert shop.kept == {"/disks/a.qcow2": b"somebody was faster"}


def test_interruption_leaves_nothing(shop, put, disk):
    def report(done, total):
        if done:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        save(put, shop.url, disk, report=report)
    assert shop.kept == {}
    assert put.discard(parse(shop.url), disk, KEY) is None


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_disk_is_not_sent_elsewhere(shop, put, disk, status):
    elsewhere = Response(status=status, headers={"Location": "http://169.254.169.254/a"})
    shop.put = lambda request, path: elsewhere
    with pytest.raises(Refused, match="follows no redirect"):
        save(put, shop.url, disk)


@pytest.mark.parametrize(("status", "retry"), [(403, False), (503, True), (507, True)])
def test_server_error_is_reported(shop, put, disk, status, retry):
    shop.put = lambda request, path: Response(status=status, headers={"Retry-After": "45"})
    with pytest.raises(TransferFailed, match=str(status)) as failed:
        save(put, shop.url, disk)
    assert failed.value.retry is retry
    assert failed.value.wait_s == (45 if retry else 0)


def test_only_allowed_hosts_and_addresses_are_used(shop, disk):
    for changes, word in (({"save_hosts": ()}, "save_hosts"), ({"http_networks": ()}, "http_networks")):
        with pytest.raises(SalternError, match=word):
            save(Put(policy(shop, **changes)), shop.url, disk)
    with pytest.raises(Refused, match="has a user in it"):
        save(Put(policy(shop)), shop.url.replace("http://", "http://me:geheim@"), disk)
    assert shop.said == []
