"""The settings of the master: one typed table, filled from defaults, a TOML file, and the environment (strongest)."""

from __future__ import annotations

import os
import stat
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from pydantic import Field, ValidationError
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

PREFIX: Final = "SALTERN_MASTER_"
FILE_VARIABLE: Final = f"{PREFIX}SETTINGS"


class SettingsError(Exception):
    """The settings cannot be used; the message says which, why, and what to do."""


class Settings(BaseSettings):
    """Every setting of the master. Names ending in `_s` are seconds; secrets are read from files, never given here."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, extra="forbid", frozen=True)

    database_url: str = Field(
        "sqlite+aiosqlite:////var/lib/saltern-master/saltern.db",
        description="SQLAlchemy URL of the database, with an async driver",
    )
    host: str = Field("127.0.0.1", description="address to listen on")
    port: int = Field(8080, ge=0, le=65535, description="port to listen on")
    salt_api_url: str = Field("http://127.0.0.1:8000", description="where salt-api (rest_cherrypy) listens")
    salt_api_username: str = Field("saltern-master", description="the confined account, eauth sharedsecret")
    salt_api_password_file: Path = Field(
        Path("/etc/saltern/salt-api.secret"), description="file with that account's password, mode 0600"
    )
    admin_token_file: Path = Field(
        Path("/etc/saltern/admin.token"), description="file with the bearer token of the user admin, mode 0600"
    )
    workers_target: str = Field("*", description="glob over minion ids: which minions are asked as workers")
    poll_interval_s: float = Field(300, gt=0, description="how often all workers are asked for all their VMs")
    poll_timeout_s: float = Field(15, gt=0, description="how long workers may take to answer a poll")
    salt_timeout_s: float = Field(15, gt=0, description="how long salt-api itself may take to answer")
    heartbeat_timeout_s: float = Field(
        90, gt=0, description="event stream counts as dead after this long without any event"
    )
    action_timeout_s: float = Field(
        30, gt=0, description="how long an accepted command may show no effect before it is sent once more"
    )
    block_timeout_s: float = Field(30, ge=0, description="how long suspend, resume and destroy block by default")
    retry_base_s: float = Field(10, gt=0, description="back-off of the n-th retry: min(retry_cap_s, base*n^2 + jitter)")
    retry_cap_s: float = Field(300, gt=0, description="the longest back-off")
    restart_limit: int = Field(5, ge=0, description="restarts of a crashing VM within restart_window_s, then give up")
    restart_window_s: float = Field(8 * 3600, gt=0, description="see restart_limit")
    misses: int = Field(3, ge=1, description="polls that must miss a VM before it counts as absent")
    log_level: str = Field("info", pattern="^(debug|info|warning|error)$", description="debug, info, warning or error")

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """The environment wins over what `load` read from the file."""
        del settings_cls, dotenv_settings, file_secret_settings
        return env_settings, init_settings


def load(path: Path | None) -> tuple[Settings, dict[str, str]]:
    """The settings, and for each where its value came from. Raises SettingsError."""
    values = _read(path) if path else {}
    try:
        settings = Settings(**values)
    except ValidationError as err:
        where = "; ".join(f"{'.'.join(map(str, e['loc'])) or 'settings'}: {e['msg']}" for e in err.errors())
        raise SettingsError(
            f"Bad settings ({path or 'environment and defaults'}): {where}. "
            "`python -m master_service show-config` lists every setting."
        ) from err
    return settings, {name: _origin(name, path, values) for name in Settings.model_fields}


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text())
    except OSError as err:
        raise SettingsError(f"Cannot read the settings file {path}: {err.strerror}. Give it with --settings.") from err
    except tomllib.TOMLDecodeError as err:
        raise SettingsError(f"The settings file {path} is not TOML: {err}.") from err


def _origin(name: str, path: Path | None, values: Mapping[str, Any]) -> str:
    variable = f"{PREFIX}{name.upper()}"
    # pydantic-settings reads variables whatever their case
    if variable in {key.upper() for key in os.environ}:
        return f"environment {variable}"
    return f"file {path}" if name in values else "default"


def shown(name: str, settings: Settings) -> str:
    """One value as `show-config` prints it: a password inside the database URL is masked."""
    value = str(getattr(settings, name))
    if name == "database_url" and "@" in value:
        head, _, tail = value.rpartition("@")
        scheme, separator, account = head.partition("://")
        return f"{scheme}{separator}{account.split(':', 1)[0]}:***@{tail}"
    return value


def read_secret(path: Path, what: str) -> str:
    """The secret in a file that nobody but its owner may read. Raises SettingsError."""
    try:
        mode = stat.S_IMODE(path.stat().st_mode)
        secret = path.read_text().strip()
    except OSError as err:
        raise SettingsError(f"Cannot read {what} from {path}: {err.strerror}. Create the file with mode 0600.") from err
    if mode & 0o077:
        raise SettingsError(f"{path} ({what}) can be read by others (mode {mode:04o}). Do: chmod 600 {path}")
    if not secret:
        raise SettingsError(f"{path} ({what}) is empty. Do: (umask 077; openssl rand -hex 32 > {path})")
    return secret
