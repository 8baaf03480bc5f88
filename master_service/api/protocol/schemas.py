"""Schemas of requests and answers: no coercion, no unknown fields, and a sentence for each invalid field."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

import msgspec
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from master_service.api.protocol.capabilities import DriverView, driver_views
from master_service.core.settings import Settings
from master_service.planning.actions import console_of, describe_end_of, lacks_of
from master_service.planning.disk_ends import TARGETS, describe_origin, stored_target
from master_service.planning.observed import awaits_effect
from master_service.planning.outcomes import Outcome
from master_service.planning.placement import WorkerState, worker_states
from master_service.planning.planner import recent_restarts
from master_service.planning.status import MasterStatus, display_status
from master_service.planning.user_actions import pending_settings
from master_service.planning.vm import VM, Worker
from master_service.policy import validation
from worker_service.contract import MAX_SOFTWARE, MODIFIABLE, Arch, Hypervisor, RunPolicy, Spec

ImageUri = Annotated[str, AfterValidator(validation.validate_image_uri)]
Text = Annotated[str, AfterValidator(validation.validate_text)]
"""A text that is stored and shown to others."""
CdUri = Annotated[str, AfterValidator(validation.validate_cd_uri)]
SaveUri = Annotated[str, AfterValidator(validation.validate_save_uri)]
Labels = Annotated[
    dict[str, str],
    AfterValidator(validation.validate_labels),
    Field(description="your own words to find VMs by: `?label=role=web`; workers do not get them"),
]


class CreateVM(BaseModel):
    """A new VM: the contract's parameters of `start`, and its only worker."""

    model_config = ConfigDict(strict=True, extra="forbid")

    name: Annotated[str, AfterValidator(validation.validate_name)]
    hypervisor: Hypervisor = "kvm"
    cpu_count: int = Field(1, ge=1, le=validation.MAX_CPUS)
    mem_size: int = Field(512, ge=validation.MIN_MEM_MIB, le=validation.MAX_MEM_MIB, description="memory in MiB")
    sys_arch: Arch = "x86_64"
    hda_image: ImageUri = Field(description="URI of the disk image, optionally with `#sha256=…`; or `blank:20G`")
    hda_save_to: SaveUri | None = Field(
        None,
        description="URI to save it to when the VM halts; absent or `keep`: it stays on its worker; "
        "empty: it is discarded",
    )
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
        None, description="for the guest's cloud-init, as the three below; default: its name"
    )
    ssh_keys: list[Annotated[str, AfterValidator(validation.guest_word_validator("ssh_keys"))]] = Field(
        [], max_length=50, description="public keys that may log in"
    )
    user_data: Annotated[str, AfterValidator(validation.validate_user_data)] | None = Field(
        None, description="URI of a cloud-config document, which the worker fetches"
    )
    minion_master: Annotated[str, AfterValidator(validation.guest_word_validator("minion_master"))] | None = Field(
        None, description="Salt master that the guest joins; its public key is shown as minion_key"
    )
    network: Annotated[str, AfterValidator(validation.validate_network)] = Field(
        "user", description="user, none, network=NAME or bridge=NAME"
    )
    run_policy: RunPolicy = Field(
        "on_failure",
        description="on_failure: start again after a crash; always: also after its guest shut it down; "
        "once: never again by itself; manual: as once, and not started at creation",
    )
    worker: Text | None = Field(None, min_length=1, max_length=255, description="minion id of the only worker to use")

    labels: Labels = {}
    protected: bool = Field(False, description="true: the master refuses to destroy it until that is changed")

    @model_validator(mode="after")
    def _fits_together(self) -> CreateVM:
        if self.hdb_save_to and not self.hdb_image:
            raise ValueError("hdb_save_to is given without hdb_image; give both, or leave both out")
        if self.soft_list and self.run_agent is False:
            raise ValueError("soft_list needs the agent; leave run_agent out, or the list")
        return self

    def spec(self) -> Spec:
        """Return the parameters as the worker reads them."""
        given = self.model_dump(include=set(Spec.__struct_fields__))
        targets = {name: stored_target(given[name]) for name in TARGETS if given[name] is not None}
        return msgspec.convert(given | targets, Spec)


class DesiredVM(CreateVM):
    """A VM in a file: the parameters of a new one, and its desired state."""

    state: Literal["running", "halted", "paused"] = "running"


class DesiredVMs(BaseModel):
    """A file for `saltern apply -f`, in YAML or JSON."""

    model_config = ConfigDict(strict=True, extra="forbid", title="VMs for saltern apply")

    vmachines: list[DesiredVM]


