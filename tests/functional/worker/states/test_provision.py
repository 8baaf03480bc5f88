"""The SLS that make hosts into workers and masters, through the real Salt, into folders of the test.

Changes to the machine itself (packages, users, services) are only rendered and run with `test=True`.
"""

import configparser
import hashlib
import json
import re
import stat
import subprocess
from pathlib import Path

import pytest

from devstack.layout import PYTHON
from master_service.core.settings import SettingsError, read_secret
from master_service.core.settings import load as load_master
from master_service.gate.settings import load as load_gate
from tests.functional.worker.states.conftest import EXAMPLE, REPO, configure, redirected
from worker_service.api.auth import find_token, read_tokens
from worker_service.core.settings import load as load_worker

ROLES = {
    "worker": ("saltern-worker-api", "salt-minion"),
    "master": ("saltern-master", "saltern-gate", "salt-master", "salt-api"),
}


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("pillar", [{}, None], ids=["defaults", "example"])
def test_each_role_compiles(salt_call, host, role, pillar):
    low = salt_call("state.show_low_sls", role, pillar={"saltern": host if pillar is None else pillar})
    assert all(isinstance(chunk, dict) for chunk in low), low
    parts = {f"{role}.{part}" for part in ("install", "config", "service")}
    assert {chunk["__sls__"] for chunk in low} == parts | ({"master.firewall"} if role == "master" else set())


