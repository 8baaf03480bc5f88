"""Both profiles of a real Salt master: no way of the master service leads past the gate, and the operator keeps `salt`.

`dedicated` is the stack of all tests. `shared` is a second one beside it, without the blacklist.
"""

import json
import shutil
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path

import pytest
import yaml

from devstack import http
from devstack.config import API_ACCOUNT, salt_login
from devstack.layout import PYTHON, Layout, Ports
from devstack.stack import Stack
from tests.integration.test_salt_account import login, send
from tests.lib.support import PATIENCE_S, end_stack

NONCE = "0123456789abcdef" * 2
PROFILES = ("dedicated", "shared")


@pytest.fixture(scope="module")
def shared():
    """A stack whose Salt master also serves the site."""
    var = Path(tempfile.mkdtemp(prefix="saltern-test-", dir="/var/tmp"))
    var.chmod(0o755)
    name = f"shared-{var.name.removeprefix('saltern-test-')}"
    made = Stack(Layout(var=var, ports=Ports.free(), minion=name, salt_profile="shared"))
    try:
        made.start()
        yield made
    finally:
        end_stack(made)
        shutil.rmtree(var)
        shutil.rmtree(made.layout.data_root, ignore_errors=True)


@pytest.fixture(scope="module", params=PROFILES)
def profiled(request, stack):
    """The stack of a profile, and the profile."""
    return (stack if request.param == "dedicated" else request.getfixturevalue("shared")), request.param


def lists(witness):
    """What an account of Salt that may call some functions tries, to run another one."""
    run = [f"touch {witness}"]
    for fun, arg in (
        ("cmd.run", run),
        (["saltutil.find_job", "cmd.run"], [["1"], run]),
        (["cmd.run", "saltutil.find_job"], [run, ["1"]]),
        (["vmachines.version", "cmd.run"], [[], run]),
        ("saltutil.find_job,cmd.run", [["1"], run]),
        ("vmachines.version_evil", []),
        ("state.apply", []),
        ("saltutil.sync_all", []),
    ):
        yield {"fun": fun, "arg": arg}


REQUEST = """
    import json, sys
    import salt.channel.client, salt.config
    opts = salt.config.client_config(sys.argv[1])
    opts["master_uri"] = f"tcp://127.0.0.1:{opts['ret_port']}"
    with salt.channel.client.ReqChannel.factory(opts, crypt="clear", master_uri=opts["master_uri"]) as channel:
        for load in json.load(sys.stdin):
            load = {"cmd": "publish", "user": "root", "key": "", "tgt_type": "glob", "ret": "", "jid": "", **load}
            answer = channel.send(load, timeout=60)
            print(json.dumps(answer, default=repr))
"""


