"""The settings of the gate: a TOML file, and the environment, which wins."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Final, Literal

from pydantic import Field, ValidationError
from pydantic_settings import SettingsConfigDict

from master_service.core.settings import FileSettings, SettingsError

DEFAULT_PATH: Final = Path("/etc/saltern/gate.toml")


class GateSettings(FileSettings):
    """Every setting of the gate."""

    model_config = SettingsConfigDict(env_prefix="SALTERN_GATE_", extra="forbid", frozen=True)

    socket: Path = Field(Path("/run/saltern-gate/gate.sock"), description="socket for the master service")
    events_socket: Path = Field(Path("/run/saltern-gate/events.sock"), description="socket for the Salt engine")
    socket_group: str = Field("", description="group whose members may use the first socket; empty: only this user")
    salt_api_url: str = Field("http://127.0.0.1:8000", description="where salt-api (rest_cherrypy) listens")
    salt_api_username: str = Field("saltern-master", description="the confined account, eauth sharedsecret")
    salt_api_password_file: Path = Field(
        Path("/etc/saltern/salt-api.secret"), description="file with that account's password, mode 0600"
    )
    salt_profile: Literal["dedicated", "shared"] = Field(
        "dedicated", description="whether the Salt master serves Saltern alone (with a blacklist), or the site too"
    )
    salt_timeout_s: float = Field(15, gt=0, description="how long salt-api itself may take to answer")
    salt_api_request_limit_kib: int = Field(
        1024, ge=16, description="`max_request_body_size` of salt-api, in KiB: larger batches are cut"
    )
    worker_reply_limit_mib: int = Field(16, ge=1, description="largest event, in MiB")
    answer_limit_mib: int = Field(256, ge=1, description="largest sum of the answers of all workers, in MiB")
    log_level: str = Field("info", pattern="^(debug|info|warning|error)$", description="debug, info, warning or error")


def load(path: Path) -> GateSettings:
    """Return the settings. Raises SettingsError. Without the default file the defaults hold."""
    try:
        values = tomllib.loads(path.read_text())
    except FileNotFoundError:
        if path != DEFAULT_PATH:
            raise SettingsError(f"The settings file {path} does not exist. Give it with --settings.") from None
        values = {}
    except (OSError, tomllib.TOMLDecodeError) as err:
        raise SettingsError(f"Cannot read the settings file {path}: {err}.") from err
    try:
        return GateSettings(**values)
    except ValidationError as err:
        where = "; ".join(f"{'.'.join(map(str, e['loc'])) or 'settings'}: {e['msg']}" for e in err.errors())
        raise SettingsError(f"Bad settings ({path}): {where}.") from err
