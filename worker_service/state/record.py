"""The record: the worker's durable facts about one VM. `record_store` keeps it on disk, `lifecycle` decides by it."""

from __future__ import annotations

import uuid as uuidlib
from collections.abc import Mapping
from datetime import datetime
from enum import StrEnum
from typing import Any, Final

import msgspec

from worker_service.contract import HaltCause, Software, Spec
from worker_service.contract.uri import Form, SaveTarget, save_target
from worker_service.contract.uri_secrets import mask_fields, masked_parameters
from worker_service.images.overlay import Layer

FORMAT: Final = 1
DISKS: Final = ("hda", "hdb")
BEING_CHANGED: Final = "?"
"""No URI, so that it differs from every desired disc."""


class Phase(StrEnum):
    """The position of a VM in its life. The contract's statuses are computed from it and the domain's state."""

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
    # A VM with disks of an earlier run ends like one that was up: its disks are kept, or saved by a shutdown.
    Phase.BUILDING: frozenset(
        {Phase.BOOTING, Phase.START_FAILED, Phase.KEPT, Phase.FLATTENING, Phase.CLEANING, Phase.DESTROYING}
    ),
    Phase.BOOTING: frozenset(
        {Phase.UP, Phase.START_FAILED, Phase.KEPT, Phase.FLATTENING, Phase.CLEANING, Phase.DESTROYING}
    ),
    Phase.UP: frozenset({Phase.FLATTENING, Phase.CLEANING, Phase.KEPT, Phase.START_FAILED, Phase.DESTROYING}),
    # A VM whose disks are still here is up again when somebody starts its domain.
    Phase.FLATTENING: frozenset({Phase.SAVING, Phase.SAVE_FAILED, Phase.UP, Phase.DESTROYING}),
    Phase.SAVING: frozenset({Phase.CLEANING, Phase.KEPT, Phase.SAVE_FAILED, Phase.UP, Phase.DESTROYING}),
    Phase.CLEANING: frozenset({Phase.DONE, Phase.UP, Phase.DESTROYING}),
    # A new start goes on from here: from the images, or from the disks that were kept.
    Phase.DONE: frozenset({Phase.FETCHING, Phase.DESTROYING}),
    Phase.START_FAILED: frozenset({Phase.FETCHING, Phase.DESTROYING}),
    Phase.KEPT: frozenset({Phase.BUILDING, Phase.FLATTENING, Phase.CLEANING, Phase.UP, Phase.DESTROYING}),
    Phase.SAVE_FAILED: frozenset({Phase.FLATTENING, Phase.UP, Phase.DESTROYING}),
    Phase.DESTROYING: frozenset(),
}

STARTING: Final = frozenset({Phase.FETCHING, Phase.BUILDING, Phase.BOOTING})
"""Phases before a VM is up."""

ENDING: Final = frozenset({Phase.FLATTENING, Phase.SAVING})
"""Phases in which the disks are flattened and saved."""

TAKES_AS: Final[Mapping[Phase, str]] = {
    **dict.fromkeys((Phase.FETCHING, Phase.BUILDING, Phase.BOOTING), "starting"),
    Phase.UP: "on",
    **dict.fromkeys((Phase.FLATTENING, Phase.SAVING, Phase.CLEANING, Phase.DESTROYING), "ending"),
    Phase.KEPT: "kept",
}
"""Phases in which a VM's memory and processors count as taken, and the word for it. `kept` is limited in time, and
counts only while the next start is due."""

OF_KEPT_DISKS: Final = ("hda_image", "hdb_image", "hypervisor")
"""Parameters that a start from kept disks cannot change."""

SETTLED: Final = frozenset({Phase.DONE, Phase.START_FAILED, Phase.SAVE_FAILED, Phase.KEPT})
"""Phases without pending work: a VM stays there until the next command."""


def own_layer(disk_name: str, form: str = "qcow2") -> Layer:
    """Return the file that is made for a disk, in the format of its hypervisor."""
    return Layer(f"{disk_name}.{form}", form)