def publish(stack, loads):
    """Send these to the port of the Salt master that all minions reach, as its own client does."""
    argv = [sys.executable, "-c", textwrap.dedent(REQUEST), stack.layout.salt / "master"]
    done = subprocess.run(
        argv, input=json.dumps(loads), text=True, capture_output=True, check=False, timeout=PATIENCE_S
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_no_list_of_functions_passes_for_the_master_service(profiled, tmp_path):
    """The master service has the gate's socket, its own token, and the ports that everybody has. It has no password."""
    stack, _ = profiled
    witness = tmp_path / "witness"
    token = stack.layout.admin_token.read_text().strip()
    credentials = [{"username": API_ACCOUNT, "password": guess, "eauth": "sharedsecret"} for guess in (token, "")]

    attacks = [
        {"workers": [stack.layout.minion], "kwarg": {}, "nonce": NONCE, **each, **more}
        for each in lists(witness)
        for more in ({}, {"fun": "vmachines.version", "kwarg": each})
    ]
    for path, more in (("/publish", {}), ("/call", {"timeout_s": 30})):
        answers = [
            http.call_unix(stack.layout.gate_socket, "POST", path, body=attack | more, timeout_s=PATIENCE_S)
            for attack in attacks
        ]
        assert {answer.status for answer in answers} == {400}

    for given in credentials:
        assert login(stack, **given).status == 401
        low = [{"client": "local", "tgt": stack.layout.minion, **each, **given} for each in lists(witness)]
        answers = [
            http.call("POST", stack.layout.cherrypy_url + path, body=[each], timeout_s=PATIENCE_S)
            for path in ("/", "/run")
            for each in low
        ]
        assert {answer.status for answer in answers} == {401}

    loads = [
        {"tgt": stack.layout.minion, **each, "kwargs": given} for given in [*credentials, {}] for each in lists(witness)
    ]
    answers = publish(stack, loads)
    assert len(answers) == len(loads)
    assert [answer for answer in answers if "jid" in str(answer)] == []
    assert not witness.exists()


def test_password_is_confined_by_the_blacklist_alone(profiled):
    """What docs/security.md says of a stolen password: it is worth a list of functions, or root on each minion."""
    stack, profile = profiled
    token = login(stack).body["return"][0]["token"]
    alone = send(stack, token, fun="test.echo", arg=["reached"])
    listed = send(stack, token, fun=["saltutil.find_job", "test.echo"], arg=[["1"], ["reached"]])
    assert alone.status == 401
    assert (listed.status, "reached" in str(listed.body)) == ((401, False) if profile == "dedicated" else (200, True))
    # The same at the port that all minions reach.
    loads = [
        {"tgt": stack.layout.minion, "fun": fun, "arg": arg, "kwargs": salt_login(stack.layout)}
        for fun, arg in (("vmachines.version", []), (["saltutil.find_job", "test.echo"], [["1"], ["reached"]]))
    ]
    assert ["jid" in str(answer) for answer in publish(stack, loads)] == [True, profile == "shared"]


def run(stack, program, *words):
    argv = [str(PYTHON.with_name(program)), "-c", str(stack.layout.salt), *words]
    return subprocess.run(argv, capture_output=True, text=True, check=False, timeout=PATIENCE_S)


def test_shared_salt_master_leaves_the_operator_salt(profiled):
    stack, profile = profiled
    minion = stack.layout.minion
    sls = {"never": {"vmachines.absent": []}}
    orchestration = {"apply": {"salt.state": [{"tgt": minion}, {"sls": ["profiled"]}]}}
    (stack.layout.files / "profiled.sls").write_text(yaml.safe_dump(sls))
    (stack.layout.files / "orchestrated.sls").write_text(yaml.safe_dump(orchestration))
    for words, expected in (
        (("sys.doc", "vmachines.version"), "version of Saltern on this worker"),
        (("state.apply", "profiled"), "Succeeded: 1"),
        (("cmd.run", "echo $((6 * 7))"), "42"),
    ):
        done = run(stack, "salt", minion, *words)
        if profile == "shared":
            assert (done.returncode, expected in done.stdout) == (0, True), done
        else:
            assert "Authorization error occurred" in done.stdout + done.stderr, done
    assert run(stack, "salt", minion, "vmachines.version").returncode == 0
    done = run(stack, "salt-run", "state.orchestrate", "orchestrated")
    assert (done.returncode == 0) is (profile == "shared"), done
    assert ("Succeeded: 1" in done.stdout) is (profile == "shared"), done
    # What a dedicated Salt master leaves to root.
    assert "Succeeded: 1" in run(stack, "salt-call", "state.apply", "profiled").stdout


def test_doctor_says_which_profile_is_in_force(profiled):
    stack, profile = profiled
    assert stack.api("GET", "/api/v1/salt").body == {"chosen": profile, "in_force": profile}
    argv = [PYTHON.with_name("saltern"), "--url", stack.layout.master_url, "--token-file", stack.layout.admin_token]
    done = subprocess.run([*argv, "doctor", "-o", "json"], capture_output=True, text=True, check=False, timeout=60)
    (finding,) = [each for each in json.loads(done.stdout) if each["part"] == "salt master"]
    assert (finding["ok"], f"profile {profile}" in finding["message"]) == (True, True)
