"""The words that workers and the master share: parameters, statuses, replies, error codes, event tags.

Workers and masters of different versions meet: whoever reads a report ignores fields that it does not know, and a field
that is added gets a default, so that a report without it is still one. Orders are another matter: a worker that does
not know all of one refuses it (`requests`).

The master imports this folder and nothing else of the worker, so it depends on nothing but msgspec.
Source: the API draft in original-design.txt; DESIGN.md says what each status means.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Any, Final, Literal
from urllib.parse import urlsplit

import msgspec

PROTOCOL: Final = 1
"""Version of the shapes below. A worker says it in `version` and `list`; readers ignore fields they do not know."""

TRIES: Final = 3
"""How often a fetch, a boot or a save is tried before it counts as failed."""


class Status(StrEnum):
    """What a worker says of a VM. The strings are the contract's own."""

    STARTING = "starting"
    FAILED_TO_START = "failed to start"
    INSTALLING = "installing"
    RUNNING = "running"
    SUSPENDED = "suspended"
    SAVING = "saving"
    FAILED_TO_SAVE = "failed to save"
    HALTED = "halted"


UNHEALTHY: Final = frozenset({Status.FAILED_TO_START, Status.FAILED_TO_SAVE})


class HaltCause(StrEnum):
    """Why a VM is off. The first three are a wish: disks are saved as asked. After the others they are kept.

    A cause that only a newer worker knows reads as `unknown`.
    """

    GUEST = "guest shut down"
    OPERATOR = "operator shutdown"
    HOST = "host shutdown"
    HOST_LOST = "host crashed or lost power"
    CRASHED = "crashed"
    KILLED = "powered off from outside"
    UNKNOWN = "unknown"

    @classmethod
    def _missing_(cls, value: object) -> HaltCause:
        del value
        return cls.UNKNOWN


INTENDED_HALTS: Final = frozenset({HaltCause.GUEST, HaltCause.OPERATOR, HaltCause.HOST})


class Code(StrEnum):
    """Machine-readable reason of a refusal; `HTTP_STATUS` gives the code beside `success: false`.

    A reason that only a newer worker gives reads as `internal`; its message says more.
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
    """What a VM is to be: the parameters of `start`. Sizes: `mem_size` in MiB.

    `None` means absent. For `*_save_to` absent and `""` both mean: discard the disk when the VM halts.
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
    """Host name of the guest, given to its cloud-init like the three below; absent: the VM's name."""
    ssh_keys: tuple[str, ...] = ()
    """Public keys that may log in, as lines of `authorized_keys` without options."""
    user_data: str | None = None
    """URI of a cloud-config document. Never the document: parameters are shown to whoever sees the VM or its job."""
    minion_master: str | None = None
    """Host name or address of the Salt master that the guest is to join."""
    network: str = "user"
    run_policy: RunPolicy = "on_failure"
    """With `always` a guest's own shutdown saves nothing: the disk is kept for the next boot."""

    @property
    def wants_agent(self) -> bool:
        """Whether an agent must report before the VM counts as running; default: when there is software to install."""
        return bool(self.soft_list) if self.run_agent is None else self.run_agent

    @property
    def wants_seed(self) -> bool:
        """Whether the guest is given anything to read at its first boot."""
        told = self.hostname or self.ssh_keys or self.user_data or self.minion_master
        return self.wants_agent or bool(told)


MODIFIABLE: Final = ("hda_save_to", "hdb_save_to", "cd_image")
"""The parameters of `start` that `modify` can change afterwards."""


class SoftwareState(StrEnum):
    """How far one entry of `soft_list` is."""

    PENDING = "pending"
    INSTALLING = "installing"
    INSTALLED = "installed"
    FAILED = "failed"


