"""The record: what a worker knows of one VM, as values. `store` keeps it on disk; `lifecycle` says what follows."""

from __future__ import annotations

import uuid as uuidlib
from collections.abc import Mapping
from datetime import datetime
from enum import StrEnum
from typing import Any, Final

import msgspec

from worker_service.contract import HaltCause, Software, Spec
from worker_service.contract.uri import Form, SaveTarget, save_target

FORMAT: Final = 1
DISKS: Final = ("hda", "hdb")
BEING_CHANGED: Final = "?"
"""No URI, so whichever disc is wanted is still to be put in."""


class Phase(StrEnum):
    """Where a VM is in its life. The statuses of the contract are computed from this and the domain's state."""

    FETCHING = "fetching"
    BUILDING = "building"
    BOOTING = "booting"
    UP = "up"
    FLATTENING = "sealing"  # the value in records of 0.1
    SAVING = "saving"
    CLEANING = "cleaning"
    DONE = "done"
    KEPT = "kept"
    START_FAILED = "start failed"
    SAVE_FAILED = "save failed"
    DESTROYING = "destroying"


TRANSITIONS: Final[Mapping[Phase, frozenset[Phase]]] = {
    Phase.FETCHING: frozenset({Phase.BUILDING, Phase.START_FAILED, Phase.CLEANING, Phase.DESTROYING}),
    # With disks of an earlier life it ends like one that was up: they are kept, or saved where that is asked for.
    Phase.BUILDING: frozenset(
        {Phase.BOOTING, Phase.START_FAILED, Phase.KEPT, Phase.FLATTENING, Phase.CLEANING, Phase.DESTROYING}
    ),
    Phase.BOOTING: frozenset(
        {Phase.UP, Phase.START_FAILED, Phase.KEPT, Phase.FLATTENING, Phase.CLEANING, Phase.DESTROYING}
    ),
    Phase.UP: frozenset({Phase.FLATTENING, Phase.CLEANING, Phase.KEPT, Phase.START_FAILED, Phase.DESTROYING}),
    Phase.FLATTENING: frozenset({Phase.SAVING, Phase.SAVE_FAILED, Phase.DESTROYING}),
    Phase.SAVING: frozenset({Phase.CLEANING, Phase.SAVE_FAILED, Phase.DESTROYING}),
    Phase.CLEANING: frozenset({Phase.DONE, Phase.DESTROYING}),
    # From here a new start goes on: from the images, or from the disks that were kept.
    Phase.DONE: frozenset({Phase.FETCHING, Phase.DESTROYING}),
    Phase.START_FAILED: frozenset({Phase.FETCHING, Phase.DESTROYING}),
    Phase.KEPT: frozenset({Phase.BUILDING, Phase.FLATTENING, Phase.CLEANING, Phase.DESTROYING}),
    Phase.SAVE_FAILED: frozenset({Phase.FLATTENING, Phase.DESTROYING}),
    Phase.DESTROYING: frozenset(),
}

STARTING: Final = frozenset({Phase.FETCHING, Phase.BUILDING, Phase.BOOTING})
"""Phases before a VM is up."""

ENDING: Final = frozenset({Phase.FLATTENING, Phase.SAVING})
"""Phases in which its disks are brought home."""

RESERVING: Final = frozenset(Phase) - {Phase.DONE, Phase.START_FAILED, Phase.SAVE_FAILED}
"""Phases in which a VM's memory and processors count as taken."""

OF_KEPT_DISKS: Final = ("hda_image", "hdb_image", "hypervisor")
"""Parameters that a start cannot change where it goes on from disks that were kept."""

SETTLED: Final = frozenset({Phase.DONE, Phase.START_FAILED, Phase.SAVE_FAILED, Phase.KEPT})
"""Phases in which nothing is pending: a VM stays there until somebody asks for something."""