class ModifyVM(BaseModel):
    """The modifiable parameters of a VM; omitted ones stay."""

    model_config = ConfigDict(strict=True, extra="forbid")

    hda_save_to: SaveUri | None = Field(
        None, description="empty: the disk is discarded when the VM halts; `keep`: it stays on its worker"
    )
    hdb_save_to: SaveUri | None = None
    cd_image: CdUri | None = Field(None, description="empty: the CD is ejected")
    labels: Labels | None = Field(None, description="all labels of the VM")
    protected: bool | None = Field(None, description="true: the master refuses to destroy it")

    @model_validator(mode="after")
    def _says_something(self) -> ModifyVM:
        if not self.settings() and self.labels is None and self.protected is None:
            raise ValueError(f"nothing to change; give {', '.join(MODIFIABLE)}, labels or protected")
        return self

    def settings(self) -> dict[str, str]:
        """Return the given parameters, without the labels and the protection."""
        given: dict[str, str] = self.model_dump(exclude_none=True, include=set(MODIFIABLE))
        return given


class StartVM(BaseModel):
    """What a start begins with."""

    model_config = ConfigDict(strict=True, extra="forbid")

    origin: Literal["save", "image"] = Field(
        "save",
        alias="from",
        description="save: its last save, if it has one; image: its images, as a new instance",
    )


class ProblemView(BaseModel):
    """A problem that a user should know."""

    code: str
    message: str


class SaveView(BaseModel):
    """A saved disk, and the digest of the file there."""

    uri: str
    sha256: str


class VMView(BaseModel):
    """One VM: its desired state, its observed state, and why they differ. Times are UTC."""

    uuid: str
    name: str
    owner: str
    owner_id: str = Field(description="id of the owner's account: another one may get the name later")
    status: MasterStatus
    desired: str = Field(description="the desired state: running, paused, halted or destroyed")
    assumed: str = Field(description="how far the desired state has been carried out, in the contract's words")
    real: str | None = Field(description="the worker's own status, as of real_at")
    real_at: datetime | None
    age_s: float | None = Field(description="seconds since the last report of its worker")
    worker: str | None
    worker_states: list[WorkerState] = Field(description="why that worker gets no new VMs; empty if it gets them")
    reason: str = Field(description="why it is not in its desired state; empty when it is")
    message: str = Field(description="the worker's own sentence; the reason if there is no report")
    problems: list[ProblemView]
    attempts: int = Field(description="how often the current command was sent")
    next_try_at: datetime | None
    refused: bool = Field(
        description="whether its worker refuses the last command for good: its user has to change something"
    )
    restarts: int = Field(description="how often it was started again by itself lately, after it stopped unexpectedly")
    restart_limit: int = Field(description="the number of restarts after which it is left off")
    progress: dict[str, Any] | None
    software: list[dict[str, Any]] = Field(
        description="the entries of soft_list: name, state (pending, installing, installed, failed), version, tail"
    )
    minion_key: str = Field(description="public key of the Salt minion in the guest, with minion_master")
    vnc: str = Field("", description="always empty: `POST …/console` opens the console")
    lacks: list[str] = Field(
        description="what its hypervisor cannot do on its worker, in the words of that worker's `drivers`: suspend, …"
    )
    console: str = Field(
        description="how the console shows its screen: vnc; screenshot: pictures and keys, without a pointer; "
        "empty: it is off, or its worker does not say"
    )
    spec: dict[str, Any]
    awaited: bool = Field(description="whether its last report is older than the last command about its status")
    pending: list[str] = Field(description="changed parameters that its worker has not accepted yet")
    when_it_halts: str = Field(description="what becomes of its disks then: saved, kept on its worker, or discarded")
    starts_from: str = Field(description="what its next start goes on from; empty: it is on, or has only its images")
    saves: dict[str, SaveView] = Field(description="the last save of each disk")
    pin: str | None = Field(description="minion id of the only worker that may run it")
    labels: dict[str, str]
    protected: bool = Field(description="whether the master refuses to destroy it")
    generation: int
    version: int = Field(description="for If-Match: counts changes of the desired state")
    created_at: datetime
    changed_at: datetime


class ActionView(BaseModel):
    """The answer to a verb, with the VM now. `done`: whether the effect was observed; null: this verb does not wait."""

    done: bool | None
    outcome: Outcome | None = Field(
        description="done, failed, refused by its worker, superseded by another request; null: not known yet"
    )
    message: str
    vmachine: VMView


class UnassignedView(BaseModel):
    """A VM that is on a worker without being assigned to it by this master."""

    uuid: str
    name: str
    state: str = Field(description="the worker's own status")
    since: str = Field(description="when it got this status, by the worker's clock")
    owner: str = Field(description="its owner by the last command; empty: it was started at the worker itself")


