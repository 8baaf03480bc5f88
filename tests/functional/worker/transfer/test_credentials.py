"""Credentials of stores over HTTP: sent to that store alone."""

import base64
import re

import pytest
from werkzeug import Response

from worker_service.core.errors import Refused, TransferFailed
from worker_service.core.settings import BasicStore, BearerStore, ImagePolicy, OpenStore, QueryStore
from worker_service.images.cache import Cache
from worker_service.transfer.http import Http
from worker_service.transfer.http_put import Put
from worker_service.transfer.uri import parse

CANARY = "canary-7c1e"


class Gate:
    """A server that lets in who says the right word, and notes what everybody said."""

    def __init__(self, httpserver):
        self.said = []
        self.word = ""
        self.origin = f"http://{httpserver.host}:{httpserver.port}"
        httpserver.expect_request("/a.raw").respond_with_handler(self.serve)
        httpserver.expect_request("/away").respond_with_handler(self.away)

    def serve(self, request):
        self.said.append(request.headers.get("Authorization"))
        return Response(b"bytes", 200 if self.said[-1] == self.word else 401, headers={"ETag": '"v"'})

    def away(self, request):
        self.said.append(request.headers.get("Authorization"))
        port = request.host.rpartition(":")[2]
        return Response("", 302, headers={"Location": f"http://127.0.0.1:{port}/a.raw"})


@pytest.fixture
def gate(httpserver):
    return Gate(httpserver)


def secret_file(tmp_path, mode=0o600):
    path = tmp_path / "secret"
    path.write_text(f"{CANARY}\n")
    path.chmod(mode)
    return path


def policy(gate, store):
    return ImagePolicy(http_networks=("127.0.0.0/8", "::1/128"), stores={gate.origin: store}, timeout_s=20)


@pytest.mark.parametrize("kind", ["basic", "bearer"])
def test_credentials_let_in(gate, tmp_path, kind):
    path = secret_file(tmp_path)
    store = BasicStore(user="me", password_file=path) if kind == "basic" else BearerStore(token_file=path)
    pair = base64.b64encode(f"me:{CANARY}".encode()).decode()
    gate.word = f"Basic {pair}" if kind == "basic" else f"Bearer {CANARY}"
    uri = parse(f"{gate.origin}/a.raw")
    reader = Http(policy(gate, store))
    assert b"".join(reader.read(uri, 0, reader.head(uri))) == b"bytes"
    assert Put(policy(gate, store)).observe(uri) == '"v"'
    with pytest.raises(TransferFailed, match="401") as failure:
        Http(ImagePolicy(http_networks=("127.0.0.0/8", "::1/128"))).head(uri)
    assert failure.value.retry is False


def test_another_host_does_not_get_to_know(gate, tmp_path):
    reader = Http(policy(gate, BearerStore(token_file=secret_file(tmp_path))))
    with pytest.raises(TransferFailed, match="401") as failure:
        reader.head(parse(f"{gate.origin}/away"))
    assert gate.said == [f"Bearer {CANARY}", None]  # 127.0.0.1 is not localhost
    assert CANARY not in str(failure.value)


def test_secret_that_others_can_read_is_not_used(gate, tmp_path):
    with pytest.raises(Refused, match="chmod 600") as failure:
        Http(policy(gate, BearerStore(token_file=secret_file(tmp_path, 0o644)))).head(parse(f"{gate.origin}/a.raw"))
    assert CANARY not in str(failure.value)
    assert gate.said == []


def test_user_in_a_uri_is_refused_and_masked(gate):
    with pytest.raises(Refused, match="has a user in it") as failure:
        Http(ImagePolicy()).check(parse(f"http://me:{CANARY}@localhost/a.raw"))
    assert CANARY not in str(failure.value)


