"""The messages between workers and the master: parameters, statuses, replies, error codes, event tags.

Workers and masters may have different versions. A reader of a report ignores unknown fields, and a new field has a
default, so that older reports stay valid. A worker refuses a command with an unknown field (`operations.validation`).

The master imports this folder and nothing else of the worker, so it depends on nothing but msgspec.
Source: the API draft in original-design.txt; DESIGN.md says what each status means.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Final, Literal
from urllib.parse import urlsplit

import msgspec

from worker_service.contract.capacity import Capacity, ConsoleKind
from worker_service.contract.uri_secrets import mask_fields, masked_parameters

PROTOCOL: Final = 1
"""Version of the messages below. A worker states it in `version` and `list`."""

OWNER_FEATURE: Final = "owner"
"""The worker reads the `owner` of a command (`Capacity.features`). Versions up to 0.2 do not."""

KEEP: Final = "keep"
"""The word that `modify` and `start` take for a `*_save_to` that is absent: the disk stays on its worker."""

KEEP_FEATURE: Final = "keep"
"""A disk whose `*_save_to` is absent stays on this worker when its VM halts. Versions up to 0.2 discard it."""

ORIGIN_FEATURE: Final = "origin"
"""The worker reads the `origin` of a start and of a plan. Versions up to 0.2 do not."""

TRIES: Final = 3
"""How often a fetch, a boot or a save is tried before it counts as failed."""


class Status(StrEnum):
    """The status of a VM on its worker. The strings are the contract's own."""

    STARTING = "starting"
    FAILED_TO_START = "failed to start"
    INSTALLING = "installing"
    RUNNING = "running"
    SUSPENDED = "suspended"
    SAVING = "saving"
    FAILED_TO_SAVE = "failed to save"
    HALTED = "halted"


UNHEALTHY: Final = frozenset({Status.FAILED_TO_START, Status.FAILED_TO_SAVE})


IGNORES_BUTTON: Final = (
    "its guest ignores the power button. Shut it down from inside (`poweroff` on its console), and let acpid or "
    "systemd handle the button in its image; destroy discards it with its disks"
)
"""What is wrong with a guest that does not shut down, and what helps. A part of a sentence."""


class HaltCause(StrEnum):
    """The cause of a halt. After the first three the disks are saved; after the others they are kept.

    A cause of a newer worker reads as `unknown`.
    """

    GUEST = "guest shut down"
    OPERATOR = "operator shutdown"
    HOST = "host shutdown"
    HOST_LOST = "host crashed or lost power"
    CRASHED = "crashed"
    KILLED = "powered off from outside"
    SAVED = "memory saved"
    MIGRATED = "migrated away"
    UNKNOWN = "unknown"

    @classmethod
    def _missing_(cls, value: object) -> HaltCause:
        del value
        return cls.UNKNOWN


INTENDED_HALTS: Final = frozenset({HaltCause.GUEST, HaltCause.OPERATOR, HaltCause.HOST})
CONTINUABLE_HALTS: Final = frozenset({HaltCause.SAVED, HaltCause.MIGRATED})
"""Causes after which the guest has not ended: its memory is in a file, or with another host."""


class Code(StrEnum):
    """Machine-readable reason of a refusal; `HTTP_STATUS` has its HTTP status.

    A code of a newer worker reads as `internal`; the message says more.
    """

    BAD_REQUEST = "bad_request"
    NO_TOKEN = "no_token"  # noqa: S105 - a code, not a secret
    TOO_LARGE = "too_large"
    TOO_MANY = "too_many_requests"
    NOT_FOUND = "not_found"
    NAME_TAKEN = "name_taken"
    CONFLICT = "conflict"
    STALE = "stale_generation"
    DESTROYED = "destroyed"
    POLICY = "policy"
    NO_ROOM = "no_room"
    UNSUPPORTED = "unsupported"
    BAD_IMAGE = "bad_image"
    FETCH_FAILED = "fetch_failed"
    SAVE_FAILED = "save_failed"
    HYPERVISOR = "hypervisor_unavailable"
    DISK = "disk_unavailable"
    TIMEOUT = "timeout"
    INTERNAL = "internal"

    @classmethod
    def _missing_(cls, value: object) -> Code:
        del value
        return cls.INTERNAL


