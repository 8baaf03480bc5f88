"""The generated settings and the secrets beside them."""

import dataclasses
import hashlib
import tempfile
import tomllib
from pathlib import Path

import pytest
import yaml

from devstack import config
from devstack.layout import REPO, Layout, Ports
from master_service.core.settings import load as load_master
from master_service.gate.settings import load as load_gate
from worker_service.core.settings import load as load_worker

PORTS = Ports(publish=1, request=2, api=3, worker=4, master=5)


@pytest.fixture(scope="module")
def layout():
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:  # pytest's own are too long for unix sockets
        var = Path(folder, 'a "quoted" var')
        yield Layout(var=var, ports=PORTS, minion="w7", master_settings={"poll_interval_s": 5})


@pytest.fixture(scope="module")
def prepared(layout):
    config.prepare(layout)
    return layout


def test_worker_accepts_its_settings(prepared):
    settings = load_worker(prepared.worker_toml)
    assert settings.data_root == prepared.data_root
    assert settings.images.read_roots == (prepared.images, prepared.saved)
    assert settings.images.write_roots == (prepared.saved,)
    assert settings.api.port == 4
    assert settings.api.tokens_file == prepared.worker_tokens


def test_master_accepts_its_settings(prepared):
    settings, _ = load_master(prepared.master_toml)
    assert settings.gate_socket == prepared.gate_socket
    assert settings.port == 5
    assert settings.poll_interval_s == 5
    assert settings.admin_token_file == prepared.admin_token


def test_gate_accepts_its_settings(prepared):
    settings = load_gate(prepared.gate_toml)
    assert settings.salt_api_url == "http://127.0.0.1:3"
    assert settings.socket == prepared.gate_socket
    assert settings.salt_api_password_file == prepared.api_secret


def test_settings_of_a_test_come_before_the_tables(layout):
    text = config.worker(Layout(var=layout.var, worker_settings={"tick_s": 0.5}))
    assert tomllib.loads(text)["tick_s"] == 0.5


def test_salt_gets_production_first_and_this_stack_on_top(prepared):
    for kind in ("master", "minion"):
        entry = yaml.safe_load((prepared.salt / kind).read_text())
        assert entry["include"][0] == f"{REPO}/salt/{kind}.d/*.conf"
        # Salt writes files of its own next to what default_include names: that is never the clone.
        assert not entry["default_include"].startswith("/")
        assert (prepared.salt / entry["include"][1]).is_file()


def test_shared_salt_master_leaves_the_blacklist_out(prepared):
    config.prepare(dataclasses.replace(prepared, salt_profile="shared"))
    entry, gate = yaml.safe_load((prepared.salt / "master").read_text()), prepared.gate_toml.read_text()
    config.prepare(prepared)
    assert entry["include"][0] == f"{REPO}/salt/master.d/saltern.conf"
    assert 'salt_profile = "shared"' in gate
    assert 'salt_profile = "dedicated"' in prepared.gate_toml.read_text()


def test_salt_finds_modules_and_settings(layout):
    minion = yaml.safe_load(config.salt_minion(layout))
    assert minion["id"] == "w7"
    assert minion["master_port"] == 2
    assert minion["module_dirs"] == [str(REPO / "states")]
    assert minion["saltern"] == {"settings": str(layout.worker_toml)}


def test_salt_writes_nowhere_but_under_var(layout):
    for text in (config.salt_minion(layout), config.salt_master(layout, "x")):
        paths = [
            value for key, value in yaml.safe_load(text).items() if str(value).startswith("/") and key != "root_dir"
        ]
        assert paths
        assert all(path.startswith(str(layout.var)) for path in paths)


def test_secrets_are_for_their_owner_only(prepared):
    secret = [
        prepared.admin_token,
        prepared.worker_token,
        prepared.worker_tokens,
        prepared.api_secret,
        prepared.salt / "dev/master.conf",
        prepared.salt / "pki/master/master.pem",
        prepared.salt / "pki/minion/minion.pem",
    ]
    assert {path.name: path.stat().st_mode & 0o777 for path in secret} == {path.name: 0o600 for path in secret}
    assert prepared.salt.stat().st_mode & 0o777 == 0o700


def test_no_secret_stands_in_a_readable_file(prepared):
    secrets = [path.read_text().strip() for path in (prepared.admin_token, prepared.worker_token, prepared.api_secret)]
    for path in prepared.var.rglob("*"):
        if path.is_file() and path.stat().st_mode & 0o077:
            assert not [secret for secret in secrets if secret in path.read_text()], path


def test_tokens_file_holds_the_digest(prepared):
    token = prepared.worker_token.read_text().strip()
    digest, scopes, _label = prepared.worker_tokens.read_text().split()
    assert digest == hashlib.sha256(token.encode()).hexdigest()
    assert scopes == "read,operate,console"


def test_preparing_again_changes_nothing(prepared):
    def snapshot():
        return {
            path: (path.stat().st_mtime_ns, path.stat().st_ino) for path in prepared.var.rglob("*") if path.is_file()
        }

    before = snapshot()
    config.prepare(prepared)
    assert snapshot() == before


def test_master_and_minion_know_each_others_keys(prepared):
    pki = prepared.salt / "pki"
    assert (pki / "master/minions/w7").read_text() == (pki / "minion/minion.pub").read_text()
    assert (pki / "minion/minion_master.pub").read_text() == (pki / "master/master.pub").read_text()


@pytest.mark.parametrize("value", ["plain", 'a "b" \\c', 5, 0.5, ["x", "y"], True])
def test_yaml_and_toml_round_trip(value):
    assert yaml.safe_load(config.yaml({"key": value})) == {"key": value}
    assert tomllib.loads(config.toml({"key": value, "table": {"inner": value}})) == {
        "key": value,
        "table": {"inner": value},
    }


def test_logs_and_database_of_an_older_stack_are_closed(prepared):
    old = [prepared.log("master"), prepared.var / "master.db", prepared.var / "master.db-wal"]
    for path in old:
        path.touch(mode=0o644)
        path.chmod(0o644)
    config.prepare(prepared)
    assert {path.name: path.stat().st_mode & 0o777 for path in old} == {path.name: 0o600 for path in old}
    assert (prepared.var / "log").stat().st_mode & 0o777 == 0o700
