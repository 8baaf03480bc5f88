"""Where everything of one stack lies: folders, ports, sockets and the worker's data root.

A stack is nothing but its `Layout`: two with different `var` and ports live beside each other.
"""

from __future__ import annotations

import hashlib
import secrets
import socket
import stat
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

REPO: Final = Path(__file__).resolve().parents[1]
PYTHON: Final = REPO / ".venv/bin/python"
_GIVEN: Final = Path("/proc/sys/net/ipv4/ip_local_port_range")
_LOWEST: Final = 10_000
_SOCKET_FOLDER_MAX: Final = 70
"""A unix socket's path ends at 107 characters; Salt's own file names take up to 35 of them."""


@dataclass(frozen=True)
class Ports:
    """TCP ports on 127.0.0.1: Salt's publisher and request server, salt-api, the worker facade, the master service."""

    publish: int = 4505
    request: int = 4506
    api: int = 8000
    worker: int = 8081
    master: int = 8080

    @classmethod
    def free(cls) -> Ports:
        """Five ports that nobody uses now, for a stack beside the others."""
        with ExitStack() as held:  # held together, or one of them might be drawn twice
            return cls(*(held.enter_context(bound()).getsockname()[1] for _ in range(5)))


def bound() -> socket.socket:
    """A socket with a port that nobody uses now.

    The kernel gives it to nobody until it is listened at: it is below those that it hands out to whoever connects.
    """
    lowest_given = int(_GIVEN.read_text().split()[0])
    while True:
        one = socket.socket()
        try:
            one.bind(("127.0.0.1", secrets.choice(range(_LOWEST, lowest_given)) if lowest_given > 2 * _LOWEST else 0))
        except OSError:
            one.close()
        else:
            return one


def passable(folder: Path) -> bool:
    """Whether every user of the machine may go through this folder. What does not exist yet is made passable."""
    try:
        return bool(folder.stat().st_mode & stat.S_IXOTH)
    except FileNotFoundError:
        return True


def choose_data_root(var: Path, passable: Callable[[Path], bool] = passable) -> Path:
    """Where the worker keeps its VMs: under `var` if QEMU can get there, else in /var/lib.

    QEMU runs as the user libvirt-qemu. A clone in /root (mode 0700) hides its disks from it.
    """
    if all(passable(folder) for folder in (var, *var.parents)):
        return var / "worker"
    return Path(f"/var/lib/saltern-dev-{_digest(var)}")


def choose_socket_folder(var: Path) -> Path:
    """Where Salt's unix sockets lie: under `var` unless that makes their paths longer than the kernel takes."""
    folder = var / "salt/run"
    return folder if len(str(folder)) <= _SOCKET_FOLDER_MAX else Path(f"/run/saltern-dev-{_digest(var)}")


def _digest(var: Path) -> str:
    """Eight letters that tell two clones apart. `var` is <clone>/var, and the clone gives the name."""
    return hashlib.sha256(str(var.parent).encode()).hexdigest()[:8]


@dataclass(frozen=True)
class Layout:
    """One stack. `worker_settings` and `master_settings` are put on top of the generated files, for tests."""

    var: Path = REPO / "var"
    ports: Ports = Ports()
    minion: str = "worker1"
    worker_settings: Mapping[str, float | str] = field(default_factory=dict)
    master_settings: Mapping[str, float | str] = field(default_factory=dict)

    @property
    def images(self) -> Path:
        """Folder that `file:` images may lie in."""
        return self.var / "images"

    @property
    def saved(self) -> Path:
        """Folder that disks are saved into, and may be fetched from again."""
        return self.var / "saved"

    @property
    def files(self) -> Path:
        """A file root of the Salt master: `salt://images/a.raw` is `files/images/a.raw`."""
        return self.var / "files"

    @property
    def data_root(self) -> Path:
        """The worker's own folder."""
        return choose_data_root(self.var)

    @property
    def salt(self) -> Path:
        """Configuration, keys and cache of Salt (its `-c` folder)."""
        return self.var / "salt"

    @property
    def sockets(self) -> Path:
        """Salt's unix sockets."""
        return choose_socket_folder(self.var)

    @property
    def worker_toml(self) -> Path:
        """Settings of the worker."""
        return self.var / "worker.toml"

    @property
    def master_toml(self) -> Path:
        """Settings of the master service."""
        return self.var / "master.toml"

    @property
    def admin_token(self) -> Path:
        """Bearer token of the master's admin."""
        return self.var / "admin.token"

    @property
    def worker_token(self) -> Path:
        """Bearer token of the worker facade; `worker_tokens` holds its digest, which is all that the facade reads."""
        return self.var / "worker.token"

    @property
    def worker_tokens(self) -> Path:
        """The facade's list of accepted tokens."""
        return self.var / "worker.tokens"

    @property
    def api_secret(self) -> Path:
        """Password of the master service's account at salt-api."""
        return self.salt / "api.secret"

    @property
    def cherrypy_url(self) -> str:
        """Where salt-api (rest_cherrypy) listens."""
        return f"http://127.0.0.1:{self.ports.api}"

    @property
    def worker_url(self) -> str:
        """Where the worker facade listens."""
        return f"http://127.0.0.1:{self.ports.worker}"

    @property
    def master_url(self) -> str:
        """Where the master service listens."""
        return f"http://127.0.0.1:{self.ports.master}"

    def log(self, part: str) -> Path:
        """What a part printed and logged."""
        return self.var / "log" / f"{part}.log"

    def identity(self, part: str) -> Path:
        """Which process a part is."""
        return self.var / "run" / f"{part}.json"
