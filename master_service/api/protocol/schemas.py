"""The shapes of requests and answers. Strict: no coercion, no unknown fields, a sentence for each field at fault."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

import msgspec
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from master_service.core.settings import Settings
from master_service.planning.outcomes import Outcome
from master_service.planning.status import MasterStatus, display_status
from master_service.planning.vm import VM, Worker
from master_service.policy import validation
from worker_service.contract import MAX_SOFTWARE, MODIFIABLE, Arch, Hypervisor, RunPolicy, Spec

ImageUri = Annotated[str, AfterValidator(validation.validate_image_uri)]
CdUri = Annotated[str, AfterValidator(validation.validate_cd_uri)]
SaveUri = Annotated[str, AfterValidator(validation.validate_save_uri)]
Labels = Annotated[
    dict[str, str],
    AfterValidator(validation.validate_labels),
    Field(description="words of yours to find VMs by: `?label=role=web`; no worker is told"),
]


class CreateVM(BaseModel):
    """A new VM: the contract's parameters of `start`, and where it must run."""

    model_config = ConfigDict(strict=True, extra="forbid")

    name: Annotated[str, AfterValidator(validation.validate_name)]
    hypervisor: Hypervisor = "kvm"
    cpu_count: int = Field(1, ge=1, le=validation.MAX_CPUS)
    mem_size: int = Field(512, ge=validation.MIN_MEM_MIB, le=validation.MAX_MEM_MIB, description="memory in MiB")
    sys_arch: Arch = "x86_64"
    hda_image: ImageUri = Field(description="URI of the disk image, `#sha256=…` after it if wished; or `blank:20G`")
    hda_save_to: SaveUri | None = Field(None, description="where it is saved when the VM halts; absent or empty: not")
    hdb_image: ImageUri | None = None
    hdb_save_to: SaveUri | None = None
    cd_image: CdUri | None = None
    run_agent: bool | None = Field(None, description="default: whether soft_list is given")
    soft_list: list[Annotated[str, AfterValidator(validation.guest_word_validator("soft_list"))]] = Field(
        [],
        max_length=MAX_SOFTWARE,
        description="software to install before it counts as running, `nginx` or `nginx=1.22*`",
    )
    hostname: Annotated[str, AfterValidator(validation.guest_word_validator("hostname"))] | None = Field(
        None, description="told to the guest's cloud-init, as the three below; default: its name"
    )
    ssh_keys: list[Annotated[str, AfterValidator(validation.guest_word_validator("ssh_keys"))]] = Field(
        [], max_length=50, description="public keys that may log in"
    )
    user_data: Annotated[str, AfterValidator(validation.validate_user_data)] | None = Field(
        None, description="URI of a cloud-config document, which the worker fetches"
    )
    minion_master: Annotated[str, AfterValidator(validation.guest_word_validator("minion_master"))] | None = Field(
        None, description="Salt master that the guest is to join; its public key is shown as minion_key"
    )
    network: Annotated[str, AfterValidator(validation.validate_network)] = Field(
        "user", description="user, none, network=NAME or bridge=NAME"
    )
    run_policy: RunPolicy = Field(
        "on_failure",
        description="on_failure: start again after a crash; always: also after its guest shut it down; "
        "once: never again by itself; manual: as once, and created without being started",
    )
    worker: str | None = Field(None, min_length=1, max_length=255, description="minion id of the only worker to use")

    labels: Labels = {}

    @model_validator(mode="after")
    def _fits_together(self) -> CreateVM:
        if self.hdb_save_to and not self.hdb_image:
            raise ValueError("hdb_save_to is given without hdb_image; give both, or leave both out")
        if self.soft_list and self.run_agent is False:
            raise ValueError("soft_list needs the agent; leave run_agent out, or the list")
        return self

    def spec(self) -> Spec:
        """The same as the worker reads it."""
        return msgspec.convert(self.model_dump(include=set(Spec.__struct_fields__)), Spec)


class WantedVM(CreateVM):
    """A VM as a file wants it: the parameters of a new one, and what it is to be."""

    state: Literal["running", "halted", "paused"] = "running"


class WantedVMs(BaseModel):
    """A file for `saltern apply -f`, in YAML or JSON."""

    model_config = ConfigDict(strict=True, extra="forbid", title="VMs for saltern apply")

    vmachines: list[WantedVM]


class ModifyVM(BaseModel):
    """Settings of a VM that can be changed; what is left out stays."""

    model_config = ConfigDict(strict=True, extra="forbid")

    hda_save_to: SaveUri | None = Field(None, description="empty: the disk is discarded when the VM halts")
    hdb_save_to: SaveUri | None = None
    cd_image: CdUri | None = Field(None, description="empty: the CD is ejected")
    labels: Labels | None = Field(None, description="all labels it is to have")

    @model_validator(mode="after")
    def _says_something(self) -> ModifyVM:
        if not self.settings() and self.labels is None:
            raise ValueError(f"nothing to change; give {', '.join(MODIFIABLE)} or labels")
        return self

    def settings(self) -> dict[str, str]:
        """What is to be changed, beside the labels."""
        given: dict[str, str] = self.model_dump(exclude_none=True, include=set(MODIFIABLE))
        return given