class Disk(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One disk of a VM, from its image to its saved file. Sizes in bytes."""

    base: str | None = None
    """Digest of the base in the cache. None while fetching, and for blank disks."""
    base_format: str = "qcow2"
    virtual_size: int = 0
    chain: tuple[Layer, ...] = ()
    """Where its data was last, if somebody moved it while the VM ran: the files above the base, of which the guest
    writes to the first. Paths in the VM's folder are relative to it. Empty: in the overlay that was made for it."""
    on_base: bool = True
    """Whether the base lies below the last file of the chain. A copy of the whole disk needs none."""
    base_source: str | None = None
    """Digest of the bytes at the image's URI, if they are packed and so are not the base's own."""
    target_version: str | None = msgspec.field(default=None, name="target_seen")
    """Validator of the file at `*_save_to` when it was last looked at, if the VM may replace it. Any other file is not
    overwritten."""
    flat_file: str = ""
    """Name of the flattened file, in the VM's folder. Empty before flattening, and in records of 0.1."""
    flat_sha256: str | None = msgspec.field(default=None, name="sealed_sha256")
    flat_size: int | None = msgspec.field(default=None, name="sealed_size")
    flat_form: Form = msgspec.field(default=Form(), name="sealed_form")
    """The form of the flattened file. If the target's form changes after a failed save, the disk is flattened again."""
    saved_to: str | None = None
    """Where the disk has been saved as it is now. None once a guest may have written to it again."""
    saved_sha256: str | None = None
    saved_size: int | None = None
    own_saves: tuple[str, ...] = ()
    """The saves that this instance has made of it, as `URI#sha256=DIGEST`, the last one last. It may replace them."""

    def layers(self, disk_name: str) -> tuple[Layer, ...]:
        """Return the files above the base, of which the guest writes to the first; paths as in `chain`."""
        return self.chain or (own_layer(disk_name),)

    @property
    def last_save(self) -> str | None:
        """The last save that this instance has made of it. Records of 0.2 have only the place and the digest."""
        if self.own_saves:
            return self.own_saves[-1]
        return f"{self.saved_to}#sha256={self.flat_sha256}" if self.saved_to else None

    def flat_name(self, disk_name: str) -> str:
        """Return the name of the flattened file. A file without a noted name has the name that 0.1 gave it."""
        return self.flat_file or f"{disk_name}.sealed.{self.flat_form.suffix}"


class Record(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The durable facts about one VM. Only `RecordStore.update` changes them, and only `move` changes the phase."""

    uuid: str
    spec: Spec
    generation: int
    phase: Phase
    phase_since: datetime
    created_at: datetime
    owner: str = ""
    """The account that the VM belongs to, from its master. Empty: the site itself, as in records of older versions."""
    format: int = FORMAT
    message: str = ""
    disks: dict[str, Disk] = {}
    cd: str | None = None
    """Digest of the CD in the drive, or None. The spec's `cd_image` may name another one already."""
    cd_uri: str = ""
    """URI of the CD in the drive; BEING_CHANGED if another one may be in it already."""
    shutdown_asked: bool = False
    """Whether an operator asked for a shutdown. It tells that halt from the guest's own."""
    halt_cause: HaltCause | None = None
    """Cause of the last halt, until the VM is up again. None also for an instance that has not been up yet."""
    host_boot: str = ""
    """Boot id of the host at the last boot of this VM. If it differs now, the VM may have gone down with its host."""
    ended_by_host: bool = False
    """Whether libvirt reported a signal to QEMU, as systemd sends at a shutdown of the host."""
    tries: int = 0
    """Tries of the current step. Durable: a crash neither adds nor forgets one."""
    try_open: bool = False
    """Whether the last try has not ended. After a crash it goes on under the same number."""
    next_try_at: datetime | None = None
    next_try_of: str = ""
    """The step that waits until `next_try_at`. Empty in records of older versions, for any step."""
    problem: str | None = None
    instance_id: str = msgspec.field(default="", name="life")
    """Names this instance to its guest. cloud-init does its work once for each instance."""
    ready_at: datetime | None = None
    """When the guest was ready. Durable: the instance is never `installing` again."""
    software: tuple[Software, ...] = ()
    """The report of the agent when the guest was ready or had failed."""
    resumed_at: datetime | None = None
    """Time of the last resume. A pause does not count as lack of progress."""
    unsaved: bool = False
    """Whether saving its disks has failed. Until they are saved, they lie in failed_to_save and are never deleted."""
    minion_key: str = ""
    """Public key of the Salt minion in the guest; the private one is only in its seed."""
    mac: str = ""
    """The address of its network card, if another VM has the one that its uuid gives."""
    targets: dict[str, SaveTarget] = {}
    """Disk -> where it is saved when the VM halts. A disk without a target is kept or discarded: `disks_stay`."""
    origin: dict[str, str] = {}
    """Disk -> `URI#sha256=DIGEST` of the save from which this instance started, instead of from the spec's image."""

    def __post_init__(self) -> None:
        """Mask secrets in URIs, and parse each `*_save_to` unless `targets` has them already.

        Version 0.1 accepted URIs with secrets. Its records lose them when they are read, and have no `targets`.
        """
        msgspec.structs.force_setattr(self, "spec", masked_parameters(self.spec))
        mask_fields(self, "cd_uri")
        uris = {"hda": self.spec.hda_save_to, "hdb": self.spec.hdb_save_to}
        if {disk: uri for disk, uri in uris.items() if uri} != {d: each.uri.text for d, each in self.targets.items()}:
            targets = {disk: save_target(uri) for disk, uri in uris.items() if uri}
            msgspec.structs.force_setattr(self, "targets", targets)

    @property
    def installing(self) -> bool:
        """Whether the guest has not reported yet that it is ready."""
        return self.spec.wants_agent and self.ready_at is None

    @property
    def has_own_disks(self) -> bool:
        """Whether a VM that is not up yet goes on from disks of an earlier run, whose data exists only there."""
        return self.halt_cause is not None

    @property
    def name(self) -> str:
        """The VM's name."""
        return self.spec.name

    def image(self, disk: str) -> str | None:
        """Return the URI from which a disk (`hda`, `hdb`) was made or will be made, or None."""
        image = {"hda": self.spec.hda_image, "hdb": self.spec.hdb_image}[disk] or None
        return image and self.origin.get(disk, image)

    def save_to(self, disk: str) -> str | None:
        """Return the URI that a disk is saved to when the VM halts; `""` discards it, and with None it stays."""
        target = self.targets.get(disk)
        return target.uri.text if target else {"hda": self.spec.hda_save_to, "hdb": self.spec.hdb_save_to}[disk]

    @property
    def disk_names(self) -> tuple[str, ...]:
        """The disks of this VM."""
        return tuple(disk for disk in DISKS if self.image(disk))

    @property
    def disks_to_save(self) -> tuple[str, ...]:
        """The disks that are saved when the VM halts."""
        return tuple(disk for disk in self.disk_names if disk in self.targets)

    @property
    def unsaved_disks(self) -> tuple[str, ...]:
        """The disks that are to be saved and are not yet, as they are now."""
        return tuple(disk for disk in self.disks_to_save if self.disks.get(disk, Disk()).saved_to is None)

    @property
    def disks_stay(self) -> bool:
        """Whether the disks stay on the worker when the VM halts: all of them, if one has no `*_save_to`.

        A disk that is saved stays as well. One that is to be discarded goes only with all disks of its VM, because the
        VM needs it at its next start.
        """
        return any(self.save_to(disk) is None for disk in self.disk_names)

    @property
    def last_saves(self) -> dict[str, str]:
        """The last save of each disk that has one, as `URI#sha256=DIGEST`: of this instance, or where it started."""
        own = {name: save for name, disk in self.disks.items() if (save := disk.last_save)}
        return {**self.origin, **own}


def move(record: Record, phase: Phase, now: datetime, **changes: Any) -> Record:
    """Return the record in its next phase, without the tries and problems of the last one.

    Raises AssertionError for a transition that is not in the table: that is a bug, not a user's mistake.
    """
    if phase not in TRANSITIONS[record.phase]:
        raise AssertionError(f"no transition from {record.phase} to {phase} (VM {record.uuid})")
    return msgspec.structs.replace(
        record, **{**RETRY_RESET, "message": "", **changes, "phase": phase, "phase_since": now}
    )


RETRY_RESET: Final[Mapping[str, Any]] = {
    "tries": 0, "try_open": False, "next_try_at": None, "next_try_of": "", "problem": None,
}  # fmt: skip
"""Values of the fields about tries in a new phase and after a finished step."""

NEW_INSTANCE_FIELDS: Final[Mapping[str, Any]] = {
    "disks": {}, "origin": {}, "cd": None, "cd_uri": "", "halt_cause": None,
    "instance_id": "", "ready_at": None, "software": (), "resumed_at": None, "unsaved": False, "minion_key": "",
}  # fmt: skip
"""Values of the fields that a new instance resets."""


NOT_FLAT: Final[Mapping[str, Any]] = {"flat_file": "", "flat_sha256": None, "flat_size": None}
"""Values of the fields of a disk that is not flattened, or not any more."""

NOT_SAVED: Final[Mapping[str, Any]] = {"saved_to": None, "saved_sha256": None, "saved_size": None}
"""Values of the fields of a disk that is not saved as it is now."""

_OWN_SAVES: Final = 16


def with_save(record: Record, disk: str, saved_to: str) -> Record:
    """Return the record with a disk saved as it was flattened."""
    known = record.disks[disk]
    own = (*known.own_saves, f"{saved_to}#sha256={known.flat_sha256}")[-_OWN_SAVES:]
    done = {"saved_to": saved_to, "saved_sha256": known.flat_sha256, "saved_size": known.flat_size}
    return with_disk(record, disk, **done, own_saves=own)


def with_disk(record: Record, disk: str, **changes: Any) -> Record:
    """Return the record with one disk changed."""
    changed = msgspec.structs.replace(record.disks.get(disk, Disk()), **changes)
    return msgspec.structs.replace(record, disks={**record.disks, disk: changed})


def new_uuid() -> str:
    """Return a new random uuid, as libvirt writes them."""
    return str(uuidlib.uuid4())
