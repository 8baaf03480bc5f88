"""The gate at a real Salt: nothing that Salt's requests can say beyond ours gets through it, and only our events do."""

import itertools
import json
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import httpx2
import pytest

from devstack import http
from devstack.config import salt_login
from tests.lib.support import PATIENCE_S, eventually
from tests.unit.master.gate.test_requests import LOWSTATE

NONCE = "0123456789abcdef" * 2
CLIENTS = (
    "local local_async local_batch local_subset runner runner_async runner_sync wheel wheel_async wheel_sync ssh "
    "ssh_async run caller"
)


def ask(stack, path, body, method="POST"):
    return http.call_unix(stack.layout.gate_socket, method, path, body=body, timeout_s=PATIENCE_S)


def request(stack, **more):
    return {"workers": [stack.layout.minion], "fun": "vmachines.version", "kwarg": {}, "nonce": NONCE} | more


def test_gate_passes_our_request(stack):
    answer = ask(stack, "/call", request(stack, timeout_s=30))
    assert answer.ok
    assert answer.body["return"][0][stack.layout.minion]["signature"]["worker"] == stack.layout.minion


def test_return_of_a_job_with_a_unique_id_is_heard(stack):
    """`unique_jid` adds the number of a process to the ids of all jobs of this stack."""
    gate = httpx2.HTTPTransport(uds=str(stack.layout.gate_socket))
    with (
        httpx2.Client(transport=gate, timeout=PATIENCE_S) as client,
        client.stream("GET", "http://gate/events") as events,
    ):
        assert ask(stack, "/publish", request(stack)).ok
        heard = (json.loads(line) for line in events.iter_lines() if NONCE in line)
        assert re.fullmatch(rf"salt/job/[0-9]{{20}}_[0-9]+/ret/{stack.layout.minion}", next(heard)["tag"])


def attacks(stack, witness):
    """Every parameter of Salt beside ours, in the request and in the arguments, alone and with each other one."""
    value = {
        "ret": "highstate",
        "ret_kwargs": {"report_delivery": "file", "file_output": str(witness), "success_function": "test.ping"},
        "jid": f"../../../../../../..{witness}",
        "module_executors": ["sudo"],
        "executor_opts": {"sudo_user": "root"},
        "metadata": {"nonce": NONCE, "ret": "highstate"},
    }
    words = [(word, value.get(word, str(witness))) for word in LOWSTATE.split() if word not in request(stack)]
    for word, given in [*words, *(("client", client) for client in CLIENTS.split())]:
        yield request(stack, **{word: given})
        yield request(stack, kwarg={word: given})
    for (one, its), (other, others) in itertools.combinations(words, 2):
        yield request(stack, **{one: its, other: others})
    yield request(stack, **dict(words))


def test_no_parameter_of_salt_passes(stack, tmp_path):
    witness = tmp_path / "witness"
    refused = [ask(stack, "/publish", attack).status for attack in attacks(stack, witness)]
    assert set(refused) == {400}
    assert len(refused) > 1000
    assert not witness.exists()


@pytest.mark.parametrize(
    "path",
    ["/", "/run", "/login", "/logout", "/minions", "/jobs", "/keys", "/hook", "/ws", "/logs", "/stats", "/token"],
)
def test_no_path_of_salt_api_is_there(stack, path):
    low = [{"client": "local", "tgt": "*", "fun": "cmd.run", "arg": ["id"], **salt_login(stack.layout)}]
    assert {ask(stack, path, low, method).status for method in ("POST", "GET", "PUT")} <= {404, 405}


def test_socket_is_for_its_users_alone(stack):
    for name in ("gate.sock", "events.sock"):
        assert Path(stack.layout.sockets, name).stat().st_mode & 0o777 == 0o600


def test_account_alone_cannot_write_with_returners(stack, tmp_path):
    """Without the gate: whoever knows the account's password meets the minion's own settings."""
    witness = tmp_path / "report"
    token = http.call("POST", f"{stack.layout.cherrypy_url}/login", body=salt_login(stack.layout), timeout_s=60)
    headers = {"X-Auth-Token": token.body["return"][0]["token"]}
    for number, ret in enumerate(["highstate", "rawfile_json", "local", "multi_returner", "syslog"]):
        low = {
            "client": "local",
            "tgt": stack.layout.minion,
            "fun": "saltutil.find_job",
            "arg": [str(number)],
            "timeout": 60,
            "ret": ret,
            "ret_kwargs": {"report_delivery": "file", "file_output": str(witness), "filename": str(witness)},
            "ret_config": "",
        }
        url = f"{stack.layout.cherrypy_url}/"
        assert http.call("POST", url, headers=headers, body=[low], timeout_s=PATIENCE_S).ok
    assert not witness.exists()
    log = stack.layout.log("minion").read_text()
    assert "highstate" in log, "the minion says that it has no such returner"


