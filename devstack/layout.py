"""The places of one stack: folders, ports, sockets and the worker's data root.

A stack is defined by its `Layout`. Stacks with different `var` and ports run beside each other.
"""

from __future__ import annotations

import hashlib
import secrets
import socket
import stat
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Final, Literal

REPO: Final = Path(__file__).resolve().parents[1]
PYTHON: Final = REPO / ".venv/bin/python"
_EPHEMERAL_RANGE: Final = Path("/proc/sys/net/ipv4/ip_local_port_range")
_LOWEST: Final = 10_000
_SOCKET_FOLDER_MAX: Final = 70
"""A unix socket's path ends at 107 characters; Salt's own file names take up to 35 of them."""


@dataclass(frozen=True)
class Ports:
    """TCP ports on 127.0.0.1: Salt's publisher and request server, salt-api, the worker API, the master service.

    The last ones are for further workers: the file server, and ssh into the hosts of xen1 and vbox1 with their worker
    APIs.
    """

    publish: int = 4505
    request: int = 4506
    api: int = 8000
    worker: int = 8081
    master: int = 8080
    files: int = 8082
    xen_ssh: int = 8083
    xen_api: int = 8084
    vbox_ssh: int = 8085
    vbox_api: int = 8086

    @classmethod
    def free(cls) -> Ports:
        """Return free ports, for a stack beside the others."""
        with ExitStack() as held:  # all are held at once, so that none is drawn twice
            return cls(*(held.enter_context(bound()).getsockname()[1] for _ in fields(cls)))


def bound() -> socket.socket:
    """Return a socket bound to a free port.

    The port is below the range that the kernel gives to outgoing connections, so it stays free until a part listens.
    """
    ephemeral = int(_EPHEMERAL_RANGE.read_text().split()[0])
    while True:
        one = socket.socket()
        try:
            one.bind(("127.0.0.1", secrets.choice(range(_LOWEST, ephemeral)) if ephemeral > 2 * _LOWEST else 0))
        except OSError:
            one.close()
        else:
            return one


def passable(folder: Path) -> bool:
    """Return whether every user of the machine may pass through a folder. A missing folder will be made so."""
    try:
        return bool(folder.stat().st_mode & stat.S_IXOTH)
    except FileNotFoundError:
        return True


def choose_data_root(var: Path, passable: Callable[[Path], bool] = passable) -> Path:
    """Return the worker's data root: under `var` if QEMU can reach it, otherwise in /var/lib.

    QEMU runs as the user libvirt-qemu. A clone in /root (mode 0700) hides its disks from it.
    """
    if all(passable(folder) for folder in (var, *var.parents)):
        return var / "worker"
    return Path(f"/var/lib/saltern-dev-{_digest(var)}")


def choose_socket_folder(var: Path) -> Path:
    """Return the folder of Salt's unix sockets: under `var`, unless their paths would be too long for the kernel."""
    folder = var / "salt/run"
    return folder if len(str(folder)) <= _SOCKET_FOLDER_MAX else Path(f"/run/saltern-dev-{_digest(var)}")


def _digest(var: Path) -> str:
    """Return eight letters that identify the clone, the parent of `var`."""
    return hashlib.sha256(str(var.parent).encode()).hexdigest()[:8]


@dataclass(frozen=True)
class Layout:
    """One stack. Tests add settings of the worker, the master service and the Salt master to the generated files."""

    var: Path = REPO / "var"
    ports: Ports = Ports()
    minion: str = "worker1"
    worker_settings: Mapping[str, float | str] = field(default_factory=dict)
    master_settings: Mapping[str, float | str] = field(default_factory=dict)
    salt_master_settings: Mapping[str, object] = field(default_factory=dict)
    salt_profile: Literal["dedicated", "shared"] = "dedicated"

    @property
    def images(self) -> Path:
        """Return the folder for `file:` images."""
        return self.var / "images"

    @property
    def saved(self) -> Path:
        """Return the folder that disks are saved into, and may be fetched from again."""
        return self.var / "saved"

    @property
    def files(self) -> Path:
        """Return a file root of the Salt master: `salt://images/a.raw` is `files/images/a.raw`."""
        return self.var / "files"

    @property
    def data_root(self) -> Path:
        """Return the worker's data root."""
        return choose_data_root(self.var)

    @property
    def salt(self) -> Path:
        """Return Salt's folder (`-c`) for configuration, keys and cache."""
        return self.var / "salt"

    @property
    def sockets(self) -> Path:
        """Return the folder of Salt's unix sockets."""
        return choose_socket_folder(self.var)

    @property
    def worker_toml(self) -> Path:
        """Return the path of the worker's settings."""
        return self.var / "worker.toml"

    @property
    def master_toml(self) -> Path:
        """Return the path of the master service's settings."""
        return self.var / "master.toml"

    @property
    def gate_toml(self) -> Path:
        """Return the path of the gate's settings."""
        return self.var / "gate.toml"

    @property
    def gate_socket(self) -> Path:
        """Return the socket of the gate, the master service's only way to Salt."""
        return self.sockets / "gate.sock"

    @property
    def admin_token(self) -> Path:
        """Return the file with the bearer token of the master's admin."""
        return self.var / "admin.token"

    @property
    def worker_token(self) -> Path:
        """Return the file with a bearer token for the worker API, which reads its digest in `worker_tokens`."""
        return self.var / "worker.token"

    @property
    def worker_tokens(self) -> Path:
        """Return the worker API's list of accepted tokens."""
        return self.var / "worker.tokens"

    @property
    def api_secret(self) -> Path:
        """Return the file with the password of the gate's account at salt-api."""
        return self.salt / "api.secret"

    @property
    def cherrypy_url(self) -> str:
        """Return the address of salt-api (rest_cherrypy)."""
        return f"http://127.0.0.1:{self.ports.api}"

    @property
    def worker_url(self) -> str:
        """Return the address of the worker API."""
        return f"http://127.0.0.1:{self.ports.worker}"

    @property
    def master_url(self) -> str:
        """Return the address of the master service."""
        return f"http://127.0.0.1:{self.ports.master}"

    def log(self, part: str) -> Path:
        """Return the path of a part's log, which has its output too."""
        return self.var / "log" / f"{part}.log"

    def identity(self, part: str) -> Path:
        """Return the path of the file that identifies a part's process."""
        return self.var / "run" / f"{part}.json"
