"""The generated settings of one stack: pure functions for the texts, and one function that writes them.

The generated files include Salt's production configuration in `salt/` and add the values of this machine. Salt merges
the file itself, `default_include` and `include`, in this order; later values win.
"""

from __future__ import annotations

import hashlib
import json
import secrets
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from devstack.layout import REPO, Layout

API_ACCOUNT: Final = "saltern-master"
_LOG_TO_TERMINAL: Final = {
    # Each part's terminal is its log file, which so gets the tracebacks from before and after logging too.
    "log_level": "warning",
    "log_level_logfile": "quiet",
    # Salt 3008 leaves tasks behind when a job's process ends, and asyncio logs each one as an error.
    "log_granular_levels": {"asyncio": "critical"},
    "log_datefmt": "%Y-%m-%d %H:%M:%S",
    "log_fmt_console": "%(asctime)s [%(levelname)-8s] %(name)s: %(message)s",
}
_PRIVATE: Final = 0o600
_SECRET_FOLDER: Final = 0o700
_OPEN_FOLDER: Final = 0o755


def yaml(settings: Mapping[str, Any]) -> str:
    """Return top-level settings as YAML, with the values as JSON: it is valid YAML and needs no quoting rules."""
    return "".join(f"{key}: {json.dumps(value)}\n" for key, value in settings.items())


def toml(settings: Mapping[str, Any]) -> str:
    """Return settings as TOML: values, then a table per mapping. JSON strings, numbers and lists are valid TOML."""
    plain = {key: value for key, value in settings.items() if not isinstance(value, Mapping)}
    tables = {key: value for key, value in settings.items() if isinstance(value, Mapping)}
    return "\n".join(
        [_pairs(plain), *(f"[{name}]\n{_pairs(table)}" for name, table in tables.items())],
    )


def _pairs(values: Mapping[str, Any]) -> str:
    return "".join(f"{key} = {json.dumps(value)}\n" for key, value in values.items())


def salt_entry(kind: str, production: str = "*") -> str:
    """Return Salt's main file: it includes production's configuration, then this stack's own."""
    # Salt writes files (`_schedule.conf`) to the folder of default_include, which must not be in the clone.
    return yaml(
        {
            "default_include": f"{kind}.d/*.conf",
            "include": [f"{REPO}/salt/{kind}.d/{production}.conf", f"dev/{kind}.conf"],
        }
    )


def salt_master(layout: Layout, secret: str) -> str:
    """Return the settings of the Salt master and salt-api beyond `salt/master.d`: paths, ports, fewer processes."""
    return yaml(
        {
            "root_dir": "/",  # every path below is absolute
            "pki_dir": str(layout.salt / "pki/master"),
            "cachedir": str(layout.salt / "cache/master"),
            "sqlite_queue_dir": str(layout.salt / "cache/master/queues"),
            "autosign_file": str(layout.salt / "autosign.none"),
            "sock_dir": str(layout.sockets / "master"),
            "pidfile": str(layout.salt / "master.pid"),
            "api_pidfile": str(layout.salt / "api.pid"),
            "log_file": str(layout.log("salt-master")),
            "api_logfile": str(layout.log("salt-api")),
            "key_logfile": str(layout.log("salt-key")),
            **_LOG_TO_TERMINAL,
            "interface": "127.0.0.1",
            "publish_port": layout.ports.publish,
            "ret_port": layout.ports.request,
            "user": "root",
            "file_roots": {"base": [str(REPO / "states"), str(layout.files)]},
            "engines": [{"saltern_events": {"path": str(layout.sockets / "events.sock")}}],
            "engines_dirs": [str(REPO / "states/_engines")],
            "netapi_dirs": [str(REPO / "states/_netapi")],
            "sharedsecret": secret,
            "rest_cherrypy": {"host": "127.0.0.1", "port": layout.ports.api, "disable_ssl": True},
            # For two cores and one minion. The default of five workers takes a second longer to start.
            "worker_threads": 3,
            "keysize": 2048,
            **layout.salt_master_settings,
        },
    )


def salt_minion(layout: Layout) -> str:
    """Return the settings of the minion beyond `salt/minion.d`: paths, its master, and modules from the clone."""
    return yaml(
        {
            "id": layout.minion,
            "master": "127.0.0.1",
            "publish_port": layout.ports.publish,
            "master_port": layout.ports.request,
            "root_dir": "/",  # every path below is absolute
            "pki_dir": str(layout.salt / "pki/minion"),
            "cachedir": str(layout.salt / "cache/minion"),
            "extension_modules": str(layout.salt / "cache/minion/extmods"),
            "sock_dir": str(layout.sockets / "minion"),
            "pidfile": str(layout.salt / "minion.pid"),
            "log_file": str(layout.log("minion")),
            **_LOG_TO_TERMINAL,
            "user": "root",
            # From the clone: an edit works after a restart of the minion. They are never synced: a copy would win.
            "module_dirs": [str(REPO / "states")],
            "saltern": {"settings": str(layout.worker_toml)},
            "keysize": 2048,
        },
    )