class Disk(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One disk of a VM, from its image to its saved file. Sizes in bytes."""

    base: str | None = None
    """Digest of the base in the cache. None while fetching, and for blank disks."""
    base_format: str = "qcow2"
    virtual_size: int = 0
    target_version: str | None = msgspec.field(default=None, name="target_seen")
    """Validator of the file at `*_save_to` when the VM started. A file that has changed since is not overwritten."""
    flat_file: str = ""
    """Name of the flattened file, in the VM's folder. Empty before flattening, and in records of 0.1."""
    flat_sha256: str | None = msgspec.field(default=None, name="sealed_sha256")
    flat_size: int | None = msgspec.field(default=None, name="sealed_size")
    flat_form: Form = msgspec.field(default=Form(), name="sealed_form")
    """The form of the flattened file. If the target's form changes after a failed save, the disk is flattened again."""
    saved_to: str | None = None

    def flat_name(self, disk_name: str) -> str:
        """Return the name of the flattened file. A file without a noted name has the name that 0.1 gave it."""
        return self.flat_file or f"{disk_name}.sealed.{self.flat_form.suffix}"


class Record(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """All that is durable about one VM. Changed only through `store.update`, phases only through `move`."""

    uuid: str
    spec: Spec
    generation: int
    phase: Phase
    phase_since: datetime
    created_at: datetime
    format: int = FORMAT
    message: str = ""
    disks: dict[str, Disk] = {}
    cd: str | None = None
    """Digest of the CD in the drive, None when it is empty. Differs from the spec's `cd_image` until it is changed."""
    cd_uri: str = ""
    """URI that `cd` came from; BEING_CHANGED where another one may be in the drive already."""
    shutdown_asked: bool = False
    """An operator asked the guest to shut down: tells that halt from one by the guest's own will."""
    halt_cause: HaltCause | None = None
    """Why it is off, or was until it is up again; None from then on, and in a life that has not been up yet."""
    host_boot: str = ""
    """Boot id of the host when this VM was last booted. Off in another one, it may have gone down with its host."""
    ended_by_host: bool = False
    """libvirt said that the host ended it: a signal to QEMU, as systemd sends when the host shuts down."""
    tries: int = 0
    """Begun tries of the step under way. Durable: a crash neither adds nor forgets one."""
    try_open: bool = False
    """The last begun try has not ended: after a crash it goes on under the same number."""
    next_try_at: datetime | None = None
    next_try_of: str = ""
    """The step that is to wait until then: no other one does. Empty in records of older versions: whichever is next."""
    problem: str | None = None
    instance_id: str = msgspec.field(default="", name="life")
    """Names this life of the VM, from its images to its halt, to its guest: cloud-init does its work once a life."""
    ready_at: datetime | None = None
    """When the guest had reported all that was asked of it. Durable: from then on it is never `installing` again."""
    software: tuple[Software, ...] = ()
    """What the agent had reported when it was ready, or failed."""
    resumed_at: datetime | None = None
    """When it was last resumed: time in which it was paused does not count as lack of progress."""
    unsaved: bool = False
    """Its disks could not be saved. Until they are, they are moved to failed_to_save and never deleted."""
    minion_key: str = ""
    """Public key of the Salt minion in the guest; the private one is only in its seed."""
    targets: dict[str, SaveTarget] = {}
    """Disk -> where it is saved when the VM halts. A disk without a target is discarded."""

    def __post_init__(self) -> None:
        """Parse each `*_save_to`, unless `targets` has them already: those of a new spec, or of a record of 0.1."""
        uris = {"hda": self.spec.hda_save_to, "hdb": self.spec.hdb_save_to}
        if {disk: uri for disk, uri in uris.items() if uri} != {d: each.uri.text for d, each in self.targets.items()}:
            targets = {disk: save_target(uri) for disk, uri in uris.items() if uri}
            msgspec.structs.force_setattr(self, "targets", targets)

    @property
    def installing(self) -> bool:
        """Whether the guest has still to report that it is ready."""
        return self.spec.wants_agent and self.ready_at is None

    @property
    def has_own_disks(self) -> bool:
        """Before it is up: whether it goes on from disks of an earlier life, which hold what nothing else does."""
        return self.halt_cause is not None

    @property
    def name(self) -> str:
        """The VM's name."""
        return self.spec.name

    def image(self, disk: str) -> str | None:
        """Return the URI of the image of a disk (`hda`, `hdb`), or None."""
        return {"hda": self.spec.hda_image, "hdb": self.spec.hdb_image}[disk] or None

    def save_to(self, disk: str) -> str | None:
        """Return the URI that a disk is saved to when the VM halts, or None if it is discarded."""
        target = self.targets.get(disk)
        return target.uri.text if target else None

    @property
    def wanted_disks(self) -> tuple[str, ...]:
        """The disks of this VM."""
        return tuple(disk for disk in DISKS if self.image(disk))

    @property
    def saved_disks(self) -> tuple[str, ...]:
        """The disks that are saved when the VM halts."""
        return tuple(disk for disk in self.wanted_disks if disk in self.targets)


def move(record: Record, phase: Phase, now: datetime, **changes: Any) -> Record:
    """The record in its next phase; tries and problems belong to a phase and start afresh.

    Raises AssertionError for a step that the transition table does not have: a bug, not a user's mistake.
    """
    if phase not in TRANSITIONS[record.phase]:
        raise AssertionError(f"no transition from {record.phase} to {phase} (VM {record.uuid})")
    return msgspec.structs.replace(
        record, **{**RETRY_RESET, "message": "", **changes, "phase": phase, "phase_since": now}
    )


RETRY_RESET: Final[Mapping[str, Any]] = {
    "tries": 0, "try_open": False, "next_try_at": None, "next_try_of": "", "problem": None,
}  # fmt: skip
"""What a new phase, or a step that is done, leaves of the tries before."""

NEW_INSTANCE_FIELDS: Final[Mapping[str, Any]] = {
    "disks": {}, "cd": None, "cd_uri": "", "halt_cause": None,
    "instance_id": "", "ready_at": None, "software": (), "resumed_at": None, "unsaved": False, "minion_key": "",
}  # fmt: skip
"""What a new life knows of an earlier one: nothing."""


def with_disk(record: Record, disk: str, **changes: Any) -> Record:
    """Return the record with one disk changed."""
    changed = msgspec.structs.replace(record.disks.get(disk, Disk()), **changes)
    return msgspec.structs.replace(record, disks={**record.disks, disk: changed})


def new_uuid() -> str:
    """A fresh random uuid, as libvirt writes them."""
    return str(uuidlib.uuid4())