@pytest.mark.parametrize(("target", "roles"), [("w1", {"base": ["worker", "master"]}), ("w2", {})])
def test_pillar_decides_the_roles_of_a_host(tmp_path, target, roles):
    """The example is a site's pillar as it stands, and the highstate follows it."""
    pillar = tmp_path / "pillar"
    pillar.mkdir()
    (pillar / "top.sls").write_text(f"base: {{{target}: [saltern]}}\n")
    (pillar / "saltern.sls").write_text(EXAMPLE.read_text())
    configure(tmp_path / "minion", pillar_roots={"base": [str(pillar)]})
    salt_call = str(PYTHON.with_name("salt-call"))
    command = [salt_call, "--local", "-c", str(tmp_path / "minion"), "--out=json", "state.show_top"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["local"] == roles


@pytest.mark.parametrize("role", ROLES)
def test_dry_run_finds_every_requisite_and_writes_nothing(apply, host, tmp_path, role):
    rets = apply(role, host, test=True)
    assert not [ret for ret in rets.values() if "requisite" in ret["comment"].lower()], rets
    assert {name for name, ret in rets.items() if ret["result"] is False} == set(), rets
    assert not (tmp_path / "etc").exists()
    assert not (tmp_path / "units").exists()


def test_worker_config_is_read_by_its_programs(apply, host, tmp_path, salt_folder):
    import salt.config

    token = hashlib.sha256(b"sesame").hexdigest()
    host["worker"]["tokens"] = [{"sha256": token, "scopes": ["read", "operate"], "label": "ann"}]
    host["worker"]["settings"] |= {"cpu_overcommit": 2.5, "api": {"port": 9000}}
    first = apply("worker.config", host)
    assert all(ret["result"] for ret in first.values()), first

    settings = load_worker(tmp_path / "etc/worker.toml")
    assert settings.data_root == tmp_path / "data"
    assert settings.images.write_roots == (Path("/srv/saved/{owner}"),)
    assert settings.images.stores["s3://disks/{owner}"].secret_key_file == Path("/etc/saltern/s3.secret")
    assert (settings.cpu_overcommit, settings.api.port) == (2.5, 9000)
    assert (tmp_path / "data").is_dir()

    tokens = tmp_path / "etc/worker.tokens"
    assert stat.S_IMODE(tokens.stat().st_mode) == 0o600
    assert find_token(read_tokens(tokens), "Bearer sesame").label == "ann"

    (tmp_path / "salt/minion").write_text(f"include: {tmp_path}/salt/minion.d/*.conf\n")
    opts = salt.config.minion_config(str(tmp_path / "salt/minion"))
    assert opts["engines"] == [{"vmachines_watcher": {}}]
    assert opts["saltern"]["settings"] == str(tmp_path / "etc/worker.toml")
    assert opts["master"] == "salt.example.com"

    synced = salt_folder / "var/cache/salt/minion/extmods"
    names = {str(path.relative_to(synced)) for path in synced.rglob("vmachines*.py")}
    assert names == {
        "modules/vmachines.py",
        "states/vmachines.py",
        "grains/vmachines.py",
        "engines/vmachines_watcher.py",
    }

    again = apply("worker.config", host)
    assert {name: ret["changes"] for name, ret in again.items() if ret["changes"]} == {}


def test_names_of_version_0_1_in_a_pillar_still_count(apply, host, tmp_path):
    host["worker"]["settings"] |= {"seats": 2, "facade": {"port": 9000}}
    assert all(ret["result"] for ret in apply("worker.config", host).values())
    settings = load_worker(tmp_path / "etc/worker.toml")
    assert (settings.max_parallel_jobs, settings.api.port) == (2, 9000)


def test_minion_restarts_seconds_after_the_job_that_changed_it(salt_call, host):
    """By default systemd lets a timer come a minute late."""
    low = salt_call("state.show_low_sls", "worker.service", pillar={"saltern": host})
    (command,) = [chunk["name"] for chunk in low if chunk["__id__"] == "saltern_worker_minion_restart"]
    assert "--on-active=5 --timer-property=AccuracySec=100ms systemctl restart salt-minion.service" in command


def test_upgrade_removes_the_old_unit_before_the_new_starts(salt_call, host):
    low = salt_call("state.show_low_sls", "worker.service", pillar={"saltern": host})
    chunks = [(chunk["state"], chunk["fun"], chunk["name"]) for chunk in low]
    old = str(Path(host["worker"]["paths"]["units"], "saltern-worker-facade.service"))
    steps = [("service", "dead", "saltern-worker-facade"), ("file", "absent", old)]
    order = [chunks.index(step) for step in [*steps, ("service", "running", "saltern-worker-api")]]
    assert order == sorted(order)


def test_masters_configuration_and_its_secrets(apply, host, tmp_path):
    import salt.config

    first = apply("master.config", host)
    assert all(ret["result"] for ret in first.values()), first
    settings, _origins = load_master(tmp_path / "etc/master.toml")
    assert settings.poll_interval_s == 300
    assert str(tmp_path / "state/saltern.db") in settings.database_url
    gate = load_gate(tmp_path / "etc/gate.toml")
    password = read_secret(gate.salt_api_password_file, "password")
    assert gate.socket_group == host["master"]["user"]
    assert password != read_secret(settings.admin_token_file, "token")
    assert password not in json.dumps(first)

    secret = tmp_path / "salt/master.d/saltern_secret.conf"
    assert stat.S_IMODE(secret.stat().st_mode) == 0o600
    (tmp_path / "salt/master").write_text(f"include: {tmp_path}/salt/master.d/*.conf\n")
    opts = salt.config.master_config(str(tmp_path / "salt/master"))
    assert opts["sharedsecret"] == password
    assert opts["interface"] == "10.0.0.1"
    assert opts["netapi_enable_clients"] == ["local", "local_async"]
    (engine,) = (Path(folder, "saltern_events.py") for folder in opts["engines_dirs"])
    assert engine.is_file()
    assert opts["engines"] == [{"saltern_events": {}}]
    (netapi,) = (Path(folder, "rest_cherrypy/__init__.py") for folder in opts["netapi_dirs"])
    assert netapi.is_file()

    again = apply("master.config", host)
    assert {name: ret["changes"] for name, ret in again.items() if ret["changes"]} == {}


def test_profile_of_the_pillar_decides_about_the_blacklist(apply, host, tmp_path):
    """`dedicated` by default, for a word that is no profile too: then the gate refuses to start."""
    blacklist = tmp_path / "salt/master.d/saltern_dedicated.conf"
    for profile, there in ((None, True), ("shared", False), ("dedicated", True), ("Shared", True)):
        host["master"] |= {"profile": profile} if profile else {}
        if profile is None:
            del host["master"]["profile"]
        rets = apply("master.config", host)
        assert all(ret["result"] for ret in rets.values()), rets
        assert blacklist.exists() is there, profile
        if profile == "Shared":
            with pytest.raises(SettingsError, match=r"salt_profile.*'dedicated' or 'shared'"):
                load_gate(tmp_path / "etc/gate.toml")
        else:
            assert load_gate(tmp_path / "etc/gate.toml").salt_profile == (profile or "dedicated")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A host of both roles."""
    return tmp_path_factory.mktemp("host")


@pytest.fixture(scope="module")
def units(apply, root):
    """The unit files of both roles, as Salt renders them."""
    for role, names in ROLES.items():
        apply(f"{role}.config", redirected(root))
        assert all((root / f"units/{name}.service").exists() for name in names)
    return root / "units"


def test_systemd_understands_the_units(units):
    command = ["systemd-analyze", "verify", "--man=no", *map(str, sorted(units.iterdir()))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, [line for line in done.stderr.splitlines() if str(units) in line]) == (0, []), done.stderr


EXPOSURE = {
    "saltern-master": 2.0,
    "saltern-worker-api": 4.0,
    "saltern-guest-firewall": 2.5,
    "saltern-gate": 2.0,
    "salt-master": 4.5,
    "salt-api": 4.5,
    "salt-minion": 9.7,  # it manages the host as root: that is what it is for
}


@pytest.mark.parametrize("name", sorted(EXPOSURE))
def test_units_expose_no_more_than_they_must(units, name):
    """systemd's own score, from 0 (shut in) to 10 (all that root may)."""
    bound = f"--threshold={EXPOSURE[name] * 10:.0f}"
    command = ["systemd-analyze", "security", "--offline=true", "--no-pager", bound, str(units / f"{name}.service")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr


def test_every_unit_has_a_bound(units):
    assert {path.stem for path in units.glob("*.service")} == set(EXPOSURE)


def test_minion_sees_a_host_that_shuts_down_stop_its_vms(units):
    """Stopped in the reverse of this order: libvirt-guests, which stops the VMs, then the minion, then libvirtd."""
    text = (units / "salt-minion.service").read_text()
    assert "Before=libvirt-guests.service\n" in text
    assert re.search(r"^After=.*libvirtd\.service", text, re.MULTILINE)


def test_no_stop_of_a_service_takes_a_helper_along(units):
    """The worker API and the minion fork helpers, which continue when these restart."""
    for name in ROLES["worker"]:
        unit = configparser.RawConfigParser(strict=False)
        unit.optionxform = str
        unit.read(units / f"{name}.service")
        assert unit["Service"]["KillMode"] == "process"
        assert unit["Service"].get("PrivateTmp", "no") == "no"
        assert "RuntimeDirectory" not in unit["Service"]


def test_worker_api_may_write_to_save_folders(units, root):
    text = (units / "saltern-worker-api.service").read_text()
    assert "ReadWritePaths=-/srv/saved\n" in text
    assert f"-{root / 'data'}\n" in text


WHO_REACHES = """
import socket, sys
from worker_service.hypervisor.guest_firewall import _socket_of
port = int(sys.argv[1])
listener = socket.create_server(("127.0.0.1", port))
for uid in (0, 1, 2):
    with _socket_of(uid) as client:
        print(uid, client.connect_ex(("127.0.0.1", port)))
"""


@pytest.mark.parametrize("port", [8000, 9001])
def test_only_the_gate_reaches_salt_api(salt_call, host, port, tmp_path):
    host["master"]["gate_user"] = "daemon"
    host["master"]["salt_master"] = {} if port == 8000 else {"rest_cherrypy": {"port": port}}
    salt_call("state.sls_id", "saltern_salt_api_rules", "master.firewall", pillar={"saltern": host})
    enter = f"ip link set lo up && nft -f {tmp_path}/etc/salt-api.nft && {PYTHON} -c '{WHO_REACHES}' {port}"
    argv = ["unshare", "--net", "sh", "-ec", enter]
    done = subprocess.run(argv, capture_output=True, text=True, check=True, cwd=REPO)
    assert done.stdout.splitlines() == ["0 111", "1 0", "2 111"]


NASTY = "x'\"\n{{ 7 * 7 }}\n- cmd.run: [id]"


@pytest.mark.parametrize("text", ["web01", NASTY], ids=["plain", "nasty"])
def test_reactor_example_sends_worker_data_as_data(salt_call, text):
    path = str(REPO / "salt/reactor/failed_to_save.sls")
    data = {"id": "w1", "data": {"name": text, "message": text, "status": "failed to save"}}
    reaction = salt_call("slsutil.renderer", path, data=data, tag="vmachines/w1/x/failed_to_save")
    (name,) = reaction
    assert list(reaction[name]) == ["runner.http.query"]
    arguments = {key: value for pair in reaction[name]["runner.http.query"][0]["args"] for key, value in pair.items()}
    assert json.loads(arguments["data"]) == {"worker": "w1", "name": text, "message": text}
