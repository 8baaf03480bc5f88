"""The master service's account at salt-api does what it must, and nothing else: asked of the real Salt."""

import urllib.request
from functools import partial

import pytest

from devstack import http
from devstack.config import salt_login


def login(stack, **other):
    """Log in as the confined account, with `other` instead of the right credentials; the Reply."""
    return http.call("POST", f"{stack.layout.cherrypy_url}/login", body={**salt_login(stack.layout), **other})


def send(stack, token, **low):
    """Send one request to salt-api; the Reply."""
    request = {"client": "local", "tgt": stack.layout.minion, "timeout": 5, **low}
    url = f"{stack.layout.cherrypy_url}/"
    return http.call("POST", url, headers={"X-Auth-Token": token}, body=[request], timeout_s=30)


@pytest.fixture(scope="module")
def publish(stack):
    """Send one request to salt-api as the confined account; the Reply."""
    return partial(send, stack, login(stack).body["return"][0]["token"])


@pytest.mark.parametrize("function", ["vmachines.version", "vmachines.list", "test.ping"])
def test_allowed(publish, stack, function):
    reply = publish(fun=function)
    assert reply.status == 200
    assert isinstance(reply.body["return"][0][stack.layout.minion], dict | bool)


def test_allowed_without_waiting(publish, stack):
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
def test_refused(publish, low):
    reply = publish(**low)
    assert reply.status == 401
    assert "uid=0" not in str(reply.body)


@pytest.mark.parametrize(
    "client", ["runner", "runner_async", "wheel", "wheel_async", "ssh", "local_batch", "local_subset"]
)
def test_closed_doors(publish, client):
    assert publish(client=client, fun="key.list_all").status == 400


@pytest.mark.parametrize("wrong", [{"password": "wrong"}, {"eauth": "auto"}], ids=str)
def test_wrong_login(stack, wrong):
    assert login(stack, **wrong).status == 401


@pytest.mark.parametrize("function", ["test.ping", "vmachines.version", "cmd.run"])
def test_another_name_with_the_same_secret_may_do_nothing(stack, function):
    """Salt's sharedsecret gives a token to any name; what the token is good for is up to external_auth."""
    token = login(stack, username="root").body["return"][0]["token"]
    assert send(stack, token, fun=function).status == 401


def test_the_event_stream_survives_a_job(stack):
    """With signed messages it broke off at the first return of a job: their signatures are no JSON."""
    token = login(stack).body["return"][0]["token"]
    request = urllib.request.Request(f"{stack.layout.cherrypy_url}/events", headers={"X-Auth-Token": token})
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=30) as stream:
        assert stream.readline().startswith(b"retry:")  # said once it listens to the bus
        (started,) = send(stack, token, client="local_async", fun="vmachines.version").body["return"]
        wanted = f"tag: salt/job/{started['jid']}/ret/{stack.layout.minion}"
        assert wanted in (line.decode().strip() for line in stream)
        assert stream.readline().startswith(b"data: {")