def worker(layout: Layout) -> str:
    """Return the worker's settings: images from `var`, disks to `var/saved`, http on loopback, `salt://images/`."""
    return toml(
        {
            "data_root": str(layout.data_root),
            "acceleration": "auto",
            "libvirt_uri": "qemu:///system",
            **layout.worker_settings,
            "images": {
                "read_roots": [str(layout.images), str(layout.saved)],
                "write_roots": [str(layout.saved)],
                "http_networks": ["127.0.0.0/8"],
                "salt_roots": ["images"],
                "minion_config": str(layout.salt / "minion"),
            },
            "api": {
                "host": "127.0.0.1",
                "port": layout.ports.worker,
                "tokens_file": str(layout.worker_tokens),
                "minion_config": str(layout.salt / "minion"),
            },
        },
    )


def master(layout: Layout) -> str:
    """Return the settings of the master service."""
    return toml(
        {
            "database_url": f"sqlite:///{layout.var}/master.db",
            "host": "127.0.0.1",
            "port": layout.ports.master,
            "gate_socket": str(layout.gate_socket),
            "admin_token_file": str(layout.admin_token),
            **layout.master_settings,
        },
    )


def gate(layout: Layout) -> str:
    """Return the settings of the gate between the master service and salt-api."""
    return toml(
        {
            "socket": str(layout.gate_socket),
            "events_socket": str(layout.sockets / "events.sock"),
            "salt_api_url": layout.cherrypy_url,
            "salt_api_username": API_ACCOUNT,
            "salt_api_password_file": str(layout.api_secret),
            "salt_profile": layout.salt_profile,
        }
    )


def tokens(token: str) -> str:
    """Return the token list of the worker API: the token's digest, which gives no access, the scopes, and a label."""
    return f"{hashlib.sha256(token.encode()).hexdigest()} read,operate,console dev\n"


def salt_login(layout: Layout) -> dict[str, str]:
    """Return the body of the gate's login at salt-api."""
    return {"username": API_ACCOUNT, "password": layout.api_secret.read_text().strip(), "eauth": "sharedsecret"}


def prepare(layout: Layout) -> None:
    """Create the folders, missing secrets, and every settings file. Files that are up to date are not written."""
    open_folders = (layout.images, layout.files, layout.files / "images", layout.saved)
    for folder in (layout.var, *open_folders, layout.var / "run"):
        _folder(folder, _OPEN_FOLDER)
    for folder in (layout.salt, layout.salt / "dev", layout.sockets, layout.var / "log"):
        _folder(folder, _SECRET_FOLDER)
    # Of earlier versions. The parts themselves make private ones.
    for path in (*layout.var.glob("master.db*"), *(layout.var / "log").glob("*.log")):
        path.chmod(_PRIVATE)
    _secret(layout.admin_token)
    api_secret = _secret(layout.api_secret)
    _write(layout.worker_tokens, tokens(_secret(layout.worker_token)), _PRIVATE)
    _write(layout.salt / "master", salt_entry("master", "saltern" if layout.salt_profile == "shared" else "*"))
    _write(layout.salt / "minion", salt_entry("minion"))
    _write(layout.salt / "dev/master.conf", salt_master(layout, api_secret), _PRIVATE)
    _write(layout.salt / "dev/minion.conf", salt_minion(layout))
    _write(layout.worker_toml, worker(layout))
    _write(layout.master_toml, master(layout))
    _write(layout.gate_toml, gate(layout))
    exchange_keys(layout, layout.minion)


def exchange_keys(layout: Layout, name: str) -> None:
    """Give the master and a minion their keys and the public key of the other, so neither has to trust on first use.

    openssl makes the keys, because `salt-key --gen-keys` of 3008.3 fails and leaves wrong files behind.
    """
    pki = layout.salt / "pki"
    own = pki / ("minion" if name == layout.minion else name)
    for folder in (pki, pki / "master", pki / "master/minions", own):
        _folder(folder, _SECRET_FOLDER)
    _write(pki / "master/minions" / name, _key(own / "minion.pem"))
    _write(own / "minion_master.pub", _key(pki / "master/master.pem"))


def _key(private: Path) -> str:
    """Return the public half of the RSA key in `private`; generate the key if it is missing."""
    public = private.with_suffix(".pub")
    if not public.exists():
        pem = _openssl("genpkey", "-quiet", "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048")
        _write(private, pem, _PRIVATE)
        _write(public, _openssl("pkey", "-in", str(private), "-pubout"))
    return public.read_text()


def _openssl(*arguments: str) -> str:
    return subprocess.run(["openssl", *arguments], check=True, capture_output=True, text=True).stdout


def _folder(folder: Path, mode: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(mode)  # the umask limits mkdir's own mode


def _secret(path: Path) -> str:
    """Return the secret in `path`; generate it (256 random bits) if it is missing."""
    try:
        return path.read_text().strip()
    except FileNotFoundError:
        _write(path, secrets.token_urlsafe(32) + "\n", _PRIVATE)
        return path.read_text().strip()


def _write(path: Path, text: str, mode: int = 0o644) -> None:
    """Write `text` unless the file has it already. The file has its mode from the start."""
    if path.exists() and path.read_text() == text:
        return
    draft = path.with_name(f".{path.name}.new")
    draft.unlink(missing_ok=True)
    draft.touch(mode=mode)
    draft.write_text(text)
    draft.replace(path)
