"""A settings file of the worker of version 0.1.0 still sets its values."""

import tomllib
from pathlib import Path

import msgspec
import pytest

from tests.fixtures import FIXTURES, flat
from worker_service.core.settings import Settings, load

OLD = FIXTURES / "0.1.0/settings"
EVERY = OLD / "worker.toml"

RENAMED = {"seats": "max_parallel_jobs", "facade.screens": "api.max_consoles"}
"""Setting of 0.1.0 -> what the settings call it now, both dotted as `images.read_roots`. Others kept their name."""


def plain(settings):
    """Settings as a settings file would spell them."""
    return flat(msgspec.to_builtins(settings, enc_hook=str))


def names_in(file):
    return sorted(flat(tomllib.loads(file.read_text())))


@pytest.fixture(scope="module")
def every():
    return plain(load(EVERY))


def now(name):
    """Today's name of a setting of 0.1.0."""
    return RENAMED.get(name, name.replace("facade.", "api."))


@pytest.mark.parametrize("name", names_in(EVERY))
def test_each_old_setting_still_sets_its_value(every, name):
    assert every[now(name)] == flat(tomllib.loads(EVERY.read_text()))[name]


@pytest.mark.parametrize("name", [name for name in names_in(EVERY) if not name.startswith("images.stores")])
def test_fixture_has_no_default(every, name):
    """A default would hide a setting that is not read any more."""
    assert every[now(name)] != plain(Settings())[now(name)]


def test_fixture_has_each_kind_of_store():
    stores = tomllib.loads(EVERY.read_text())["images"]["stores"]
    assert {store["kind"] for store in stores.values()} == {"basic", "bearer", "s3", "sftp"}


def test_environment_variable_names_the_file(monkeypatch):
    monkeypatch.setenv("SALTERN_WORKER_SETTINGS", str(EVERY))
    assert load() == load(EVERY)


@pytest.mark.parametrize("maker", ["devstack", "sls"])
def test_rendered_file_sets_its_values(maker):
    file = OLD / maker / "worker.toml"
    settings = plain(load(file))
    for name, value in flat(tomllib.loads(file.read_text())).items():
        assert settings[now(name)] == value


def test_setting_missing_in_a_rendered_file_has_its_default():
    settings = load(OLD / "sls/worker.toml")
    assert plain(settings)[now("facade.port")] == plain(Settings())[now("facade.port")] == 8081
    assert isinstance(getattr(settings, now("data_root")), Path)
