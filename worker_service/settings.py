"""The worker's settings: one TOML file, typed, with the site's policy in it.

Looked for in this order: the path given, `SALTERN_WORKER_SETTINGS`, `/etc/saltern/worker.toml`. Without a file the
defaults hold: they read and write nothing outside the data root and fetch from public addresses only.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final, Literal

import msgspec

from worker_service.errors import BadRequest

DEFAULT_PATH: Final = Path("/etc/saltern/worker.toml")
ENVIRONMENT: Final = "SALTERN_WORKER_SETTINGS"


class Images(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What may be fetched and where disks may be saved."""

    read_roots: tuple[Path, ...] = ()
    """Folders that `file:` images may lie in."""
    write_roots: tuple[Path, ...] = ()
    """Folders that disks may be saved into."""
    http_networks: tuple[str, ...] = ()
    """Networks (CIDR) allowed for http beside the public ones, for example a store on 10.0.0.0/8."""
    save_hosts: tuple[str, ...] = ()
    """Hosts that disks may be saved to over http, as `host` or `host:port`."""
    max_virtual_gib: int = 2048
    """Refuse an image whose virtual size is larger, or a compressed one that is when it is unpacked."""
    max_download_gib: int = 512
    """Refuse to download more than this for one image."""
    max_ratio: int = 1000
    """Refuse a compressed image that grows more than this many times; zeros, which take no room, are not counted."""
    max_unpack_s: float = 3600.0
    """Longest time of the processor that unpacking one image may take."""
    cache_gib: int = 200
    """What cached bases that no VM uses may take up together with those in use; the least recently used go first."""
    reserve_mib: int = 512
    """Free space in the data root that images never use: the records need it."""
    timeout_s: float = 60.0
    """Longest silence of a server before a transfer counts as failed."""


class Facade(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The HTTP door."""

    host: str = "127.0.0.1"
    port: int = 8081
    allowed_hosts: tuple[str, ...] = ("127.0.0.1", "localhost", "::1")
    """Accepted names in the Host header; others are refused (DNS rebinding)."""
    tokens_file: Path = Path("/etc/saltern/worker.tokens")
    """Lines of `<sha256 of the token> <scope,scope> <label>`."""
    tls_cert: Path | None = None
    tls_key: Path | None = None
    """Needed for any address but loopback."""
    minion_config: Path = Path("/etc/salt/minion")
    """The facade loads its execution modules as this minion does."""


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Everything a worker can be told. Sizes in MiB or GiB and times in seconds, as the names say."""

    data_root: Path = Path("/var/lib/saltern")
    libvirt_uri: str = "qemu:///system"
    acceleration: Literal["auto", "kvm", "tcg"] = "auto"
    reserve_mem_mib: int = 256
    """Memory of the host that is never promised to VMs."""
    cpu_overcommit: float = 16.0
    """Processors promised to VMs for each one of the host."""
    seats: int = 4
    """How many helpers fetch at once, how many boot, and how many save; the others wait."""
    retry_delay_s: float = 10.0
    """Pause before the second try of a fetch, a boot or a save; doubled for the third."""
    tick_s: float = 5.0
    """How often the watcher looks at everything when no event wakes it."""
    keep_halted_s: float = 86_400.0
    """How long a halted VM stays listed."""
    images: Images = Images()
    facade: Facade = Facade()


def load(path: str | Path | None = None) -> Settings:
    """Read the settings; raises BadRequest that names the file and the line of what is wrong."""
    chosen = Path(path or os.environ.get(ENVIRONMENT) or DEFAULT_PATH)
    try:
        text = chosen.read_bytes()
    except FileNotFoundError:
        if chosen == DEFAULT_PATH:
            return Settings()
        raise BadRequest(f"The settings file {chosen} does not exist. Create it or name another.") from None
    except OSError as err:
        raise BadRequest(f"The settings file {chosen} cannot be read: {err.strerror}. Check its permissions.") from err
    try:
        # tomllib is in the standard library; msgspec checks names and types in one go.
        return msgspec.toml.decode(text, type=Settings, dec_hook=_path, strict=True)
    except msgspec.MsgspecError as err:
        raise BadRequest(f"The settings file {chosen} is not right: {err}. Correct that line.") from err


def _path(kind: type, value: object) -> object:
    if kind is Path and isinstance(value, str):
        return Path(value)
    raise ValueError(f"expected {kind.__name__}, got {value!r}")
