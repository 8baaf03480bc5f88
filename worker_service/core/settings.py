"""The worker's settings: one TOML file, typed, with the site's policy in it.

Looked for in this order: the path given, `SALTERN_WORKER_SETTINGS`, `/etc/saltern/worker.toml`. Without a file the
defaults hold: they read and write nothing outside the data root and fetch from public addresses only.
"""

from __future__ import annotations

import os
from datetime import timedelta
from pathlib import Path
from typing import Final, Literal

import msgspec

from worker_service.contract import TRIES
from worker_service.core.errors import BadRequest

DEFAULT_PATH: Final = Path("/etc/saltern/worker.toml")
ENVIRONMENT: Final = "SALTERN_WORKER_SETTINGS"


class StoreCredentials(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="kind"):
    """A store that wants to know who asks. Secrets lie in files of their own, which nobody else may read (0600)."""


class BasicStore(StoreCredentials, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="basic"):
    """User and password over http(s)."""

    user: str
    password_file: Path


class BearerStore(StoreCredentials, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="bearer"):
    """A bearer token over http(s)."""

    token_file: Path


class S3Store(StoreCredentials, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="s3"):
    """A bucket, or with `s3://*` all buckets, at an endpoint that speaks S3. Buckets are named in the path."""

    endpoint: str
    """For example `https://s3.eu-central-1.amazonaws.com` or `https://minio.example.org:9000`."""
    access_key_id: str
    secret_key_file: Path
    region: str = "us-east-1"
    save: bool = False
    """Whether disks may be saved there."""


class SftpStore(StoreCredentials, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="sftp"):
    """A server that speaks SFTP. Its key must be in `known_hosts`: no key is ever accepted on first sight."""

    user: str
    known_hosts: Path
    key_file: Path | None = None
    password_file: Path | None = None
    """Of the user; used where there is no `key_file`."""
    save: bool = False
    """Whether disks may be saved there."""


class ImagePolicy(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What may be fetched and where disks may be saved."""

    read_roots: tuple[Path, ...] = ()
    """Folders that `file:` images may lie in."""
    write_roots: tuple[Path, ...] = ()
    """Folders that disks may be saved into."""
    http_networks: tuple[str, ...] = ()
    """Networks (CIDR) allowed for http, s3 and sftp beside the public ones, for example a store on 10.0.0.0/8."""
    save_hosts: tuple[str, ...] = ()
    """Hosts that disks may be saved to over http, as `host` or `host:port`."""
    stores: dict[str, BasicStore | BearerStore | S3Store | SftpStore] = {}
    """Who this worker is where, by `scheme://host[:port]` or `s3://bucket`. s3 and sftp know no other stores."""
    salt_roots: tuple[str, ...] = ()
    """Folders of the Salt master's file server that `salt:` images may lie in, for example `images`."""
    minion_config: Path = Path("/etc/salt/minion")
    """The minion whose master `salt:` images come from."""
    max_virtual_gib: int = 2048
    """Refuse an image whose virtual size is larger, a compressed one that is when it is unpacked, a blank disk."""
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
    min_bytes_per_s: int = 4096
    """Slowest that a server may be, on average over `timeout_s`, whether it gives or takes; 0: as slow as it likes."""


class ApiSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
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
    calls_per_s: float = 500.0
    """Calls that one token may make in a second, on average; twice as many at once. More are answered 429."""
    receive_timeout_s: float = 20.0
    """Longest time for a request to arrive whole, its head and its body. Slower ones are cut off."""
    max_consoles: int = 64
    """Screens shown at once, through the facade."""
    origins: tuple[str, ...] = ()
    """Origins of pages that may show screens, as `https://console.example`; without any, the facade's own names."""
    url: str = ""
    """How others reach this facade, where that is not `host` and `port`: `https://worker1.example:8081`."""
    connections: int = 512
    """Connections at once. One more than that ends the one that has kept its request back longest."""


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Everything a worker can be told. Sizes in MiB or GiB and times in seconds, as the names say."""

    data_root: Path = Path("/var/lib/saltern")
    libvirt_uri: str = "qemu:///system"
    libvirt_timeout_s: float = 60.0
    """How long libvirt may take for one answer, or a tenth of a boot; then it hangs, and the verb says so."""
    libvirt_log_folder: Path = Path("/var/log/libvirt/qemu")
    """Where libvirt logs each domain's starts and ends; read where libvirt, restarted, has forgotten how one ended."""
    acceleration: Literal["auto", "kvm", "tcg"] = "auto"
    reserve_mem_mib: int = 256
    """Memory of the host that is never promised to VMs."""
    cpu_overcommit: float = 16.0
    """Processors promised to VMs for each one of the host."""
    max_parallel_jobs: int = 4
    """How many helpers fetch at once, how many boot, and how many save; the others wait."""
    retry_delay_s: float = 10.0
    """Pause before the second try of a fetch, a boot or a save; doubled for the third."""
    tick_s: float = 5.0
    """How often the watcher looks at everything when no event wakes it."""
    install_limit_s: float = 1800.0
    """How long a guest may go without any progress of its agent before it has failed to start."""
    keep_halted_s: float = 86_400.0
    """How long a halted VM stays listed."""
    images: ImagePolicy = ImagePolicy()
    api: ApiSettings = ApiSettings()

    def retry_delay(self, tries: int) -> timedelta:
        """Return the pause after that many failed tries."""
        return timedelta(seconds=self.retry_delay_s * 2 ** (min(tries, TRIES) - 1))


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
        # msgspec checks names and types in one go.
        return msgspec.convert(_with_new_names(msgspec.toml.decode(text)), type=Settings, dec_hook=_path, strict=True)
    except (msgspec.MsgspecError, ValueError) as err:
        raise BadRequest(f"The settings file {chosen} is not right: {err}. Correct that line.") from err


_RENAMED: Final = {"seats": "max_parallel_jobs", "facade": "api"}
_RENAMED_IN_API: Final = {"screens": "max_consoles"}
"""Names that settings had in version 0.1; both are read."""


def _with_new_names(settings: dict[str, object]) -> dict[str, object]:
    """Return the settings under the names of this version. Raises ValueError when a setting is given under both."""
    found = _renamed(settings, _RENAMED)
    if isinstance(api := found.get("api"), dict):
        found["api"] = _renamed(api, _RENAMED_IN_API)
    return found


def _renamed(given: dict[str, object], names: dict[str, str]) -> dict[str, object]:
    if twice := [name for name in names if name in given and names[name] in given]:
        raise ValueError(f"`{twice[0]}` and `{names[twice[0]]}` are two names of one setting; keep the second")
    return {names.get(name, name): value for name, value in given.items()}


def _path(kind: type, value: object) -> object:
    if kind is Path and isinstance(value, str):
        return Path(value)
    raise ValueError(f"expected {kind.__name__}, got {value!r}")
