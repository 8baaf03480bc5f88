"""Stores that keep interrupted uploads: no partial disk stays under its name."""

import hashlib
import os
import socket
import threading
from contextlib import suppress

import pytest

from tests.lib.acceptor import Acceptor, in_thread
from tests.lib.support import PATIENCE_S
from worker_service.core.errors import TransferFailed
from worker_service.core.settings import ImagePolicy
from worker_service.transfer.http_put import Put
from worker_service.transfer.uri import parse

KEY = "6d6c7f0e-0000-4000-8000-000000000000-hda"
SIZE = 300_000


class Careless:
    """An HTTP store that keeps a partial upload under its name, and then does what a test sets.

    Attributes:
        keeps: how many bytes of the next PUT are kept; None: all.
        then: `cut` the connection, `stall`, or answer with this status.
        tag: how it tells one content from another: `strong`, `weak` or `none`.
        deletes: whether it takes DELETE.
    """

    def __init__(self):
        self.kept, self.said = {}, []
        self.keeps, self.then, self.tag, self.deletes = None, 201, "none", True
        self._over = threading.Event()
        listener = socket.create_server(("127.0.0.1", 0))
        self.host = f"127.0.0.1:{listener.getsockname()[1]}"
        self.uri = parse(f"http://{self.host}/a.qcow2")
        self._acceptor = Acceptor(listener, lambda connection: in_thread(self._one, connection))

    def _one(self, connection):
        with suppress(OSError, ValueError), connection, connection.makefile("rb") as file:
            method, path, _ = file.readline().decode().split()
            headers = {}
            while line := file.readline().strip():
                name, _, value = line.decode().partition(":")
                headers[name.lower()] = value.strip()
            self.said.append((method, headers))
            status, body, more = self._answer(method, path, headers, file)
            if status == "stall":
                self._over.wait(30)
            if isinstance(status, int):
                lines = "".join(f"{name}: {value}\r\n" for name, value in more.items())
                connection.sendall(f"HTTP/1.1 {status} X\r\nContent-Length: {len(body)}\r\n{lines}\r\n".encode() + body)

    def _answer(self, method, path, headers, file):
        there = self.kept.get(path)
        expected = headers.get("if-match")
        if (expected and expected != self._etag(there)) or ("if-none-match" in headers and there is not None):
            return 412, b"", {}
        if method == "PUT":
            length = int(headers["content-length"])
            keeps, then = length if self.keeps is None else self.keeps, self.then
            self.kept[path] = file.read(keeps)
            if then != "cut":
                file.read(length - keeps)
            return then, b"", self._tags(path)
        if method == "DELETE":
            if self.deletes:
                self.kept.pop(path, None)
            return (204 if self.deletes else 405), b"", {}
        return (404, b"", {}) if there is None else (200, there, self._tags(path))

    def _etag(self, data):
        return None if data is None or self.tag == "none" else f'"{hashlib.md5(data).hexdigest()}"'

    def _tags(self, path):
        etag = self._etag(self.kept.get(path))
        return {"ETag": etag if self.tag == "strong" else f"W/{etag}"} if etag else {}

    def close(self):
        self._over.set()
        self._acceptor.close()


@pytest.fixture
def store():
    made = Careless()
    yield made
    made.close()


@pytest.fixture
def disk(tmp_path):
    path = tmp_path / "hda.flat.qcow2"
    path.write_bytes(os.urandom(SIZE))
    return path


@pytest.fixture
def put(store):
    """Waits long for any answer, unless it is one that a store that stalls will not give."""
    limits = {"http_networks": ("127.0.0.0/8",), "save_hosts": ("127.0.0.1",)}
    hasty = Put(ImagePolicy(**limits, timeout_s=1))

    class Patient(Put):
        def _send(self, method, *request):
            given_up = method == "PUT" and store.then == "stall"
            return hasty._send(method, *request) if given_up else super()._send(method, *request)

    return Patient(ImagePolicy(**limits, timeout_s=PATIENCE_S))


def save(put, store, disk, observed=None):
    return put.commit(store.uri, str(disk), digest(disk), observed, KEY, lambda done, total: None)


def digest(disk):
    return hashlib.sha256(disk.read_bytes()).hexdigest()


@pytest.mark.parametrize("tag", ["none", "weak", "strong"])
@pytest.mark.parametrize("then", [200, 500, "cut", "stall"])
@pytest.mark.parametrize("keeps", [0, 1, SIZE // 2, SIZE - 1])
def test_no_half_stays_and_the_next_try_succeeds(put, store, disk, keeps, then, tag):
    store.keeps, store.then, store.tag = keeps, then, tag
    with pytest.raises(TransferFailed) as failed:
        save(put, store, disk)
    assert failed.value.retry
    assert "removed" in str(failed.value)
    assert store.kept == {}
    store.keeps, store.then = None, 201
    assert save(put, store, disk) == store.uri.text
    assert store.kept == {"/a.qcow2": disk.read_bytes()}


@pytest.mark.parametrize("tag", ["none", "weak", "strong"])
def test_store_without_delete_gets_the_whole_over_the_part(put, store, disk, tag):
    store.keeps, store.deletes, store.tag = 1000, False, tag
    with pytest.raises(TransferFailed, match=r"405\)\. Remove it by hand"):
        save(put, store, disk)
    store.keeps = None
    assert save(put, store, disk) == store.uri.text
    assert store.kept == {"/a.qcow2": disk.read_bytes()}


@pytest.mark.parametrize("then", [500, "cut", "stall"])
def test_whole_disk_kept_despite_an_error_ends_the_save(put, store, disk, then):
    store.then = then
    with pytest.raises(TransferFailed) as failed:
        save(put, store, disk)
    assert "removed" not in str(failed.value)
    assert save(put, store, disk) == store.uri.text
    assert [method for method, _ in store.said].count("PUT") == 1


@pytest.mark.parametrize("tag", ["none", "weak"])
def test_possible_file_of_another_is_kept_and_reported(put, store, disk, tag):
    store.tag = tag
    answer = store._answer

    def faster(method, path, headers, file):
        answered = answer(method, path, headers, file)
        if method == "PUT":
            store.kept[path] = b"somebody was faster"
        return answered

    store._answer = faster
    with pytest.raises(TransferFailed, match="may belong to another user, and was left"):
        save(put, store, disk)
    assert store.kept == {"/a.qcow2": b"somebody was faster"}


@pytest.mark.parametrize(
    ("content", "stays"), [(b"", True), (b"other", True), ("half", False), ("whole", True), (None, True)]
)
def test_partial_upload_is_removed_at_the_end(put, store, disk, content, stays):
    """The server was away when a try broke off; or the VM was destroyed meanwhile."""
    data = {"half": disk.read_bytes()[:1000], "whole": disk.read_bytes()}.get(content, content)
    if data is not None:
        store.kept["/a.qcow2"] = data
    before = dict(store.kept)
    put.discard(store.uri, disk, KEY)
    assert store.kept == (before if stays else {})


def test_vm_that_never_came_to_saving_asks_no_store(put, store, tmp_path):
    put.discard(store.uri, tmp_path / "none", KEY)
    assert store.said == []
