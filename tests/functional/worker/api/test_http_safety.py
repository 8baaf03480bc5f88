"""The worker API as a real server, against malicious callers."""

import hashlib
import json
import logging
import re
import socket
import ssl
from contextlib import ExitStack, suppress
from unittest import SkipTest

import httpx2
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import Phase as Part
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from tests.functional.worker.serving import delete, get, post, process, serving
from tests.lib.support import PATIENCE_S, self_signed

CONFORM = [content_type_conformance, response_schema_conformance, status_code_conformance]
ALL = {"Authorization": "Bearer all"}
NAMED = {507, 502, 504}
"""5xx that the contract has for what no bug is: no room, an image's server, a time limit."""


@pytest.fixture(scope="module")
def url(worker_api):
    return worker_api


@pytest.fixture(scope="module")
def deaf(tmp_path_factory):
    """A worker whose libvirt does not answer."""
    with process(tmp_path_factory.mktemp("deaf"), "qemu+unix:///system?socket=/nonexistent/socket") as url:
        yield url


def connect(url):
    host, port = re.fullmatch(r"http://(.*):(\d+)", url).groups()
    return socket.create_connection((host, int(port)), timeout=30)


def head(url, *lines, length=None):
    host = url.removeprefix("http://")
    lines = ("POST /vmachines/status HTTP/1.1", f"Host: {host}", "Authorization: Bearer all", *lines)
    return "\r\n".join((*lines, f"Content-Length: {length}" if length is not None else "", "")).encode()


def refused(answer, status):
    assert answer.status_code == status, answer.text
    body = answer.json()
    assert body.keys() == {"success", "message", "code"}
    assert body["success"] is False
    assert body["message"].endswith(".")
    assert answer.headers["cache-control"] == "no-store"
    return body


@pytest.mark.parametrize("form", ["params", "data", "json"])
def test_every_refusal_has_the_same_shape_through_each_form(url, deaf, bootchain, site, form):
    def call(verb, *, of=url, token="all", **parameters):
        send = get if form == "params" else post
        return send(f"{of}/vmachines/{verb}", headers={"Authorization": f"Bearer {token}"}, **{form: parameters})

    image = f"file://{bootchain('codes.raw', folder=site.images, variant='spin')}"
    refused(call("status"), 400)
    refused(call("status", name="x", token="guess"), 401)
    refused(call("destroy", name="x", token="reader"), 403)
    refused(call("start", name="x", hda_image="file:///etc/shadow"), 403)
    refused(call("status", name="nobody"), 404)
    refused(call("nonsense", name="nobody"), 404)
    refused(call("start", name="x", hda_image="blank:1G", hypervisor="xen"), 422)
    refused(call("start", name="x", hda_image="blank:1G", mem_size=10**7), 507)
    listed = call("list", of=deaf)  # it has no VMs, which could look gone
    assert "does not answer" in listed.json()["capacity"]["drivers"]["kvm"]["problem"], listed.text
    if form != "params":
        refused(call("start", name="y" * 70_000, hda_image="blank:1G"), 413)
    assert call("start", name=f"codes-{form}", hda_image=image, mem_size=32).json()["success"]
    refused(call("start", name=f"codes-{form}", hda_image=image, mem_size=64), 409)
    assert call("destroy", name=f"codes-{form}").json()["success"]


def test_body_without_a_length_is_not_read_to_its_end(url):
    answer = post(
        f"{url}/vmachines/status",
        content=(b" " * 1000 for _ in range(100)),
        headers={**ALL, "Content-Type": "application/json"},
    )
    refused(answer, 413)
    answer = post(
        f"{url}/vmachines/status",
        content=iter([b'{"name"', b': "nobody"}']),
        headers={**ALL, "Content-Type": "application/json"},
    )
    refused(answer, 404)


@pytest.mark.parametrize(
    "body", ["[" * 60_000, '{"a":' * 12_000, '{"name": "\\ud800"}', "\xff", "nul", '{"uuid": {}}', "{}"]
)
def test_json_that_is_meant_to_harm(url, body):
    content = body.encode("latin-1")
    answer = post(f"{url}/vmachines/status", content=content, headers={**ALL, "Content-Type": "application/json"})
    refused(answer, 400)