HTTP_STATUS: Final[Mapping[Code, int]] = {
    Code.BAD_REQUEST: 400,
    Code.NO_TOKEN: 401,
    Code.POLICY: 403,
    Code.NOT_FOUND: 404,
    Code.NAME_TAKEN: 409,
    Code.CONFLICT: 409,
    Code.STALE: 409,
    Code.DESTROYED: 409,
    Code.TOO_LARGE: 413,
    Code.BAD_IMAGE: 422,
    Code.UNSUPPORTED: 422,
    Code.TOO_MANY: 429,
    Code.FETCH_FAILED: 502,
    Code.SAVE_FAILED: 502,
    Code.HYPERVISOR: 503,
    Code.DISK: 503,
    Code.TIMEOUT: 504,
    Code.NO_ROOM: 507,
    Code.INTERNAL: 500,
}

Hypervisor = Literal["kvm", "xen", "vbox"]
Arch = Literal["x86_64", "i386"]
RunPolicy = Literal["on_failure", "always", "once", "manual"]


class Spec(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The parameters of `start`. `mem_size` in MiB.

    `None` means absent. If a `*_save_to` is absent, the disk stays on its worker when the VM halts. `""` discards it.
    """

    name: str
    hypervisor: Hypervisor = "kvm"
    cpu_count: int = 1
    mem_size: int = 512
    sys_arch: Arch = "x86_64"
    hda_image: str
    hda_save_to: str | None = None
    hdb_image: str | None = None
    hdb_save_to: str | None = None
    cd_image: str | None = None
    run_agent: bool | None = None
    soft_list: tuple[str, ...] = ()
    hostname: str | None = None
    """Host name of the guest; absent: the VM's name. The guest's cloud-init gets it, and the next three."""
    ssh_keys: tuple[str, ...] = ()
    """Public keys for logging in, as lines of `authorized_keys` without options."""
    user_data: str | None = None
    """URI of a cloud-config document, never the document itself: viewers of the VM or its job see parameters."""
    minion_master: str | None = None
    """Host name or address of the Salt master that the guest joins."""
    network: str = "user"
    run_policy: RunPolicy = "on_failure"
    """With `always`, a shutdown by the guest saves nothing: the disk is kept for the next boot."""

    @property
    def wants_agent(self) -> bool:
        """Whether an agent must report before the VM counts as running. Default: if there is software to install."""
        return bool(self.soft_list) if self.run_agent is None else self.run_agent

    @property
    def wants_seed(self) -> bool:
        """Whether the guest gets a seed for its first boot."""
        cloud_init = self.hostname or self.ssh_keys or self.user_data or self.minion_master
        return self.wants_agent or bool(cloud_init)


class SoftwareState(StrEnum):
    """The state of one entry of `soft_list`."""

    PENDING = "pending"
    INSTALLING = "installing"
    INSTALLED = "installed"
    FAILED = "failed"


class Software(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One entry of `soft_list`, as the agent in the guest reported it. The texts are sanitized."""

    name: str
    state: SoftwareState = SoftwareState.PENDING
    version: str = ""
    """The installed version, as the guest's package manager names it; empty: unknown."""
    tail: str = ""
    """The last lines of a failed installation."""


class Progress(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The progress of the current step, in bytes and seconds. A `total` of None is unknown."""

    phase: str
    done: int = 0
    total: int | None = None
    rate: float | None = None
    eta_s: float | None = None


class DiskReport(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The place of one disk of a halted VM. `size` in bytes; `kept` is a path on the worker, `saved_to` a URI.

    `save_to` is as in `Spec`. `saved_to`, `sha256` and `size` are those of the save that has the disk as it is now.
    """

    save_to: str | None = None
    saved_to: str | None = None
    sha256: str | None = None
    size: int | None = None
    kept: str | None = None
    fate: str = ""
    """What becomes or became of it, in words: `will be kept when it halts`, `saved`. Empty: an older worker."""

    def __post_init__(self) -> None:
        """Mask secrets in both URIs."""
        mask_fields(self, "save_to", "saved_to")


class VMStatus(msgspec.Struct, frozen=True, kw_only=True):
    """The answer to `status`, one entry of `list`, and the data of a status event. Times: ISO 8601, UTC."""

    uuid: str
    name: str
    status: Status
    message: str
    generation: int
    since: str
    vnc: str = ""
    console: ConsoleKind = ""
    """How the screen gets to a viewer at `vnc`; empty without one, and in lists."""
    hypervisor: str = ""
    success: bool = True
    progress: Progress | None = None
    start_try: int = 0
    """While `starting`: the number, of 3, of the current or next try of the fetch, the disks or the boot."""
    save_try: int = 0
    """While `saving`: the number of the current or next try to flatten or to save the disks; each has 3."""
    halt_cause: HaltCause | None = None
    problem: str | None = None
    job: str = ""
    """What libvirt does with the domain for somebody else now, for example `migration`; it is left alone meanwhile."""
    disks: dict[str, DiskReport] = {}
    software: tuple[Software, ...] = ()
    """The entries of `soft_list`, in its order."""
    minion_key: str = ""
    """With `minion_master`: the public key (PEM) that the guest will present to that master."""
    owner: str = ""
    """The account that the VM belongs to, by the last command. Empty: the site itself, or an older worker."""
    origin: dict[str, str] = {}
    """As in `StartAction`: the saves from which this life started; of a disk that it discarded, its last save."""
    spec: Spec | None = None

    def __post_init__(self) -> None:
        """Mask secrets in URIs: records of version 0.1 may have some, and so may reports of its workers."""
        mask_fields(self, "message", "problem", "vnc")
        if self.spec is not None:
            msgspec.structs.force_setattr(self, "spec", masked_parameters(self.spec))


class Foreign(msgspec.Struct, frozen=True, kw_only=True):
    """A domain that is not managed here. It is listed and never touched."""

    uuid: str
    name: str
    state: str


class ListReply(msgspec.Struct, frozen=True, kw_only=True):
    """The answer to `list`: everything a worker knows, in one reply."""

    vmachines: tuple[VMStatus, ...]
    foreign: tuple[Foreign, ...]
    capacity: Capacity
    version: str
    protocol: int = PROTOCOL
    success: bool = True
    message: str = ""
    tombstones: dict[str, int] = {}
    """uuid -> generation of VMs destroyed here. It confirms a `destroy` whose reply the master missed.

    Only masters get them, and callers that request them.
    """


READ_ONLY_VERBS: Final = frozenset({"status", "list", "plan", "version", "capabilities", "cache", "agent_log"})
"""Verbs that change nothing and are not audited."""

WorkerInterface = Literal["worker-api", "salt-call", "salt"]
"""Interfaces of a worker that no master of Saltern sees: its HTTP API, `salt-call`, and jobs of other users of Salt."""


class AuditEvent(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The data of an `audit` event: an act through an interface of the worker's own. It has no other parameters."""

    at: str
    """By the worker's clock; ISO 8601, UTC."""
    interface: WorkerInterface
    actor: str
    """The label of the API token, or the user that ran `salt-call` or `salt`."""
    verb: str
    name: str = ""
    uuid: str = ""
    address: str = ""
    """The address of the API's caller."""
    success: bool
    code: str = ""
    """The reason of a failure."""


_OLD_NAMES: Final = {"door": "interface", "who": "actor"}


def decode_audit_event(data: object) -> AuditEvent:
    """Return an audit event. A worker of version 0.1 names two fields differently. Raises msgspec.ValidationError."""
    if isinstance(data, dict):
        data = {_OLD_NAMES.get(name, name): value for name, value in data.items()}
        if data.get("interface") == "facade":
            data["interface"] = "worker-api"
    return msgspec.convert(data, AuditEvent)


EVENT_ROOT: Final = "vmachines"


def event_tag(minion: str, uuid: str, status: Status) -> str:
    """Return the tag of a status event; its data is a `VMStatus`. Blanks become `_`, so that globs stay easy."""
    return f"{EVENT_ROOT}/{minion}/{uuid}/{status.replace(' ', '_')}"


def alive_tag(minion: str) -> str:
    """Return the tag of a watcher's heartbeat. It shows readers that the event stream is alive."""
    return f"{EVENT_ROOT}/{minion}/alive"


def audit_tag(minion: str) -> str:
    """Return the tag of the event about an act that involved no Salt master; its data is an `AuditEvent`."""
    return f"{EVENT_ROOT}/{minion}/audit"


def destroyed_tag(minion: str, uuid: str) -> str:
    """Return the tag of the event that confirms a `destroy`; its data is `{"uuid": …, "generation": …}`."""
    return f"{EVENT_ROOT}/{minion}/{uuid}/destroyed"


_DEFAULT_PORTS: Final = {"http": ":80", "https": ":443"}


def origin_of(url: str) -> str:
    """Return the origin of pages at a URL, as browsers write it: in lower case, without the scheme's default port."""
    parts = urlsplit(url.lower())
    return f"{parts.scheme}://{parts.netloc.removesuffix(_DEFAULT_PORTS.get(parts.scheme, ''))}"
