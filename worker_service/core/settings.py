"""The worker's settings: one typed TOML file, with the site's policy.

The file is the first of: the given path, `SALTERN_WORKER_SETTINGS`, `/etc/saltern/worker.toml`. Without a file the
defaults hold. They allow no path outside the data root, and fetch from public addresses only.
"""

from __future__ import annotations

import ipaddress
import os
from datetime import timedelta
from pathlib import Path
from typing import Final, Literal
from urllib.parse import urlsplit

import msgspec

from worker_service.contract import TRIES, Hypervisor
from worker_service.core.errors import BadRequest

DEFAULT_PATH: Final = Path("/etc/saltern/worker.toml")
ENVIRONMENT: Final = "SALTERN_WORKER_SETTINGS"


EVERYBODY: Final = ("*",)
"""The owners of a store that is open to the VMs of all owners."""
GUEST_DENIED_NETWORKS: Final = (
    "0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.0.0.0/24",
    "192.168.0.0/16", "198.18.0.0/15", "224.0.0.0/3", "168.63.129.16/32", "::/127", "::ffff:0:0/96", "64:ff9b::/96",
    "64:ff9b:1::/48", "fc00::/7", "fe80::/9", "ff00::/8",
)  # fmt: skip
"""Private, shared, link-local, loopback, metadata and group addresses, and IPv6 ones that lead to such IPv4 ones."""


class StoreCredentials(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="kind"):
    """Credentials for an image store. Secrets lie in files of their own, readable only by the worker (0600).

    In all texts and paths, `{owner}` stands for the name of the owner of the VM.
    """

    owners: tuple[str, ...] = EVERYBODY
    """Owners whose VMs may use it, as globs: `["ann", "lab-*"]`. `""` is the site itself."""
    save: bool = False
    """Whether disks may be saved there."""


class OpenStore(StoreCredentials, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="open"):
    """A folder of a server over http(s) without credentials, on a server that is divided into folders."""


class BasicStore(StoreCredentials, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="basic"):
    """User and password over http(s)."""

    user: str
    password_file: Path


class BearerStore(StoreCredentials, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="bearer"):
    """A bearer token over http(s)."""

    token_file: Path


class QueryStore(StoreCredentials, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="query"):
    """A folder over http(s) whose URLs need a signature in their query, such as a shared access signature (SAS)."""

    query_file: Path
    """What stands behind the question mark, for example `sv=2024-11-04&sr=c&sp=r&se=…&sig=…`."""


class S3Store(StoreCredentials, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="s3"):
    """A bucket, or with `s3://*` all buckets, at an endpoint that speaks S3. The path names the bucket."""

    endpoint: str
    """For example `https://s3.eu-central-1.amazonaws.com` or `https://minio.example.org:9000`."""
    access_key_id: str
    secret_key_file: Path
    region: str = "us-east-1"


class SftpStore(StoreCredentials, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="sftp"):
    """A server that speaks SFTP. Its key must be in `known_hosts`: the worker never accepts an unknown key."""

    user: str
    known_hosts: Path
    key_file: Path | None = None
    password_file: Path | None = None
    """Password of the user, if there is no `key_file`."""


