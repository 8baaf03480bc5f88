"""The settings of the master: one typed table with defaults, a TOML file, and the environment, which wins."""

from __future__ import annotations

import ipaddress
import os
import stat
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Literal
from urllib.parse import urlsplit

from pydantic import Field, ValidationError, field_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict
from sqlalchemy import URL, make_url

from master_service.core.database_url import url_of

PREFIX: Final = "SALTERN_MASTER_"
FILE_VARIABLE: Final = f"{PREFIX}SETTINGS"
LOOPBACK_NAMES: Final = ("127.0.0.1", "localhost", "::1")
_RENAMED: Final = {"console_screens": "max_consoles"}
"""Settings of version 0.1 -> their names now. The old names still work, in the file and in the environment."""
_GATE: Final = ("salt_api_url", "salt_api_username", "salt_api_password_file")
"""Settings of version 0.1 that belong to the gate now. They are ignored, so that an old file still works."""


class SettingsError(Exception):
    """The settings are unusable. The message says which, why, and what to do."""


class FileSettings(BaseSettings):
    """Settings from a file, over which the environment wins."""

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Let the environment win over the values that `load` read from the file."""
        del settings_cls, dotenv_settings, file_secret_settings
        return env_settings, init_settings


class Settings(FileSettings):
    """Every setting of the master. Names that end in `_s` are seconds. Secrets are only read from files."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, extra="forbid", frozen=True)

    database_url: str = Field(
        "sqlite:////var/lib/saltern-master/saltern.db",
        description="the database: sqlite:////FILE, or postgresql://USER@HOST/NAME",
    )
    database_password_file: Path | None = Field(
        None, description="file with the password of that USER, mode 0600; unset: from the URL or libpq"
    )
    lease_s: float = Field(
        12, gt=0, description="with several masters on one PostgreSQL, how long the leader may be silent"
    )
    host: str = Field("127.0.0.1", description="address to listen on")
    port: int = Field(8080, ge=0, le=65535, description="port to listen on")
    tls_cert: Path | None = Field(None, description="certificate chain of this server, in PEM; unset: no TLS")
    tls_key: Path | None = Field(None, description="key of that certificate, in PEM")
    tls_proxy: bool = Field(
        False, description="whether a proxy does TLS: allows a host beyond loopback without tls_cert and tls_key"
    )
    trusted_proxies: list[str] = Field(
        [], description="networks of proxies whose X-Forwarded-For and X-Forwarded-Proto are believed: 127.0.0.1/32"
    )
    allowed_hosts: list[str] = Field(
        [], description="names in the Host header besides loopback's, host and that of public_url; others are refused"
    )
    connections: int = Field(512, ge=1, description="connections at once; one more closes the one that waited longest")
    receive_timeout_s: float = Field(
        20, gt=0, description="longest time for a request to arrive, and for a caller to take nothing of an answer"
    )
    streams_per_user: int = Field(16, ge=1, description="event streams that one user may read at the same time")
    waits_per_user: int = Field(64, ge=1, description="requests of one user that may wait at the same time")
    gate_socket: Path = Field(
        Path("/run/saltern-gate/gate.sock"), description="socket of saltern-gate, the only way to Salt"
    )
    admin_token_file: Path = Field(
        Path("/etc/saltern/admin.token"), description="file with the bearer token of the user admin, mode 0600"
    )
    workers_target: str = Field("*", description="glob over the ids of enrolled workers: this master uses these")
    poll_interval_s: float = Field(300, gt=0, description="seconds between two polls of all workers")
    poll_timeout_s: float = Field(15, gt=0, description="how long workers may take to answer a poll")
    salt_timeout_s: float = Field(15, gt=0, description="how long Salt itself may take to answer")
    vm_report_limit_kib: int = Field(1024, ge=16, description="largest report of one VM by a worker, in KiB")
    worker_reply_limit_mib: int = Field(16, ge=1, description="largest answer of one worker, or event, in MiB")
    answer_limit_mib: int = Field(256, ge=1, description="largest sum of the answers of all workers, in MiB")
    heartbeat_timeout_s: float = Field(
        90, gt=0, description="event stream counts as dead after this long without any event"
    )
    action_timeout_s: float = Field(
        30, gt=0, description="how long an accepted command may show no effect before it is sent once more"
    )
    stuck_s: float = Field(
        1800, gt=0, description="how long a worker may start or save a VM without progress before users are notified"
    )
    block_timeout_s: float = Field(30, ge=0, description="how long suspend, resume and destroy block by default")
    history_days: float = Field(90, gt=0, description="how long the history of VMs is kept")
    history_per_vm: int = Field(1000, ge=10, description="how many entries of the history are kept per VM")
    idempotency_keep_s: float = Field(24 * 3600, gt=0, description="how long answers are kept per Idempotency-Key")
    retry_base_s: float = Field(10, gt=0, description="back-off of the n-th retry: min(retry_cap_s, base*n^2 + jitter)")
    retry_cap_s: float = Field(300, gt=0, description="the longest back-off")
    restart_limit: int = Field(5, ge=0, description="restarts of a crashing VM within restart_window_s, then give up")
    restart_window_s: float = Field(8 * 3600, gt=0, description="see restart_limit")
    misses: int = Field(3, ge=1, description="polls that must miss a VM before it counts as absent")
    session_s: float = Field(12 * 3600, gt=0, description="default lifetime of the token of a login")
    token_s: float = Field(90 * 86400, gt=0, description="default lifetime of other tokens")
    token_max_s: float = Field(366 * 86400, gt=0, description="longest lifetime of a token")
    audit_days: float = Field(730, gt=0, description="how long audit entries are kept")
    quota_vms: int | None = Field(None, ge=0, description="VMs that one user may own; unset: unlimited")
    quota_cpus: int | None = Field(None, ge=0, description="processors of all VMs of one user")
    quota_mem_mib: int | None = Field(None, ge=0, description="memory of all VMs of one user, in MiB")
    quota_disk_mib: int | None = Field(None, ge=0, description="disks of all VMs of one user, as far as known, in MiB")
    notice_tries: int = Field(8, ge=1, description="tries to send a notice before the master gives up")
    notice_retry_base_s: float = Field(
        30, gt=0, description="pause after the n-th try: min(notice_retry_cap_s, base*n^2)"
    )
    notice_retry_cap_s: float = Field(3600, gt=0, description="the longest such pause")
    webhook_networks: list[str] = Field(
        [], description="networks besides the public ones that webhooks may use, such as 10.1.0.0/16"
    )
    webhook_timeout_s: float = Field(10, gt=0, description="how long a webhook may take to answer")
    smtp_host: str = Field("", description="mail server for notices; empty: no mail is sent")
    smtp_port: int = Field(587, ge=1, le=65535, description="port of the mail server")
    smtp_tls: Literal["starttls", "tls", "none"] = Field(
        "starttls",
        description="starttls; tls: from the first byte, mostly port 465; none: for a server on this machine",
    )
    smtp_ca_file: Path | None = Field(None, description="CA certificates for the mail server; unset: the system's")
    smtp_user: str = Field("", description="user for the login there; empty: no login")
    smtp_password_file: Path | None = Field(None, description="file with that user's password, mode 0600")
    smtp_from: str = Field("", description="sender of the mails; empty: saltern@ and this machine's name")
    smtp_timeout_s: float = Field(30, gt=0, description="how long the mail server may be silent")
    public_url: str = Field(
        "", description="URL of this master for users, such as https://saltern.example; unset: at host and port"
    )
    console_workers: tuple[str, ...] = Field(
        ("127.0.0.1", "localhost", "::1"),
        description="hosts (globs) that a worker without an enrolled address may name for its consoles, as its own",
    )
    console_ca_file: Path | None = Field(None, description="CA certificates of those APIs; unset: the system's")
    max_consoles: int = Field(64, ge=0, description="consoles that this master relays at the same time")
    log_level: str = Field("info", pattern="^(debug|info|warning|error)$", description="debug, info, warning or error")

    @field_validator("database_url")
    @classmethod
    def _known_database(cls, text: str) -> str:
        if "password" in url_of(text).query:
            raise ValueError("show-config would print a password in the URL's parameters; use database_password_file")
        return text

    @field_validator("webhook_networks", "trusted_proxies")
    @classmethod
    def _networks(cls, networks: list[str]) -> list[str]:
        for network in networks:
            ipaddress.ip_network(network)
        return networks

    @property
    def host_names(self) -> frozenset[str]:
        """Return the names by which this master is called, in lower case and without ports."""
        public = urlsplit(self.public_url).hostname or ""
        names = {*LOOPBACK_NAMES, self.host, public, *self.allowed_hosts} - {""}
        return frozenset(name.lower() for name in names)

    @property
    def quota(self) -> dict[str, int | None]:
        """Return the quota of users whose account sets none."""
        return {name: getattr(self, f"quota_{name}") for name in ("vms", "cpus", "mem_mib", "disk_mib")}