def test_unknown_path_or_method_is_refused(url):
    refused(get(f"{url}/nothing", headers=ALL), 404)
    refused(get(f"{url}/vmachines/", headers=ALL), 404)
    refused(delete(f"{url}/vmachines/list", headers=ALL), 405)
    refused(get(f"{url}/static/../auth.py", headers=ALL), 404)
    refused(get(f"{url}/static/%2e%2e/auth.py", headers=ALL), 404)


def test_more_calls_than_a_token_may_make(site, modules):
    patient = {"headers": ALL, "timeout": PATIENCE_S}
    with serving(site, modules, calls_per_s=0.001) as url, httpx2.Client(base_url=url, **patient) as http:
        answers = [http.get("/vmachines/version") for _ in range(10)]
        assert {answer.status_code for answer in answers} == {200, 429}
        late = next(answer for answer in answers if answer.status_code == 429)
        assert refused(late, 429)["code"] == "too_many_requests"
        assert late.headers["retry-after"]
        # Others go on, and guessing is bounded too.
        assert http.get("/vmachines/version", headers={"Authorization": "Bearer reader"}).status_code == 200
        guesses = [http.get("/vmachines/version", headers={"Authorization": f"Bearer {n}"}) for n in range(10)]
        assert {answer.status_code for answer in guesses} == {401, 429}
        assert http.get("/healthz").status_code == 200


def test_removed_token_ends_at_once(site, modules, tmp_path):
    line = f"{hashlib.sha256(b'all').hexdigest()} {{}} me\n".format
    tokens = tmp_path / "tokens"
    tokens.write_text(line("read,operate"))
    with serving(site, modules, tokens_file=tokens) as url:

        def status(verb):
            return get(f"{url}/vmachines/{verb}", params={"uri": "file:/x"}, headers=ALL).status_code

        def version():
            return get(f"{url}/vmachines/version", headers=ALL).status_code

        assert (version(), status("cache_pin")) == (200, 404)
        tokens.write_text(line("read"))
        assert (version(), status("cache_pin")) == (200, 403)
        tokens.write_text("not a token\n")  # in doubt none counts
        assert version() == 401
        tokens.write_text(line("read"))
        assert version() == 200
        tokens.unlink()
        assert version() == 401


def test_token_removed_while_its_request_arrives_ends_it(site, modules, tmp_path):
    tokens = tmp_path / "tokens"
    tokens.write_text(f"{hashlib.sha256(b'all').hexdigest()} read me\n")
    body = b'{"name": "nobody"}'
    with serving(site, modules, tokens_file=tokens) as url, connect(url) as one:
        one.sendall(head(url, "Content-Type: application/json", length=len(body)) + b"\r\n" + body[:5])
        assert get(f"{url}/healthz").status_code == 200  # the server has read the first part, or will read all at once
        tokens.write_text("")
        one.sendall(body[5:])
        assert b" 401 " in one.recv(100)


def drip(url, number):
    """No byte; half a head; a head with a missing body, refused before the body and not."""
    kinds = (b"", b"GET / HT", head(url, length=900) + b"{", b"POST /x HTTP/1.1\r\nContent-Length: 9\r\n\r\n")
    one = connect(url)
    with suppress(OSError):  # it may have been cut off before it said anything
        one.sendall(kinds[number % len(kinds)])
    return one


def is_cut_off(one):
    with suppress(ConnectionResetError):
        while one.recv(4096):
            pass
    return True


def test_unfinished_requests_block_no_other(site, modules):
    with serving(site, modules, receive_timeout_s=PATIENCE_S, connections=20) as url, ExitStack() as held:
        drips = []
        for number in range(60):
            drips.append(held.enter_context(drip(url, number)))
            assert get(f"{url}/vmachines/version", headers=ALL).status_code == 200
        assert all(is_cut_off(one) for one in drips[:30])  # those that have kept it back longest


def test_requests_that_never_arrive_are_cut_off(site, modules):
    with serving(site, modules, receive_timeout_s=1.0) as url, ExitStack() as held:
        assert all(is_cut_off(one) for one in [held.enter_context(drip(url, number)) for number in range(20)])


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    """For loopback, signed by itself, and its key."""
    return self_signed(tmp_path_factory.mktemp("tls"))