class HttpProxy(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An HTTP proxy to the stores of images over http, https and s3. sftp does not use it.

    The proxy resolves the names of hosts and connects to them, so it also has to refuse private addresses.
    """

    url: str
    """For example `http://proxy.example.org:3128`."""
    user: str = ""
    password_file: Path | None = None
    """Password of the user at the proxy, in a file of its own (0600)."""
    direct: tuple[str, ...] = ()
    """Hosts that are reached without the proxy, as names or globs: `["store.example.org", "*.lan", "10.*"]`."""

    def __post_init__(self) -> None:
        """Raise ValueError for a URL that is not that of a proxy, or has a password in it."""
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname or "@" in parts.netloc:
            raise ValueError("`url` of a proxy is http://HOST:PORT, and its login are `user` and `password_file`")


class ImagePolicy(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which images may be fetched, and where disks may be saved.

    In roots and in the names of stores, `{owner}` stands for the name of the owner of the VM. Such a folder is closed
    to the VMs of all others, also to those of the site itself.
    """

    read_roots: tuple[Path, ...] = ()
    """Folders that `file:` images may lie in: `/srv/images` for everybody, `/srv/saved/{owner}` for each owner."""
    write_roots: tuple[Path, ...] = ()
    """Folders that disks may be saved into, for example `/srv/saved/{owner}`."""
    http_networks: tuple[str, ...] = ()
    """Networks (CIDR) allowed for http, s3 and sftp in addition to public ones, for example a store on 10.0.0.0/8."""
    save_hosts: tuple[str, ...] = ()
    """Hosts that disks may be saved to over http, as `host` or `host:port`."""
    stores: dict[str, OpenStore | BasicStore | BearerStore | QueryStore | S3Store | SftpStore] = {}
    """Stores by `scheme://host[:port]/folder` or `s3://bucket/folder`; the deepest entry decides. s3 and sftp reach no
    other stores, and sftp only entries with a folder. Over http(s), a server with an entry for a folder or for some
    owners is reached only through its entries."""
    proxy: HttpProxy | None = None
    """The way to http, https and s3 stores at a site whose workers do not reach them by themselves."""
    salt_roots: tuple[str, ...] = ()
    """Folders of the Salt master's file server that `salt:` images may lie in: `images`, or `images/{owner}`."""
    minion_config: Path = Path("/etc/salt/minion")
    """Configuration of the minion from whose master `salt:` images come."""
    max_virtual_gib: int = 2048
    """Refuse an image or a blank disk with a larger virtual size. A compressed image counts as unpacked."""
    max_download_gib: int = 512
    """Refuse to download more than this for one image."""
    max_ratio: int = 1000
    """Refuse a compressed image that grows more than this many times. Zeros take no room and do not count."""
    max_unpack_s: float = 3600.0
    """Longest processor time for unpacking one image."""
    cache_gib: int = 200
    """Size of the cache. Above it, bases that no VM uses are removed, the least recently used ones first."""
    reserve_mib: int = 512
    """Free space in the data root that images never use, because the records need it."""
    timeout_s: float = 60.0
    """Longest silence of a server before a transfer counts as failed."""
    min_bytes_per_s: int = 4096
    """Lowest transfer rate in either direction, on average over `timeout_s`; 0 sets no limit."""

    @property
    def owner(self) -> str:
        """The owner for whose VMs the policy is read. This one is the site's: it reaches no template."""
        return ""

    def for_owner(self, owner: str) -> OwnerPolicy:
        """Return the policy as the VMs of an owner have it; `""` is the site itself."""
        return OwnerPolicy(**{**{name: getattr(self, name) for name in self.__struct_fields__}, "owner": owner})


class OwnerPolicy(ImagePolicy, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The policy as the VMs of one owner have it. `transfer.access` decides by it."""

    owner: str = ""


class ApiSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The worker's HTTP API."""

    host: str = "127.0.0.1"
    port: int = 8081
    allowed_hosts: tuple[str, ...] = ("127.0.0.1", "localhost", "::1")
    """Accepted names in the Host header; others are refused (DNS rebinding)."""
    tokens_file: Path = Path("/etc/saltern/worker.tokens")
    """Lines of `<sha256 of the token> <scope,scope> <label>`."""
    tls_cert: Path | None = None
    tls_key: Path | None = None
    """Required for any address but loopback."""
    minion_config: Path = Path("/etc/salt/minion")
    """Configuration of the minion whose execution modules the API loads."""
    calls_per_s: float = 500.0
    """Calls per second that one token may make on average, and twice as many at once. More are answered with 429."""
    receive_timeout_s: float = 20.0
    """Longest time for the head and the body of a request to arrive. Slower requests are cut off."""
    max_consoles: int = 64
    """Consoles shown at once through the API."""
    origins: tuple[str, ...] = ()
    """Origins of pages that may show consoles, as `https://console.example`. Without any, the API's own names count."""
    url: str = ""
    """Address of the API for other hosts, if it is not `host` and `port`: `https://worker1.example:8081`."""
    connections: int = 512
    """Connections at once. One more closes the connection that has waited longest without a complete request."""


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All settings of a worker. Sizes are in MiB or GiB and times in seconds, as the names say."""

    data_root: Path = Path("/var/lib/saltern")
    hypervisors: tuple[Hypervisor, ...] = ("kvm",)
    """The hypervisors of this host that VMs may use."""
    libvirt_uri: str = "qemu:///system"
    xen_uri: str = "xen:///system"
    """libvirt's connection to the Xen of this host, whose dom0 the worker runs in."""
    xen_guest: Literal["auto", "hvm", "pvh", "pv"] = "auto"
    """The kind of guests on Xen. `auto`: the first of these that the host can run."""
    xen_grub_folder: Path = Path("/usr/lib/grub-xen")
    """Folder of GRUB's images for guests without firmware (Debian: grub-xen-host)."""
    qemu_user: str = "libvirt-qemu"
    """The user that libvirt runs QEMU as (`user` in qemu.conf). Beside root it alone may read VMs and images."""
    guest_denied_networks: tuple[str, ...] = GUEST_DENIED_NETWORKS
    """Networks (CIDR) that guests on the network `user` may not reach, beside the host itself. See guest_firewall."""
    vboxmanage: str = "VBoxManage"
    """The program that drives VirtualBox: a path, or a name in /usr/lib/virtualbox or in PATH."""
    libvirt_timeout_s: float = 60.0
    """Time limit for one call of libvirt or VBoxManage, or for a tenth of a boot. After it the verb reports a hang."""
    libvirt_log_folder: Path = Path("/var/log/libvirt/qemu")
    """Folder of libvirt's logs about starts and ends of domains, for ends that a restarted libvirt has forgotten."""
    acceleration: Literal["auto", "kvm", "tcg"] = "auto"
    reserve_mem_mib: int = 256
    """Memory of the host that VMs never get."""
    cpu_overcommit: float = 16.0
    """Processors of VMs for each processor of the host."""
    max_parallel_jobs: int = 4
    """Helpers that fetch at once, and as many that boot and that save. Further helpers wait."""
    retry_delay_s: float = 10.0
    """Delay before the second try of a fetch, a boot or a save. Before the third try, it is twice as long for a save,
    and six times as long for a start, which thus outlives the restart of a server. A server may ask for up to 10
    minutes (Retry-After)."""
    tick_s: float = 5.0
    """Interval at which the watcher looks at all VMs when no event wakes it."""
    install_limit_s: float = 1800.0
    """Time without progress of its agent after which a guest has failed to start."""
    keep_halted_s: float = 86_400.0
    """Time for which a halted VM stays listed."""
    kept_room_s: float = 900.0
    """Time for which a VM that went off unexpectedly still counts against memory and processors, for its next start.
    Keep it above the master's `retry_cap_s`, the longest pause between two starts."""
    bridges: tuple[str, ...] = ()
    """Bridges of this host that VMs may join with `bridge=NAME`: names or globs. `{owner}` is the owner of the VM."""
    networks: tuple[str, ...] = ()
    """Networks of libvirt that VMs may join with `network=NAME`, in the same form."""
    images: ImagePolicy = ImagePolicy()
    api: ApiSettings = ApiSettings()

    def __post_init__(self) -> None:
        """Raise ValueError for a network that is none, and without a hypervisor."""
        if not self.hypervisors:
            raise ValueError("`hypervisors` is empty; name one, for example kvm")
        for network in self.guest_denied_networks:
            ipaddress.ip_network(network)

    def retry_delay(self, tries: int) -> timedelta:
        """Return the pause after that many failed tries."""
        return timedelta(seconds=self.retry_delay_s * 2 ** (min(tries, TRIES) - 1))

    def start_retry_delay(self, tries: int) -> timedelta:
        """Return the pause after that many failed tries of a start, which a person can only repeat by hand."""
        return timedelta(seconds=self.retry_delay_s * 6 ** (min(tries, TRIES - 1) - 1))


def load(path: str | Path | None = None) -> Settings:
    """Read the settings. Raises BadRequest that names the file and the wrong setting."""
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
        found = msgspec.convert(_with_new_names(msgspec.toml.decode(text)), type=Settings, dec_hook=_path, strict=True)
        for name in found.images.stores:
            urlsplit(name)
    except (msgspec.MsgspecError, ValueError) as err:
        raise BadRequest(f"The settings file {chosen} is not right: {err}. Correct that line.") from err
    return found


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