def test_signature_of_a_store_is_sent_to_its_folder_alone(httpserver, tmp_path, caplog):
    """It is no part of the URI: a new one makes no new image, and nothing shows it."""
    caplog.set_level("INFO")
    secret, queries = secret_file(tmp_path), []
    secret.write_text(f"?sv=1&word=%2F{CANARY}\n")

    def serve(request):
        queries.append((request.path, request.query_string.decode()))
        if request.path == "/signed/away":
            return Response(status=302, headers={"Location": "/elsewhere/a.raw"})
        return Response(b"bytes" * 1024, 404 if "none" in request.path else 200, headers={"ETag": '"v"'})

    httpserver.expect_request(re.compile("/.*")).respond_with_handler(serve)
    at = f"http://{httpserver.host}:{httpserver.port}"
    stores = {f"{at}/signed": QueryStore(query_file=secret), f"{at}/elsewhere": OpenStore()}
    rules = ImagePolicy(http_networks=("127.0.0.0/8", "::1/128"), stores=stores, timeout_s=20, reserve_mib=0)
    (tmp_path / "data").mkdir()
    shelf = Cache(tmp_path / "data", rules.for_owner(""))
    shelf.prepare()
    for query in ("", "?version=2"):
        shelf.fetch(parse(f"{at}/signed/a.raw{query}"), "data", lambda done, total: None)
    secret.write_text(f"sv=2&word=%2F{CANARY}")
    shelf.fetch(parse(f"{at}/signed/a.raw"), "data", lambda done, total: None)
    assert Http(rules).head(parse(f"{at}/signed/away")).size == 5120
    assert queries == [
        ("/signed/a.raw", f"sv=1&word=%2F{CANARY}"),
        ("/signed/a.raw", f"version=2&sv=1&word=%2F{CANARY}"),
        ("/signed/a.raw", f"sv=2&word=%2F{CANARY}"),
        ("/signed/away", f"sv=2&word=%2F{CANARY}"),
        ("/elsewhere/a.raw", ""),
    ]
    with pytest.raises(TransferFailed, match="/signed/none answered 404") as failure:
        Http(rules).head(parse(f"{at}/signed/none"))
    notes = "".join(path.read_text() for path in (tmp_path / "data").rglob("*.json"))
    lines = "".join(record.getMessage() for record in caplog.records if record.name != "werkzeug")
    assert CANARY not in f"{failure.value}{shelf.uris()}{shelf.entries()}{notes}{lines}"
    secret.chmod(0o644)
    with pytest.raises(Refused, match="chmod 600"):
        Http(rules).head(parse(f"{at}/signed/a.raw"))


# Folders of owners


class Folders:
    """A server that lets in who has the one token, and sends `/jump/…` to `/…`."""

    def __init__(self, httpserver):
        self.said = []
        self.origin = f"http://{httpserver.host}:{httpserver.port}"
        httpserver.expect_request(re.compile("/.*")).respond_with_handler(self.serve)

    def serve(self, request):
        self.said.append(request.path)
        if request.headers.get("Authorization") != f"Bearer {CANARY}":
            return Response(status=401)
        if request.path.startswith("/ann/jump/"):
            return Response(status=302, headers={"Location": request.path.removeprefix("/ann/jump")})
        return Response(b"bytes", headers={"ETag": '"v"'})


def test_token_of_a_store_opens_the_own_folder_only(httpserver, tmp_path):
    server, token = Folders(httpserver), secret_file(tmp_path)
    stores = {f"{server.origin}/{{owner}}/": BearerStore(token_file=token, save=True)}
    site = ImagePolicy(http_networks=("127.0.0.0/8",), stores=stores, timeout_s=20)
    ann, bob = Put(site.for_owner("ann")), Put(site.for_owner("bob"))
    assert bob.head(parse(f"{server.origin}/bob/a.raw")).validator == '"v"'
    before = len(server.said)
    for path in ("/bob/a.raw", "/ann/%2e%2e/bob/a.raw", "//bob/a.raw", "/ann/..%2Fbob/a.raw", "/a.raw"):
        for act in (ann.head, ann.observe, ann.manifest, lambda uri: ann.check(uri, write=True)):
            with pytest.raises(Refused, match="closed to the VMs of ann"):
                act(parse(f"{server.origin}{path}"))
    assert len(server.said) == before
    with pytest.raises(Refused, match="closed to the VMs of ann"):
        ann.head(parse(f"{server.origin}/ann/jump/bob/a.raw"))
    assert server.said[before:] == ["/ann/jump/bob/a.raw"]  # the redirect was not followed
    assert ann.head(parse(f"{server.origin}/ann/jump/ann/a.raw")).validator == '"v"'
    ann.check(parse(f"{server.origin}/ann/a.raw"), write=True)
