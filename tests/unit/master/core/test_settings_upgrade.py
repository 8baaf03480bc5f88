"""A settings file and environment of the master of version 0.1.0 still set their values."""

import os
import tomllib

import pytest

from master_service.core.settings import Settings, load
from tests.fixtures import FIXTURES

OLD = FIXTURES / "0.1.0/settings"
EVERY = OLD / "master.toml"
VALUES = tomllib.loads(EVERY.read_text())

MOVED = ("salt_api_url", "salt_api_username", "salt_api_password_file")
"""Settings of 0.1.0 that belong to the gate now. The master reads past them."""

VALUES = {name: value for name, value in VALUES.items() if name not in MOVED}

RENAMED = {"console_screens": "max_consoles"}
"""Setting of 0.1.0 -> what the settings call it now. Others kept their name."""


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch):
    for name in [name for name in os.environ if name.startswith("SALTERN_")]:
        monkeypatch.delenv(name)


def plain(settings):
    """Settings as a settings file would spell them."""
    return settings.model_dump(mode="json")


def now(name):
    """Today's name of a setting of 0.1.0."""
    return RENAMED.get(name, name)


@pytest.mark.parametrize("name", VALUES)
def test_each_old_setting_still_sets_its_value(name):
    settings, origins = load(EVERY)
    assert plain(settings)[now(name)] == VALUES[name]
    assert origins[now(name)] == f"file {EVERY}"


@pytest.mark.parametrize("name", VALUES)
def test_fixture_has_no_default(name):
    """A default would hide a setting that is not read any more."""
    assert VALUES[name] != plain(Settings())[now(name)]


@pytest.mark.parametrize("name", VALUES)
def test_each_old_variable_still_sets_its_value(monkeypatch, name):
    value = VALUES[name]
    text = str(value) if not isinstance(value, list) else str(value).replace("'", '"')
    monkeypatch.setenv(f"SALTERN_MASTER_{name.upper()}", text)
    settings, origins = load(None)
    assert plain(settings)[now(name)] == value
    assert origins[now(name)].startswith("environment ")


@pytest.mark.parametrize("maker", ["devstack", "sls"])
def test_rendered_file_sets_its_values(maker):
    file = OLD / maker / "master.toml"
    settings, _ = load(file)
    for name, value in tomllib.loads(file.read_text()).items():
        if name in MOVED:
            continue
        assert plain(settings)[now(name)] == value


def test_setting_missing_in_a_rendered_file_has_its_default():
    settings, origins = load(OLD / "sls/master.toml")
    assert plain(settings)[now("port")] == plain(Settings())[now("port")] == 8080
    assert origins[now("port")] == "default"
