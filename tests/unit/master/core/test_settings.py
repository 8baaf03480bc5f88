"""The master's settings: files, environment, secrets."""

import pytest

from master_service.core.settings import Settings, SettingsError, database_url, load, read_secret, shown


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch):
    import os

    for name in [name for name in os.environ if name.startswith("SALTERN_")]:
        monkeypatch.delenv(name)


def test_environment_wins_over_file_and_file_over_default(tmp_path, monkeypatch):
    file = tmp_path / "master.toml"
    file.write_text('port = 9000\nworkers_target = "hv*"\n')
    monkeypatch.setenv("SALTERN_MASTER_PORT", "9001")
    settings, origins = load(file)
    assert (settings.port, settings.workers_target, settings.host) == (9001, "hv*", "127.0.0.1")
    assert origins["port"] == "environment SALTERN_MASTER_PORT"
    assert origins["workers_target"] == f"file {file}"
    assert origins["host"] == "default"


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("prot = 1\n", "prot: Extra inputs"),
        ("port = 99999\n", "port: Input should be less"),
        ("port = \n", "is not TOML"),
        ("poll_interval_s = 0\n", "poll_interval_s"),
        ('database_url = "mysql://db/saltern"\n', "mysql is not supported"),
        ('database_url = "saltern.db"\n', "it is no URL"),
        ('database_url = "postgresql://db/saltern?password=x"\n', "database_password_file"),
    ],
)
def test_bad_files_are_named_with_the_reason(tmp_path, text, why):
    file = tmp_path / "master.toml"
    file.write_text(text)
    with pytest.raises(SettingsError, match=why):
        load(file)


def test_missing_file_is_named(tmp_path):
    with pytest.raises(SettingsError, match=r"absent\.toml: No such file"):
        load(tmp_path / "absent.toml")


def test_secrets_are_read_only_from_files_of_their_owner_alone(tmp_path):
    file = tmp_path / "token"
    with pytest.raises(SettingsError, match="Cannot read the token"):
        read_secret(file, "the token")
    file.touch(mode=0o600)
    with pytest.raises(SettingsError, match="is empty"):
        read_secret(file, "the token")
    file.write_text("abc\n")
    assert read_secret(file, "the token") == "abc"
    file.chmod(0o640)
    with pytest.raises(SettingsError, match="chmod 600"):
        read_secret(file, "the token")


def test_password_in_the_database_url_is_not_shown(monkeypatch):
    monkeypatch.setenv("SALTERN_MASTER_DATABASE_URL", "postgresql://saltern:p%40ss@db/saltern")
    settings, _ = load(None)
    assert shown("database_url", settings) == "postgresql://saltern:***@db/saltern"
    assert shown("port", settings) == "8080"


def test_database_password_comes_from_its_own_file(tmp_path):
    file = tmp_path / "db.secret"
    file.touch(mode=0o600)
    file.write_text("p@ss/word\n")
    settings = Settings(database_url="postgresql://saltern@db/saltern", database_password_file=file)
    assert database_url(settings).password == "p@ss/word"
    assert "p@ss" not in "".join(shown(name, settings) for name in Settings.model_fields)
