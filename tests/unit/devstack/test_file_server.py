"""The stack's image store over HTTP: folders, conditions, and files that are whole or not there."""

import http.client
import socket
import threading

import pytest

from devstack import file_server


@pytest.fixture
def store(tmp_path):
    for name in ("images", "saved"):
        (tmp_path / name).mkdir()
    (tmp_path / "images/demo.qcow2").write_bytes(b"image")
    (tmp_path / "secret").write_bytes(b"secret")
    server = file_server.serve(0, tmp_path / "images", tmp_path / "saved")
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def ask(store, method, path, body=None, **headers):
    client = http.client.HTTPConnection(*store.server_address, timeout=60)
    client.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
    answer = client.getresponse()
    found = answer.status, answer.read(), answer.headers["ETag"]
    client.close()
    return found


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/", 200),
        ("GET", "/images/demo.qcow2", 200),
        ("GET", "/images/absent", 404),
        ("GET", "/images/", 404),
        ("GET", "/images/../secret", 404),
        ("GET", "/images/%2e%2e%2fsecret", 404),
        ("GET", "/other/demo.qcow2", 404),
        ("PUT", "/images/demo.qcow2", 403),
        ("PUT", "/saved/.part", 403),
        ("PUT", "/saved/a/b", 403),
        ("PUT", "/saved/a.qcow2", 201),
        ("DELETE", "/saved/a.qcow2", 501),
    ],
)
def test_each_folder_has_what_may_be_done_there(store, method, path, status):
    assert ask(store, method, path, b"new" if method == "PUT" else None)[0] == status


def test_file_is_replaced_only_as_its_writer_knew_it(store, tmp_path):
    assert ask(store, "PUT", "/saved/a.qcow2", b"one", If_None_Match="*")[0] == 201
    status, body, etag = ask(store, "GET", "/saved/a.qcow2")
    assert (status, body) == (200, b"one")
    assert ask(store, "PUT", "/saved/a.qcow2", b"two", If_None_Match="*")[0] == 412
    assert ask(store, "PUT", "/saved/a.qcow2", b"two", If_Match='"other"')[0] == 412
    assert ask(store, "PUT", "/saved/a.qcow2", b"two", If_Match=etag)[0] == 201
    assert ask(store, "PUT", "/saved/a.qcow2", b"three", If_Match=etag)[0] == 412
    assert {path.name: path.read_bytes() for path in (tmp_path / "saved").iterdir()} == {"a.qcow2": b"two"}


def test_half_a_body_leaves_no_file(store, tmp_path):
    with socket.create_connection(store.server_address) as client:
        client.sendall(b"PUT /saved/a.qcow2 HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\nhalf")
        client.shutdown(socket.SHUT_WR)
        assert client.recv(1) == b""
    assert list((tmp_path / "saved").iterdir()) == []
