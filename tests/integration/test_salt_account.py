"""The account of the master service at a real salt-api: it may do what it must, and nothing else."""

import json
import re
import subprocess
import sys
import threading
import urllib.parse
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial
from http import client as http_client
from pathlib import Path

import pytest

from devstack import http
from devstack.config import salt_login
from tests.lib.support import PATIENCE_S


def login(stack, **other):
    """Log in as the confined account, with `other` instead of the right credentials; the Reply."""
    return http.call(
        "POST", f"{stack.layout.cherrypy_url}/login", body={**salt_login(stack.layout), **other}, timeout_s=60
    )


def send(stack, token, **low):
    """Send one request to salt-api; the Reply."""
    request = {"client": "local", "tgt": stack.layout.minion, "timeout": 60, **low}
    url = f"{stack.layout.cherrypy_url}/"
    return http.call("POST", url, headers={"X-Auth-Token": token}, body=[request], timeout_s=PATIENCE_S)


@pytest.fixture(scope="module")
def publish(stack):
    """Send one request to salt-api as the confined account; the Reply."""
    return partial(send, stack, login(stack).body["return"][0]["token"])


def test_salt_api_takes_no_larger_request_than_its_setting_says(stack):
    """Alone, `max_request_body_size` does nothing in Salt 3008.3."""
    # The head alone: salt-api refuses by the length, and closes the connection before a body would be sent.
    address = urllib.parse.urlsplit(stack.layout.cherrypy_url)
    with closing(http_client.HTTPConnection(address.hostname, address.port, timeout=60)) as connection:
        connection.putrequest("POST", "/login")
        connection.putheader("Content-Type", "application/json")
        connection.putheader("Content-Length", str((1 << 20) + 1))
        connection.endheaders()
        assert connection.getresponse().status == 413
    assert login(stack, more="x" * (1 << 19)).ok


@pytest.mark.parametrize("function", ["vmachines.version", "vmachines.list", "test.ping"])
def test_needed_functions_are_allowed(publish, stack, function):
    reply = publish(fun=function)
    assert reply.status == 200
    assert isinstance(reply.body["return"][0][stack.layout.minion], dict | bool)


def test_needed_functions_are_allowed_without_waiting(publish, stack):
    reply = publish(client="local_async", fun="vmachines.version")
    assert reply.body["return"][0]["minions"] == [stack.layout.minion]


@pytest.mark.parametrize(
    "low",
    [
        {"fun": "cmd.run", "arg": ["id"]},
        {"fun": "vmachines.start_evil"},
        {"fun": "state.apply"},
        {"fun": "saltutil.sync_all"},
        {"fun": ["saltutil.find_job", "cmd.run"], "arg": [["1"], ["id"]]},
        {"fun": ["cmd.run", "saltutil.find_job"], "arg": [["id"], ["1"]]},
        {"fun": ["vmachines.version", "cmd.run"], "arg": [[], ["id"]]},
        {"fun": "saltutil.find_job,cmd.run", "arg": [["1"], ["id"]]},
        {"fun": ["saltutil.find_job", "cmd.run"], "arg": [["1"], ["id"]], "client": "local_async"},
    ],
    ids=str,
)
def test_other_calls_are_refused(publish, low):
    reply = publish(**low)
    assert reply.status == 401
    assert "uid=0" not in str(reply.body)


@pytest.mark.parametrize(
    "client", ["runner", "runner_async", "wheel", "wheel_async", "ssh", "local_batch", "local_subset"]
)
def test_runner_and_wheel_clients_are_closed(publish, client):
    assert publish(client=client, fun="key.list_all").status == 400


@pytest.mark.parametrize("wrong", [{"password": "wrong"}, {"eauth": "auto"}], ids=str)
def test_wrong_login_is_refused(stack, wrong):
    assert login(stack, **wrong).status == 401