class WorkerView(BaseModel):
    """One worker. Its capacity is as of seen_at; memory in MiB, disk in bytes."""

    id: str
    enrolled: bool = Field(description="whether the master believes what it says; otherwise it waits and gets no VMs")
    fingerprint: str = Field(description="its key, or the key to compare before it is enrolled; may be empty")
    reachable: bool
    unreachable_since: datetime | None
    seen_at: datetime | None
    age_s: float | None
    draining: bool
    fenced_at: datetime | None
    version: str
    capacity: dict[str, Any] | None
    drivers: dict[str, DriverView] = Field(description="by hypervisor; empty: an older worker, or it has not reported")
    foreign: list[dict[str, Any]] = Field(description="domains that are not ours: listed, never touched")
    unassigned_vms: list[UnassignedView] = Field(description="our VMs that are not assigned to it; adopt them, or not")
    problem: str | None
    clock_skew_s: float | None = Field(
        description="its clock minus ours at its last answer, accurate to the duration of a poll"
    )


def vm_view(vm: VM, now: datetime, settings: Settings) -> VMView:
    """Return the view of one VM."""
    shown = display_status(vm, now, settings)
    desired, observed = vm.desired, vm.observed
    progress = observed.status.progress if observed.status else None
    return VMView(
        uuid=vm.uuid,
        name=desired.name,
        owner=desired.owner,
        owner_id=desired.owner_id,
        status=shown.status,
        desired=desired.status.value,
        assumed=shown.assumed,
        real=shown.real,
        real_at=observed.real_at,
        age_s=_age_s(observed.real_at, now),
        worker=desired.worker,
        worker_states=list(worker_states(vm.worker)) if vm.worker else [],
        reason=shown.reason,
        message=_message(vm, shown.reason),
        problems=[ProblemView(code=problem.code, message=problem.message) for problem in shown.problems],
        attempts=vm.current_dispatch.attempts,
        next_try_at=shown.next_at,
        refused=shown.refused,
        restarts=recent_restarts(vm, now, settings),
        restart_limit=settings.restart_limit,
        progress=msgspec.to_builtins(progress) if progress else None,
        software=[msgspec.structs.asdict(entry) for entry in observed.status.software] if observed.status else [],
        minion_key=observed.status.minion_key if observed.status else "",
        lacks=lacks_of(vm),
        console=console_of(vm),
        # Not to_builtins, which omits defaults: users want to see all parameters.
        spec=msgspec.structs.asdict(desired.spec),
        awaited=awaits_effect(vm),
        pending=pending_settings(vm),
        when_it_halts=describe_end_of(vm),
        starts_from=describe_origin(vm),
        saves={disk: SaveView(uri=save.uri, sha256=save.sha256) for disk, save in observed.saves.items()},
        pin=desired.pin,
        labels=dict(desired.labels),
        protected=desired.protected,
        generation=desired.generation,
        version=desired.version,
        created_at=desired.created_at,
        changed_at=desired.changed_at,
    )


def _message(vm: VM, reason: str) -> str:
    status = vm.observed.status
    # The last message of a VM that was destroyed on its worker is about what is no more.
    gone = vm.observed.tombstone is not None and reason
    return reason if status is None or gone else status.message


def worker_view(worker: Worker, now: datetime) -> WorkerView:
    """Return the view of one worker."""
    return WorkerView(
        id=worker.id,
        enrolled=bool(worker.key),
        fingerprint=worker.key or worker.claimed_key,
        reachable=worker.unreachable_since is None,
        unreachable_since=worker.unreachable_since,
        seen_at=worker.seen_at,
        age_s=_age_s(worker.seen_at, now),
        draining=worker.draining,
        fenced_at=worker.fenced_at,
        version=worker.version,
        capacity=_capacity(worker),
        drivers=driver_views(worker),
        foreign=[msgspec.to_builtins(found) for found in worker.foreign],
        unassigned_vms=[
            UnassignedView(
                uuid=found.uuid, name=found.name, state=found.status.value, since=found.since, owner=found.owner
            )
            for found in worker.unassigned_vms
        ],
        problem=_problem(worker),
        clock_skew_s=_skew_s(worker),
    )


def _capacity(worker: Worker) -> dict[str, Any] | None:
    """Return the capacity without the drivers, which have a field of their own."""
    if worker.capacity is None:
        return None
    found: dict[str, Any] = msgspec.to_builtins(worker.capacity)
    return {name: value for name, value in found.items() if name != "drivers"}


def _problem(worker: Worker) -> str | None:
    if not worker.key:
        return "it waits to be enrolled"
    if worker.claimed_key:
        return f"a minion of this name presents another key: {worker.claimed_key}"
    return worker.problem


def _skew_s(worker: Worker) -> float | None:
    if worker.capacity is None or worker.seen_at is None or not worker.capacity.clock:
        return None
    try:
        clock = datetime.fromisoformat(worker.capacity.clock)
    except ValueError:
        return None
    return None if clock.tzinfo is None else round((clock - worker.seen_at).total_seconds(), 1)


def _age_s(at: datetime | None, now: datetime) -> float | None:
    return None if at is None else round(max(0.0, (now - at).total_seconds()), 1)