class Software(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One entry of `soft_list`, as the agent in the guest reported it: the guest's own words, made harmless."""

    name: str
    state: SoftwareState = SoftwareState.PENDING
    version: str = ""
    """What the guest's package manager calls the installed version; empty where it does not say."""
    tail: str = ""
    """The last lines of what failed."""


class Progress(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How far the step under way is. `total` is None where it is not known. Bytes and seconds."""

    phase: str
    done: int = 0
    total: int | None = None
    rate: float | None = None
    eta_s: float | None = None


class DiskReport(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Where one disk of a halted VM is. `size` in bytes; `kept` is a path on the worker, `saved_to` a URI."""

    save_to: str | None = None
    saved_to: str | None = None
    sha256: str | None = None
    size: int | None = None
    kept: str | None = None


class VMStatus(msgspec.Struct, frozen=True, kw_only=True):
    """The answer to `status`, one entry of `list`, and the data of a status event. Times: ISO 8601, UTC."""

    uuid: str
    name: str
    status: Status
    message: str
    generation: int
    since: str
    vnc: str = ""
    hypervisor: str = ""
    success: bool = True
    progress: Progress | None = None
    start_try: int = 0
    """While `starting`: which try, of 3, of a fetch, of making the disks or of the boot is under way or comes next."""
    save_try: int = 0
    """While `saving`: which try of flattening or of writing the disks back; each of the two has 3."""
    halt_cause: HaltCause | None = None
    problem: str | None = None
    disks: dict[str, DiskReport] = {}
    software: tuple[Software, ...] = ()
    """The entries of `soft_list`, in its order."""
    minion_key: str = ""
    """With `minion_master`: the public key (PEM) under which the guest will ask that master to be accepted."""
    spec: Spec | None = None


class Capacity(msgspec.Struct, frozen=True, kw_only=True):
    """What a worker has, and what is not promised to a VM yet. Memory in MiB, disk in bytes."""

    hypervisors: tuple[str, ...]
    arches: tuple[str, ...]
    cpu_total: int
    cpu_free: int
    mem_total: int
    mem_free: int
    disk_free: int
    images: tuple[str, ...] = ()
    """URIs of cached images; placement prefers a worker that has the wanted one."""
    clock: str = ""
    """The worker's own clock when it told this; ISO 8601, UTC."""


class Foreign(msgspec.Struct, frozen=True, kw_only=True):
    """A domain that is not ours: listed, never touched."""

    uuid: str
    name: str
    state: str


class ListReply(msgspec.Struct, frozen=True, kw_only=True):
    """The answer to `list`: everything a worker knows, in one reply."""

    vmachines: tuple[VMStatus, ...]
    foreign: tuple[Foreign, ...]
    tombstones: dict[str, int]
    """uuid -> generation of VMs destroyed here: the confirmation of a `destroy` that a master missed."""
    capacity: Capacity
    version: str
    protocol: int = PROTOCOL
    success: bool = True
    message: str = ""


class Action(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One command of an `apply` batch. `params` are the keyword arguments of the verb beside uuid and generation."""

    verb: Literal["start", "modify", "suspend", "resume", "shutdown", "destroy", "save_retry"]
    uuid: str
    generation: int
    params: dict[str, Any] = {}


class ActionResult(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The reply to one action, and to each verb called by itself; `code` says why when `success` is false."""

    success: bool
    message: str
    uuid: str | None = None
    verb: str | None = None
    code: Code | None = None


class ApplyReply(msgspec.Struct, frozen=True, kw_only=True):
    """The answer to `apply`: one result per action, in order. `success` only when each one succeeded.

    `code` says why the first one that failed did: a batch of one answers as its verb does.
    """

    success: bool
    message: str
    results: tuple[ActionResult, ...]
    code: Code | None = None


READ_ONLY_VERBS: Final = frozenset({"status", "list", "plan", "version", "capabilities", "cache", "agent_log"})
"""Verbs that change nothing: no audit tells of them."""

WorkerInterface = Literal["worker-api", "salt-call"]
"""Doors through which a worker is reached without any Salt master."""


class AuditEvent(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Something done through a door of the worker's own; the data of an `audit` event. No other parameter is in it."""

    at: str
    """By the worker's clock; ISO 8601, UTC."""
    interface: WorkerInterface
    actor: str
    """The label of the token that was shown to the facade, or the user who ran `salt-call`."""
    verb: str
    name: str = ""
    uuid: str = ""
    address: str = ""
    """Where a call of the facade came from."""
    success: bool
    code: str = ""
    """Why not."""


_OLD_NAMES: Final = {"door": "interface", "who": "actor"}


def decode_audit_event(data: object) -> AuditEvent:
    """Read an audit event; a worker of version 0.1 names two fields differently. Raises msgspec.ValidationError."""
    if isinstance(data, dict):
        data = {_OLD_NAMES.get(name, name): value for name, value in data.items()}
        if data.get("interface") == "facade":
            data["interface"] = "worker-api"
    return msgspec.convert(data, AuditEvent)


EVENT_ROOT: Final = "vmachines"


def event_tag(minion: str, uuid: str, status: Status) -> str:
    """Tag of a status event on the Salt bus; its data is a `VMStatus`. Blanks become `_` so that globs stay easy."""
    return f"{EVENT_ROOT}/{minion}/{uuid}/{status.replace(' ', '_')}"


def alive_tag(minion: str) -> str:
    """Tag of a watcher's heartbeat: lets a reader of the event stream notice that the stream is dead."""
    return f"{EVENT_ROOT}/{minion}/alive"


def audit_tag(minion: str) -> str:
    """Tag of the event that tells of a deed past every Salt master; its data is a `Deed`."""
    return f"{EVENT_ROOT}/{minion}/audit"


def destroyed_tag(minion: str, uuid: str) -> str:
    """Tag of the event that confirms a `destroy`; its data is `{"uuid": …, "generation": …}`."""
    return f"{EVENT_ROOT}/{minion}/{uuid}/destroyed"


_USUAL_PORTS: Final = {"http": ":80", "https": ":443"}


def origin_of(url: str) -> str:
    """The origin of pages at a URL, as browsers write it: in small letters, without the scheme's usual port."""
    parts = urlsplit(url.lower())
    return f"{parts.scheme}://{parts.netloc.removesuffix(_USUAL_PORTS.get(parts.scheme, ''))}"