@pytest.mark.parametrize("function", ["test.ping", "vmachines.version", "cmd.run"])
def test_another_name_with_the_same_secret_may_do_nothing(stack, function):
    """Salt's sharedsecret gives a token to any name, and external_auth decides what the token may do."""
    token = login(stack, username="root").body["return"][0]["token"]
    assert send(stack, token, fun=function).status == 401


def test_event_stream_survives_a_job(stack):
    """With signed messages it broke off at the first return of a job: their signatures are no JSON."""
    token = login(stack).body["return"][0]["token"]
    request = urllib.request.Request(f"{stack.layout.cherrypy_url}/events", headers={"X-Auth-Token": token})
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=PATIENCE_S) as stream:
        assert stream.readline().startswith(b"retry:")  # said once it listens to the bus
        (started,) = send(stack, token, client="local_async", fun="vmachines.version").body["return"]
        expected = f"tag: salt/job/{started['jid']}/ret/{stack.layout.minion}"
        assert expected in (line.decode().strip() for line in stream)
        assert stream.readline().startswith(b"data: {")


UNKNOWN = "a-worker-that-does-not-exist"
"""Salt refuses, or does not, before it looks for whom a command is: so nothing is ever run by this probe."""

ALLOWED = re.compile(
    r"vmachines\.(apply|list|status|start|modify|destroy|suspend|resume|shutdown|save_retry|screen|plan|version"
    r"|capabilities|cache(?:_clean|_prefetch|_pin|_unpin)?)|test\.ping|saltutil\.find_job"
)


@pytest.fixture(scope="module")
def functions(stack):
    """Every execution function that the worker's minion has loaded."""
    salt_call = Path(sys.executable).with_name("salt-call")
    command = [salt_call, "--local", "-c", stack.layout.salt, "--out=json", "sys.list_functions"]
    answer = json.loads(subprocess.run(command, check=True, capture_output=True, timeout=300).stdout)["local"]
    assert {"cmd.run", "state.apply", "vmachines.apply"} <= set(answer)
    return answer


def let_through(stack, lows):
    """Return for each request whether Salt accepts it. One login, a few parallel connections, each kept open."""
    url = urllib.parse.urlsplit(stack.layout.cherrypy_url)
    token = login(stack).body["return"][0]["token"]
    headers = {"X-Auth-Token": token, "Accept": "application/json", "Content-Type": "application/json"}
    local = threading.local()

    def ask(low):
        if not hasattr(local, "connection"):
            local.connection = http_client.HTTPConnection(url.hostname, url.port, timeout=60)
        body = json.dumps([{"client": "local_async", "tgt": UNKNOWN, **low}])
        local.connection.request("POST", "/", body, headers)
        response = local.connection.getresponse()
        response.read()
        assert response.status in (200, 401)
        return response.status == 200

    with ThreadPoolExecutor(6) as pool:
        return list(pool.map(ask, lows))


def probe(stack, names):
    """Each alone, and each in a list with one that is allowed, which is how an ACL alone was passed."""
    alone = let_through(stack, [{"fun": name} for name in names])
    listed = let_through(stack, [{"fun": ["saltutil.find_job", name], "arg": [["1"], []]} for name in names])
    allowed = {name for name in names if ALLOWED.fullmatch(name)}
    assert {name for name, taken in zip(names, alone, strict=True) if taken} == allowed
    assert {name for name, taken in zip(names, listed, strict=True) if taken} == allowed


def test_worker_functions_outside_the_account_are_refused(stack, functions):
    """All of ours, and one in 120 of the others: Salt takes a tenth of a second to refuse one."""
    ours = {name for name in functions if name.startswith(("vmachines.", "test.ping", "saltutil."))}
    probe(stack, sorted({*ours, *functions[::120], "cmd.run", "state.apply"}))


@pytest.mark.slow
def test_every_loaded_function_outside_the_account_is_refused(stack, functions):
    probe(stack, functions)