class ProblemView(BaseModel):
    """Something a person should know."""

    code: str
    message: str


class VMView(BaseModel):
    """One VM: what is wanted, what is seen, and why the two differ. Times are UTC."""

    uuid: str
    name: str
    owner: str
    status: MasterStatus
    desired: str = Field(description="the user's will: running, paused, halted or destroyed")
    assumed: str = Field(description="how far that will has been carried out, in the contract's words")
    real: str | None = Field(description="the worker's own word, as of real_at")
    real_at: datetime | None
    age_s: float | None = Field(description="seconds since its worker last said anything about it")
    worker: str | None
    reason: str = Field(description="why it is not as wanted, or not yet; empty when it is")
    message: str = Field(description="the worker's own sentence; the reason where it has said nothing yet")
    problems: list[ProblemView]
    attempts: int = Field(description="how often the command under way was sent")
    next_try_at: datetime | None
    progress: dict[str, Any] | None
    software: list[dict[str, Any]] = Field(
        description="the entries of soft_list: name, state (pending, installing, installed, failed), version, tail"
    )
    minion_key: str = Field(description="public key of the Salt minion in it, where minion_master was given")
    vnc: str
    spec: dict[str, Any]
    pin: str | None = Field(description="minion id of the only worker that may run it")
    labels: dict[str, str]
    generation: int
    version: int = Field(description="for If-Match: counts changes of what is wanted")
    created_at: datetime
    changed_at: datetime


class ActionView(BaseModel):
    """The answer to a verb: the VM as it is now. `done`: whether the effect was seen; null: this verb does not wait."""

    done: bool | None
    outcome: Outcome | None = Field(
        description="done, failed, refused by its worker, overtaken by another wish; null: not known yet"
    )
    message: str
    vmachine: VMView


class WorkerView(BaseModel):
    """One worker. Its capacity is as of seen_at; memory in MiB, disk in bytes."""

    id: str
    reachable: bool
    unreachable_since: datetime | None
    seen_at: datetime | None
    age_s: float | None
    draining: bool
    fenced_at: datetime | None
    version: str
    capacity: dict[str, Any] | None
    foreign: list[dict[str, Any]] = Field(description="domains that are not ours: listed, never touched")
    unassigned_vms: list[dict[str, Any]] = Field(
        description="VMs of our kind that were not assigned to it: reported only"
    )
    problem: str | None
    clock_skew_s: float | None = Field(description="its clock less ours when it last answered, to a poll's duration")


def vm_view(vm: VM, now: datetime, settings: Settings) -> VMView:
    """One VM as people see it."""
    shown = display_status(vm, now, settings)
    desired, observed = vm.desired, vm.observed
    progress = observed.status.progress if observed.status else None
    return VMView(
        uuid=vm.uuid,
        name=desired.name,
        owner=desired.owner,
        status=shown.status,
        desired=desired.status.value,
        assumed=shown.assumed,
        real=shown.real,
        real_at=observed.real_at,
        age_s=_age_s(observed.real_at, now),
        worker=desired.worker,
        reason=shown.reason,
        message=observed.status.message if observed.status else shown.reason,
        problems=[ProblemView(code=problem.code, message=problem.message) for problem in shown.problems],
        attempts=vm.current_dispatch.attempts,
        next_try_at=shown.next_at,
        progress=msgspec.to_builtins(progress) if progress else None,
        software=[msgspec.structs.asdict(entry) for entry in observed.status.software] if observed.status else [],
        minion_key=observed.status.minion_key if observed.status else "",
        vnc=observed.status.vnc if observed.status else "",
        # Not to_builtins: that leaves out what has its default, and people want to see all of it.
        spec=msgspec.structs.asdict(desired.spec),
        pin=desired.pin,
        labels=dict(desired.labels),
        generation=desired.generation,
        version=desired.version,
        created_at=desired.created_at,
        changed_at=desired.changed_at,
    )


def worker_view(worker: Worker, now: datetime) -> WorkerView:
    """One worker as people see it."""
    return WorkerView(
        id=worker.id,
        reachable=worker.unreachable_since is None,
        unreachable_since=worker.unreachable_since,
        seen_at=worker.seen_at,
        age_s=_age_s(worker.seen_at, now),
        draining=worker.draining,
        fenced_at=worker.fenced_at,
        version=worker.version,
        capacity=msgspec.to_builtins(worker.capacity) if worker.capacity else None,
        foreign=[msgspec.to_builtins(found) for found in worker.foreign],
        unassigned_vms=[msgspec.to_builtins(found) for found in worker.unassigned_vms],
        problem=worker.problem,
        clock_skew_s=_skew_s(worker),
    )


def _skew_s(worker: Worker) -> float | None:
    if worker.capacity is None or worker.seen_at is None or not worker.capacity.clock:
        return None
    try:
        told = datetime.fromisoformat(worker.capacity.clock)
    except ValueError:
        return None
    return None if told.tzinfo is None else round((told - worker.seen_at).total_seconds(), 1)


def _age_s(at: datetime | None, now: datetime) -> float | None:
    return None if at is None else round(max(0.0, (now - at).total_seconds()), 1)
