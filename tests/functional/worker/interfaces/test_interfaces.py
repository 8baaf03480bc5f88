"""The same answer through every interface: the function, Salt's loader, HTTP with query, form and JSON."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from tests.functional.worker.serving import write_tokens
from worker_service.api.__main__ import require_protection
from worker_service.api.app import create_app
from worker_service.api.auth import Token, TokenFile, find_token, read_tokens
from worker_service.api.calls import SCOPE
from worker_service.api.salt_loader import load
from worker_service.contract import audit_tag
from worker_service.core.errors import BadRequest
from worker_service.core.settings import ApiSettings
from worker_service.state.audit_spool import local_user

REPO = Path(__file__).parents[4]


def digest(token):
    return hashlib.sha256(token.encode()).hexdigest()


def suspend(**more):
    return {"verb": "suspend", "uuid": "6d6c7f0e-0000-4000-8000-00000000fffe", "generation": 1, **more}


@pytest.fixture(scope="module")
def client(site, modules):
    app = create_app(ApiSettings(allowed_hosts=("testserver",)), modules, TokenFile(write_tokens(site)), site.worker)
    return TestClient(app, headers={"Authorization": "Bearer all"})


def test_import_salt_finds_the_real_salt():
    code = "import salt, salt.version; print(salt.__file__, salt.version.__version__)"
    done = subprocess.run([sys.executable, "-c", code], cwd=REPO, capture_output=True, text=True, check=True)
    assert "site-packages/salt/__init__.py" in done.stdout
    assert not (REPO / "salt/__init__.py").exists()


def test_every_function_has_a_cli_example(modules):
    public = [name for name in modules if name.startswith("vmachines.")]
    assert {name.partition(".")[2] for name in public} == set(SCOPE)
    for name in public:
        assert f"CLI Example:\n\n    .. code-block:: bash\n\n        salt worker1 {name}" in modules[name].__doc__


def test_every_interface_gives_the_same_answer(site, modules, client, bootchain):
    image = bootchain("doors.raw", folder=site.images, variant="spin")
    parameters = {"name": "doors", "hda_image": f"file://{image}", "mem_size": 32}
    first = client.get("/vmachines/start", params=parameters).json()
    assert first["success"]
    assert client.post("/vmachines/start", json=parameters).json()["uuid"] == first["uuid"]
    assert client.post("/vmachines/start", data=parameters).json()["uuid"] == first["uuid"]
    assert modules["vmachines.start"](**parameters)["uuid"] == first["uuid"]
    site.wait("doors", "running")
    answers = [
        client.get("/vmachines/status", params={"name": "doors"}).json(),
        client.post("/vmachines/status", data={"uuid": first["uuid"]}).json(),
        client.post("/vmachines/status", json={"uuid": first["uuid"], "name": "uuid wins"}).json(),
        modules["vmachines.status"](name="doors"),
        site.call("status", name="doors"),
    ]
    assert all(answer == answers[0] for answer in answers)
    assert client.get("/vmachines/suspend", params={"name": "doors"}).json()["success"]
    assert client.get("/vmachines/status", params={"name": "doors"}).json()["status"] == "suspended"
    assert client.post("/vmachines/resume", data={"name": "doors"}).json()["success"]
    assert client.get("/vmachines/modify", params={"name": "doors", "hda_save_to": ""}).json()["success"]
    assert client.get("/vmachines/destroy", params={"name": "doors"}).json()["success"]
    assert client.get("/vmachines/list").json()["vmachines"] == []


@pytest.mark.parametrize(
    ("verb", "parameters", "status"),
    [
        ("status", {"name": "nobody"}, 404),
        ("status", {}, 400),
        ("status", {"uuid": "x"}, 400),
        ("start", {"name": "a"}, 400),
        ("start", {"name": "a", "hda_image": "file:///x", "epoch": 1}, 400),
        ("start", {"name": "a b", "hda_image": "file:///x"}, 400),
        ("start", {"name": "a", "hda_image": "ftp://x/y"}, 400),
        ("start", {"name": "a", "hda_image": "file:///etc/shadow"}, 403),
        ("start", {"name": "a", "hda_image": "blank:1G", "mem_size": 10**7}, 507),
        ("start", {"name": "a", "hda_image": "blank:1G", "hypervisor": "xen"}, 422),
        ("apply", {}, 400),
        ("apply", {"actions": "[" * 5_000}, 400),
        ("apply", {"actions": '[{"verb": "status"}]'}, 400),
        ("apply", {"actions": json.dumps([suspend(generation="x")])}, 400),
        ("apply", {"actions": json.dumps([suspend(params={"epoch": 1})])}, 400),
        ("apply", {"actions": json.dumps([suspend(params={"generation": 9})])}, 400),
        ("apply", {"actions": json.dumps([suspend(), suspend(params={"worker": 1})])}, 404),
        ("nonsense", {}, 404),
    ],
)
def test_http_codes_stand_beside_the_same_body(client, verb, parameters, status):
    for answer in (
        client.get(f"/vmachines/{verb}", params=parameters),
        client.post(f"/vmachines/{verb}", json=parameters),
    ):
        assert answer.status_code == status, answer.text
        body = answer.json()
        assert body["success"] is False
        assert body["message"]
        assert body["code"]


@pytest.mark.parametrize("form", ["params", "data", "json", "salt"])
def test_every_interface_takes_a_batch(site, modules, client, bootchain, form):
    image = bootchain("batch.raw", folder=site.images, variant="spin")
    uuid, other = f"6d6c7f0e-0000-4000-8000-0000000000{ord(form[0]):x}", "6d6c7f0e-0000-4000-8000-00000000ffff"
    new = {"name": f"batch-{form}", "hda_image": f"file://{image}", "mem_size": 32}

    def call(*actions):
        if form == "salt":
            return modules["vmachines.apply"](list(actions))
        given = {"actions": list(actions) if form == "json" else json.dumps(actions)}
        answer = (client.get if form == "params" else client.post)("/vmachines/apply", **{form: given})
        assert (answer.status_code == 200) is answer.json()["success"]
        return answer.json()

    assert call() == {"success": True, "message": "0 of 0 done.", "results": []}
    started = call({"verb": "start", "uuid": uuid, "generation": 3, "params": new})
    assert started["success"], started
    (result,) = started["results"]
    assert (result["success"], result["verb"], result["uuid"]) == (True, "start", uuid)
    site.wait(new["name"], "running")
    stale = {"verb": "suspend", "uuid": uuid, "generation": 2}
    mixed = call(stale, {**stale, "generation": 4}, {**stale, "uuid": other})
    assert (mixed["success"], mixed["code"]) == (False, "stale_generation")
    assert [result.get("code") for result in mixed["results"]] == ["stale_generation", None, "not_found"]
    assert mixed["message"].startswith("1 of 3 done.")
    assert site.call("status", uuid=uuid)["status"] == "suspended"
    assert call({"verb": "destroy", "uuid": uuid, "generation": 5})["success"]
    assert site.call("status", uuid=uuid)["code"] == "not_found"


def test_tokens_decide_about_calls(client):
    for header in (None, "", "Bearer", "Bearer wrong", "Basic all", "all", "Bearer all2"):
        answer = client.get("/vmachines/list", headers={"Authorization": header or ""})
        assert answer.status_code == 401
        assert answer.headers["www-authenticate"].startswith("Bearer")
    assert client.get("/vmachines/list", params={"token": "all"}, headers={"Authorization": ""}).status_code == 401
    assert client.get("/vmachines/list", headers={"Authorization": "Bearer reader"}).status_code == 200
    refused = client.get("/vmachines/destroy", params={"name": "x"}, headers={"Authorization": "Bearer reader"})
    assert refused.status_code == 403
    assert "operate" in refused.json()["message"]
    batch = {"actions": json.dumps([suspend()])}
    assert client.get("/vmachines/apply", params=batch, headers={"Authorization": "Bearer reader"}).status_code == 403


def test_forged_browser_request_is_refused(client):
    assert client.get("/vmachines/list", headers={"Host": "evil.example"}).status_code == 403
    for site_kind in ("cross-site", "same-site"):
        assert client.get("/vmachines/list", headers={"Sec-Fetch-Site": site_kind}).status_code == 403
    answer = client.get("/vmachines/list", headers={"Sec-Fetch-Site": "same-origin"})
    assert answer.status_code == 200
    assert answer.headers["cache-control"] == "no-store"


def test_bodies_that_cannot_be_understood(client):
    json_type = {"Content-Type": "application/json"}
    assert client.post("/vmachines/status", content="{", headers=json_type).status_code == 400
    assert client.post("/vmachines/status", content="[1]", headers=json_type).status_code == 400
    assert client.post("/vmachines/status", content="x", headers={"Content-Type": "text/plain"}).status_code == 400
    assert client.post("/vmachines/status", content="x" * 70_000, headers=json_type).status_code == 413


def test_page_is_served_without_a_token(client):
    for path in ("/", "/webui"):
        page = client.get(path, headers={"Authorization": ""})
        assert page.status_code == 200
        assert "Saltern worker" in page.text
    assert client.get("/static/worker.js").status_code == 200
    assert client.get("/healthz", headers={"Authorization": ""}).json()["status"] == "ok"


def test_salt_call_says_the_same_and_its_exit_code_too(minion_config):
    argv = [str(Path(sys.executable).with_name("salt-call")), "--local", "-c", str(minion_config.parent), "--out=json"]
    good = subprocess.run([*argv, "vmachines.version"], capture_output=True, text=True, check=False)
    assert good.returncode == 0, good.stderr
    assert json.loads(good.stdout)["local"]["success"] is True
    bad = subprocess.run([*argv, "vmachines.status", "name=nobody"], capture_output=True, text=True, check=False)
    assert bad.returncode == 1
    assert json.loads(bad.stdout)["local"]["code"] == "not_found"


def audit_events(site):
    """The audit events that the watcher has published since the last time."""
    site.events.clear()
    site.watcher.publish_audit()
    assert {tag for tag, _ in site.events} <= {audit_tag("w1")}
    return [
        tuple(event.get(key) for key in ("interface", "actor", "verb", "name", "success", "code"))
        for _, event in site.events
    ]


def test_changes_through_the_api_are_audited(site, client, modules):
    audit_events(site)
    client.get("/vmachines/list")
    client.get("/vmachines/destroy", params={"name": "nobody", "timeout_s": 1})
    client.post("/vmachines/start", json={"name": "deed", "hda_image": "https://u:hush@host/a b"})
    client.get("/vmachines/destroy", params={"name": "x"}, headers={"Authorization": "Bearer reader"})
    client.get("/vmachines/destroy", params={"name": "x"}, headers={"Authorization": "Bearer nobody's"})
    modules["vmachines.destroy"](name="nobody")  # as a job: its own Salt master has seen that
    assert audit_events(site) == [
        ("worker-api", "me", "destroy", "nobody", False, "not_found"),
        ("worker-api", "me", "start", "deed", False, "bad_request"),
        ("worker-api", "looker", "destroy", None, False, "policy"),  # its parameters were not even read
    ]
    assert "hush" not in str(site.events)


def test_changes_through_salt_call_are_audited(site, minion_config):
    audit_events(site)
    argv = [str(Path(sys.executable).with_name("salt-call")), "--local", "-c", str(minion_config.parent), "--out=json"]
    for words in (["vmachines.list"], ["vmachines.destroy", "name=nobody"]):
        subprocess.run([*argv, *words], capture_output=True, check=False)
    assert audit_events(site) == [("salt-call", local_user(), "destroy", "nobody", False, "not_found")]


def test_bad_settings_are_reported_not_raised(site, minion_config):
    folder = site.folder / "wrong"
    folder.mkdir()
    (folder / "worker.toml").write_text("data_rot = 1\n")
    text = minion_config.read_text().replace(str(site.settings), str(folder / "worker.toml"))
    (folder / "minion").write_text(text)
    reply = load(folder / "minion")["vmachines.list"]()
    assert reply["success"] is False
    assert "data_rot" in reply["message"]


def test_bad_tokens_file_is_refused(tmp_path):
    path = tmp_path / "tokens"
    with pytest.raises(BadRequest, match="cannot be read"):
        read_tokens(path)
    path.write_text("plain-token read\n")
    with pytest.raises(BadRequest, match="Line 1"):
        read_tokens(path)
    path.write_text(f"{digest('x')} read,root\n")
    with pytest.raises(BadRequest, match="Line 1"):
        read_tokens(path)
    assert find_token((), "Bearer x") is None


def test_listening_elsewhere_needs_tls_and_a_token(tmp_path):
    known = (Token(digest("x"), frozenset({"read"}), "me"),)
    pair = {"tls_cert": Path("c"), "tls_key": Path("k")}
    for host in ("0.0.0.0", "::", "192.0.2.1", "worker1.example"):
        with pytest.raises(SystemExit, match="without TLS"):
            require_protection(ApiSettings(host=host), known)
        with pytest.raises(SystemExit, match="without TLS"):
            require_protection(ApiSettings(host=host, tls_cert=Path("c")), known)
        with pytest.raises(SystemExit, match="without a token"):
            require_protection(ApiSettings(host=host, **pair), ())
        require_protection(ApiSettings(host=host, **pair), known)
    for host in ("127.0.0.1", "::1", "localhost"):
        require_protection(ApiSettings(host=host), ())