FORGE = """
    import json, sys
    import salt.client
    caller = salt.client.Caller(c_path=sys.argv[1])
    for message in json.load(sys.stdin):
        data = {"raw": b"\\xff\\x00"} if message["data"] == "bytes" else message["data"]
        event = {"tag": message["tag"], "data": data}
        sent = {"events": [event], "id": message.get("id", caller.opts["id"])} if message.get("list") else {}
        caller.cmd("event.fire_master", data, message["tag"], preload=sent or {"id": caller.opts["id"]})
"""


def forge(stack, *messages):
    """Let the worker's minion put these on the bus, as a bad worker would: in any form and in any name."""
    subprocess.run(
        [sys.executable, "-c", textwrap.dedent(FORGE), stack.layout.salt / "minion"],
        input=json.dumps(messages),
        text=True,
        check=True,
        capture_output=True,
        timeout=PATIENCE_S,
    )


def notices(stack):
    return [notice for notice in stack.api("GET", "/api/v1/notices").body if notice["kind"] == "not_believed"]


def test_forged_events_change_nothing_and_are_notified(stack):
    minion = stack.layout.minion
    uuid = "6d6c7f0e-0000-4000-8000-00000000f0f0"
    audit = {"at": "2026", "interface": "salt", "actor": "mallory", "verb": "destroy", "success": True}
    inner = json.dumps({"tag": f"vmachines/{minion}/audit", "data": {"id": minion, "data": audit}})
    listed = {"id": minion, "data": audit}
    forge(
        stack,
        {"tag": "vmachines/unenrolled/alive", "data": "bytes"},
        {"tag": f"vmachines/{minion}/alive", "data": "bytes"},
        {"tag": f"vmachines/{minion}/audit", "data": audit},
        {"tag": f"vmachines/{minion}/audit", "data": listed, "list": True},
        {"tag": f"vmachines/{minion}/{uuid}/destroyed", "data": {"id": minion, "data": {"uuid": uuid}}, "list": True},
        {"tag": f"x\ndata: {inner}\n\n", "data": listed, "list": True},
        {"tag": f"salt/job/20260101000000000001/ret/{minion}", "data": {"fun": "vmachines.list"}, "list": True},
        {"tag": f"vmachines/{minion}/audit", "data": {"id": minion, "data": {"pad": "x" * (17 << 20)}}, "list": True},
    )
    eventually(lambda: notices(stack) != [])
    assert {notice["name"] for notice in notices(stack)} == {minion}
    assert "has no signature" in notices(stack)[0]["text"]
    assert stack.api("GET", "/readyz").ok, "the stream is still open"
    assert "mallory" not in str(stack.api("GET", "/api/v1/audit?limit=1000").body)
    assert "unenrolled" not in str(stack.api("GET", "/api/v1/workers").body)


def test_unenrolled_minion_is_shown_as_waiting(stack):
    signed = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(UNENROLLED)],
        capture_output=True,
        text=True,
        check=True,
        timeout=PATIENCE_S,
    )
    forge(
        stack,
        {
            "tag": "vmachines/unenrolled/alive",
            "data": {"id": "unenrolled", "data": json.loads(signed.stdout)},
            "list": True,
        },
    )

    def shown():
        return {w["id"]: w for w in stack.api("GET", "/api/v1/workers").body}.get("unenrolled", {})

    eventually(lambda: shown() != {})
    assert (shown()["enrolled"], shown()["fingerprint"][:8]) == (False, "ed25519:")
    vm = stack.api("POST", "/api/v1/vmachines", {"name": "pinned", "hda_image": "blank:1G", "worker": "unenrolled"})
    assert vm.status == 201
    eventually(lambda: "is not enrolled" in stack.api("GET", "/api/v1/vmachines/pinned").body["reason"])
    assert stack.api("DELETE", "/api/v1/vmachines/pinned").ok


UNENROLLED = """
    import json, pathlib, tempfile
    from worker_service.state.identity import Identity
    with tempfile.TemporaryDirectory() as folder:
        identity = Identity(pathlib.Path(folder))
        data = {"vmachines": 0, "key": identity.fingerprint}
        print(json.dumps(identity.sign(data, "vmachines/unenrolled/alive", "unenrolled", 1)))
"""