def test_over_tls_the_same_bounds_hold(site, modules, certificate):
    pair = dict(zip(("tls_cert", "tls_key"), certificate, strict=True))
    trusting = ssl.create_default_context(cafile=certificate[0])
    with serving(site, modules, **pair) as url:
        secure = url.replace("http", "https")
        assert get(f"{secure}/vmachines/list", headers=ALL, verify=trusting).json()["success"]
        refused(post(f"{secure}/vmachines/list", content=b"x" * 70_000, headers=ALL, verify=trusting), 413)
        with connect(url) as plain, suppress(OSError):
            plain.sendall(head(url, length=0))
            assert b"success" not in plain.recv(4096)
    with ExitStack() as held:
        raw = held.enter_context(connect(held.enter_context(serving(site, modules, receive_timeout_s=1.0, **pair))))
        with suppress(OSError):
            slow = held.enter_context(trusting.wrap_socket(raw, server_hostname="127.0.0.1"))
            slow.sendall(b"GET / HT")
            assert slow.recv(1) == b""


def test_api_refuses_to_start_unprotected(tmp_path):
    with pytest.raises(AssertionError, match="without TLS"), process(tmp_path, "test:///default", host="0.0.0.0"):
        pass


def test_each_call_is_written_down_without_secrets(url, caplog):
    caplog.set_level(logging.INFO, logger="saltern.api")
    secret = "hunter2-canary"
    get(f"{url}/vmachines/status", params={"name": "a\nb"}, headers=ALL)
    get(f"{url}/vmachines/destroy", params={"name": "x"}, headers={"Authorization": "Bearer reader"})
    get(f"{url}/vmachines/list", headers={"Authorization": f"Bearer {secret}"})
    image = f"http://me:{secret}@store.example/a.raw"
    post(f"{url}/vmachines/start", json={"name": "x", "hda_image": image, "hda_save_to": image}, headers=ALL)
    gone = {"verb": "destroy", "uuid": "6d6c7f0e-0000-4000-8000-00000000fffd", "generation": 1}
    lost = {"verb": "suspend", "uuid": "6d6c7f0e-0000-4000-8000-00000000fffc", "generation": 1}
    post(f"{url}/vmachines/apply", json={"actions": [gone, lost]}, headers=ALL)
    lines = [json.loads(each.message.removeprefix("audit ")) for each in caplog.records if "audit" in each.message]
    assert [(one["verb"], one["vm"], one["by"], one["status"]) for one in lines] == [
        ("status", "a\nb", "me", 400),
        ("destroy", "", "looker", 403),
        ("list", "", "nobody", 401),
        ("start", "x", "me", 403),
        ("apply", "", "me", 404),
        ("apply destroy", gone["uuid"], "me", 200),
        ("apply suspend", lost["uuid"], "me", 404),
    ]
    assert all(one["from"] == "127.0.0.1" for one in lines)
    assert secret not in caplog.text
    assert "a\\nb" in caplog.text


def test_pages_need_nothing_from_elsewhere(url):
    for path in ("/", "/webui", "/docs"):
        page = get(f"{url}{path}")
        assert page.status_code == 200
        assert re.findall(r"(?:src|href)=\"(https?:|//)", page.text) == []
        assert "default-src 'none'" in page.headers["content-security-policy"]
        for linked in re.findall(r"(?:src|href)=\"(/[^\"]*)\"", page.text):
            assert get(f"{url}{linked}").status_code == 200


@pytest.fixture(scope="module")
def served_api(tmp_path_factory):
    """A worker over libvirt's own test driver, in which nothing can run."""
    with process(tmp_path_factory.mktemp("any"), "test:///default", calls_per_s=1e6) as url:
        yield url


@pytest.mark.parametrize("mode", GenerationMode)
def test_every_answer_is_a_documented_one(served_api, mode):
    schema = schemathesis.openapi.from_url(f"{served_api}/openapi.json")
    observed = set()
    for found in schema.get_all_operations():
        operation = found.ok()

        @given(case=operation.as_strategy(mode))
        @settings(max_examples=12, phases=[Part.generate], suppress_health_check=list(HealthCheck), database=None)
        def call(case):
            answer = case.call(base_url=served_api, headers={**case.headers, **ALL})
            observed.add(answer.status_code)
            assert answer.status_code < 500 or answer.status_code in NAMED, answer.text
            case.validate_response(answer, checks=CONFORM)

        with suppress(SkipTest, Unsatisfiable):  # without parameters no value can be wrong
            call()
    assert 400 in observed