def load(path: Path | None) -> tuple[Settings, dict[str, str]]:
    """Return the settings, and the origin of each value. Raises SettingsError."""
    values = _renamed(_read(path) if path else {})
    try:
        settings = Settings(**values)
    except ValidationError as err:
        where = "; ".join(f"{'.'.join(map(str, e['loc'])) or 'settings'}: {e['msg']}" for e in err.errors())
        raise SettingsError(
            f"Bad settings ({path or 'environment and defaults'}): {where}. "
            "`python -m master_service show-config` lists every setting."
        ) from err
    return settings, {name: _origin(name, path, values) for name in Settings.model_fields}


def _renamed(values: Mapping[str, Any]) -> dict[str, Any]:
    named = {_RENAMED.get(name, name): value for name, value in values.items()}
    for old, new in _RENAMED.items():
        if (value := os.environ.get(f"{PREFIX}{old.upper()}")) is not None:
            named[new] = value
    return {name: value for name, value in named.items() if name not in _GATE}


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text())
    except OSError as err:
        raise SettingsError(f"Cannot read the settings file {path}: {err.strerror}. Give it with --settings.") from err
    except tomllib.TOMLDecodeError as err:
        raise SettingsError(f"The settings file {path} is not TOML: {err}.") from err


def _origin(name: str, path: Path | None, values: Mapping[str, Any]) -> str:
    for spelled in (name, *(old for old, new in _RENAMED.items() if new == name)):
        variable = f"{PREFIX}{spelled.upper()}"
        # pydantic-settings ignores the case of variables
        if variable in {key.upper() for key in os.environ}:
            return f"environment {variable}"
    return f"file {path}" if name in values else "default"


def shown(name: str, settings: Settings) -> str:
    """Return one value as `show-config` prints it, with a masked password in the database URL."""
    value = getattr(settings, name)
    return make_url(value).render_as_string(hide_password=True) if name == "database_url" else str(value)


def database_url(settings: Settings) -> URL:
    """Return the URL of the database with its password. Raises SettingsError."""
    file = settings.database_password_file
    return url_of(settings.database_url, read_secret(file, "the password of the database") if file else None)


def read_secret(path: Path, what: str) -> str:
    """Return the secret in a file that only its owner may read. Raises SettingsError."""
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
