"""A Salt with simulated workers: the master's view of the world, one step at a time and without waiting."""

import asyncio
import base64
import hashlib
import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from master_service.core.errors import SaltError
from master_service.saltapi.client import Event, SaltProfile
from worker_service.contract import (
    INTENDED_HALTS,
    KEEP,
    KEEP_FEATURE,
    ORIGIN_FEATURE,
    OWNER_FEATURE,
    PLAN_FEATURE,
    Action,
    ActionResult,
    ApplyReply,
    Capacity,
    Changes,
    Code,
    DiskReport,
    Foreign,
    HaltCause,
    ListReply,
    PlanRequest,
    Progress,
    Spec,
    Status,
    VMStatus,
    alive_tag,
    destroyed_tag,
    event_tag,
)
from worker_service.contract.signatures import FIELD, key_text, signed_bytes
from worker_service.contract.tickets import DOWNLOAD_FEATURE

ROOMY = Capacity(
    hypervisors=("kvm",),
    arches=("x86_64", "i386"),
    cpu_total=8,
    cpu_free=8,
    mem_total=8192,
    mem_free=8192,
    disk_free=1 << 40,
    features=(DOWNLOAD_FEATURE, KEEP_FEATURE, ORIGIN_FEATURE, OWNER_FEATURE, PLAN_FEATURE),
)
REFUSAL = "{} is refused"
NEXT = {Status.STARTING: Status.RUNNING, Status.SAVING: Status.HALTED}
SETTLED = {Status.HALTED, Status.FAILED_TO_START, Status.FAILED_TO_SAVE}


@dataclass
class FakeVM:
    spec: Spec
    generation: int
    status: Status = Status.STARTING
    halt_cause: HaltCause | None = None
    shutdown_asked: bool = False
    progress: Progress | None = None
    job: str = ""
    since: datetime = datetime(2026, 1, 1, tzinfo=UTC)
    owner: str = ""
    lives: int = 1
    ends_at: str | None = None
    """Where its disk went at its last halt; "": it was discarded, None: it is here."""
    origin: dict[str, str] = field(default_factory=dict)


class Refused(Exception):
    def __init__(self, code, message="no"):
        super().__init__(message)
        self.code = code


@dataclass
class FakeWorker:
    """A worker in virtual time. It takes commands as the real one does, and does one step with each `advance`."""

    id: str = "w1"
    capacity: Capacity = ROOMY
    vms: dict[str, FakeVM] = field(default_factory=dict)
    tombstones: dict[str, int] = field(default_factory=dict)
    foreign: tuple[Foreign, ...] = ()
    refusals: dict[str, Code] = field(default_factory=dict)
    """verb -> code: refuse it."""
    deaf: bool = False
    """Guests do not hear the power button."""
    cached: dict[str, bool] = field(default_factory=dict)
    """URI -> whether it is pinned."""
    orders: dict[str, dict[str, Any]] = field(default_factory=dict)
    """URI -> the state of its prefetch, which stays as it is."""
    public: set[str] = field(default_factory=set)
    """URIs that every owner may know."""
    fetched_by: dict[str, list[str]] = field(default_factory=dict)
    """URI -> the owners that have fetched it."""
    plans: list[PlanRequest] = field(default_factory=list)
    """The requests for plans that it got."""
    worker_api: str = "ws://127.0.0.1:8081"
    tickets: list[dict[str, Any]] = field(default_factory=list)
    """The console tickets that it got."""
    ticks: Any = field(default_factory=itertools.count)
    events: int = 0
    """The number of its last event."""

    @property
    def key(self) -> Ed25519PrivateKey:
        """The same in each process that has a worker of this name."""
        return Ed25519PrivateKey.from_private_bytes(hashlib.sha256(self.id.encode()).digest())

    @property
    def fingerprint(self) -> str:
        return key_text(self.key.public_key().public_bytes_raw())

    def sign(self, data: Any, subject: str, counter: int | None = None) -> dict[str, Any]:
        """As `worker_service.state.identity` does, with its key in memory."""
        counter = self.events if counter is None else counter
        value = base64.b64encode(self.key.sign(signed_bytes(data, subject, self.id, counter))).decode()
        return {**data, FIELD: {"worker": self.id, "counter": counter, "value": value}}

    def apply(self, actions: list[dict[str, Any]]) -> dict[str, Any]:
        results = tuple(self._labelled(msgspec.convert(action, Action)) for action in actions)
        return msgspec.to_builtins(ApplyReply(success=all(r.success for r in results), message="", results=results))

    def screen(self, event_data: dict[str, Any]) -> dict[str, Any]:
        uuid = event_data["uuid"]
        if uuid not in self.vms:
            return {"success": False, "message": f"There is no VM {uuid} on this worker.", "code": "not_found"}
        self.tickets.append(event_data)
        if event_data.get("disk") == "hdb":
            return {"success": False, "message": "It has no disk 'hdb'.", "code": "bad_request"}
        url = f"{self.worker_api}/vmachines/{uuid}/screen"
        return {"success": True, "message": "Its screen is open to that ticket.", "uuid": uuid, "url": url}

    def listing(self) -> dict[str, Any]:
        return msgspec.to_builtins(
            ListReply(
                vmachines=tuple(self.status(uuid) for uuid in self.vms),
                foreign=self.foreign,
                tombstones=self.tombstones,
                capacity=self.left(),
                version="0.1.0",
            )
        )

    def left(self) -> Capacity:
        """Its capacity, less the use of its VMs."""
        holding = [vm.spec for vm in self.vms.values() if vm.status not in SETTLED]
        return msgspec.structs.replace(
            self.capacity,
            mem_free=self.capacity.mem_free - sum(spec.mem_size for spec in holding),
            cpu_free=self.capacity.cpu_free - sum(spec.cpu_count for spec in holding),
        )

    def plan(self, request: dict[str, Any]) -> dict[str, Any]:
        """As the real one: a plan for what it may fetch, and a refusal for files of the host itself."""
        planned = msgspec.convert(request, PlanRequest)
        self.plans.append(planned)
        if planned.hda_image.removeprefix("file:").lstrip("/").startswith("etc/"):
            message = f"{planned.hda_image} lies outside the folders that images may come from."
            return {"success": False, "message": message, "code": "policy"}
        image = {"disk": "hda", "uri": planned.hda_image, "cached": planned.hda_image in self.cached, "size": 3 << 20}
        size = 0 if image["cached"] else 3 << 20
        fits = planned.mem_size <= self.left().mem_free
        obstacle = f"{self.left().mem_free} of {self.capacity.mem_total} MiB are free here."
        message = f"It would fetch {size >> 20} MiB and start." if fits else f"It would be refused: {obstacle}"
        return {
            "success": True, "message": message, "fits": fits, "bytes_to_fetch": size, "images": [image], "exists": None
        }  # fmt: skip

    def cache(self, fun: str, uri: str = "", pin: bool = False, cancel: bool = False, preview: bool = False) -> Any:
        """The verbs about the cache. A prefetched image is there at once, unless its order is in `orders` already."""
        verb = fun.removeprefix("vmachines.cache").strip("_")
        if verb == "clean":
            return self._clean(preview)
        if verb == "prefetch" and cancel:
            if self.orders.pop(uri, None) is None:
                return {"success": False, "message": f"{uri} is not being prefetched.", "code": "not_found"}
        elif verb == "prefetch" and uri not in self.orders:
            self.cached[uri] = pin
        elif verb in ("pin", "unpin") and uri not in self.cached:
            return {"success": False, "message": f"{uri} is not in the cache.", "code": "not_found"}
        elif verb in ("pin", "unpin"):
            self.cached[uri] = verb == "pin"
        self.capacity = msgspec.structs.replace(self.capacity, images=tuple(self.cached))
        contents = {
            "images": [self._image(each, pinned) for each, pinned in self.cached.items()],
            "prefetching": [{"uri": each, **order} for each, order in self.orders.items()],
        }
        return {"success": True, "message": "done", **({} if verb else contents)}

    def _image(self, uri: str, pinned: bool) -> dict[str, Any]:
        source = {"uri": uri, "owners": self.fetched_by.get(uri, []), "public": uri in self.public}
        return {"uris": [uri], "size": 1 << 20, "pinned": pinned, "last_used": 1e9, "used_by": [], "sources": [source]}

    def _clean(self, preview: bool) -> dict[str, Any]:
        unused = [self._image(uri, False) for uri, pinned in self.cached.items() if not pinned]
        if not preview:
            self.cached = {uri: pinned for uri, pinned in self.cached.items() if pinned}
        return {"success": True, "message": f"{len(unused)} images.", "images": unused}

    def status(self, uuid: str) -> VMStatus:
        vm = self.vms[uuid]
        return VMStatus(
            uuid=uuid,
            name=vm.spec.name,
            status=vm.status,
            message=f"It is {vm.status}.",
            generation=vm.generation,
            since=vm.since.isoformat(),
            progress=vm.progress,
            halt_cause=vm.halt_cause,
            job=vm.job,
            spec=vm.spec,
            owner=vm.owner,
            disks=self._disks(uuid),
        )

    def _disks(self, uuid: str) -> dict[str, DiskReport]:
        """The disk of a VM that is off: at its target, or here."""
        vm = self.vms[uuid]
        if vm.status is not Status.HALTED or vm.ends_at == "":
            return {}
        if vm.ends_at is None:
            return {"hda": DiskReport(kept=f"/srv/vms/{uuid}/hda.qcow2")}
        digest = hashlib.sha256(f"{uuid} {vm.lives}".encode()).hexdigest()
        return {"hda": DiskReport(saved_to=vm.ends_at, sha256=digest)}

    def advance(self) -> list[str]:
        """Let every VM take one step by itself, and return the uuids of the changed ones."""
        changed = []
        for uuid, vm in self.vms.items():
            if vm.status in NEXT:
                self.turn(uuid, NEXT[vm.status], vm.halt_cause)
                changed.append(uuid)
            elif vm.shutdown_asked and vm.status is Status.RUNNING and not self.deaf:
                self.turn(uuid, Status.SAVING, HaltCause.OPERATOR)
                changed.append(uuid)
        return changed

    def turn(self, uuid: str, status: Status, cause: HaltCause | None = None) -> None:
        vm = self.vms[uuid]
        vm.status, vm.halt_cause, vm.progress = status, cause, None
        unexpected = cause is not None and cause not in INTENDED_HALTS
        vm.ends_at = None if unexpected else vm.spec.hda_save_to
        vm.since = datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=next(self.ticks))

    def _labelled(self, action: Action) -> ActionResult:
        labels = {"verb": action.verb, "generation": action.generation, "attempt": action.attempt}
        return msgspec.structs.replace(self._one(action), **labels)

    def _one(self, action: Action) -> ActionResult:
        try:
            # A change of nothing tells the generation alone, and there is nothing to refuse.
            if action.verb in self.refusals and not (action.verb == "modify" and action.params == Changes()):
                raise Refused(self.refusals[action.verb], REFUSAL.format(action.verb))
            getattr(self, f"_{action.verb}")(action)
        except Refused as err:
            return ActionResult(success=False, message=str(err), uuid=action.uuid, code=err.code)
        return ActionResult(success=True, message="done", uuid=action.uuid)

    def _taken(self, action: Action) -> FakeVM:
        vm = self.vms.get(action.uuid)
        if vm is None:
            raise Refused(Code.NOT_FOUND, "no such VM")
        if action.generation < vm.generation:
            raise Refused(Code.STALE, "older than what it was told")
        return vm

    def _start(self, action: Action) -> None:
        if action.generation <= self.tombstones.get(action.uuid, 0):
            raise Refused(Code.DESTROYED, "destroyed here")
        spec = action.params
        if action.uuid not in self.vms:
            if spec.mem_size > self.left().mem_free:
                raise Refused(Code.NO_ROOM, "not enough memory")
            vm = FakeVM(spec=spec, generation=action.generation, owner=action.owner, origin=action.origin)
            self.vms[action.uuid] = vm
            return
        vm = self._taken(action)
        vm.owner = action.owner or vm.owner
        again = action.generation > vm.generation
        vm.generation = action.generation
        if vm.status in SETTLED and again:
            vm.spec, vm.shutdown_asked, vm.origin = spec, False, action.origin
            vm.lives += vm.status is Status.HALTED
            self.turn(action.uuid, Status.STARTING)

    def _modify(self, action: Action) -> None:
        vm = self._taken(action)
        vm.generation = action.generation
        vm.owner = action.owner or vm.owner
        changes = msgspec.to_builtins(action.params)
        changes = {name: None if value == KEEP else value for name, value in changes.items()}
        vm.spec = msgspec.structs.replace(vm.spec, **changes)

    def _suspend(self, action: Action) -> None:
        self._pause(action, Status.SUSPENDED)

    def _resume(self, action: Action) -> None:
        self._pause(action, Status.RUNNING)

    def _pause(self, action: Action, status: Status) -> None:
        vm = self._taken(action)
        if vm.status not in (Status.RUNNING, Status.INSTALLING, Status.SUSPENDED):
            raise Refused(Code.CONFLICT, f"it is {vm.status}")
        vm.generation = action.generation
        self.turn(action.uuid, status)

    def _shutdown(self, action: Action) -> None:
        vm = self._taken(action)
        vm.generation, vm.shutdown_asked = action.generation, True
        if vm.status is Status.HALTED:
            vm.halt_cause = HaltCause.OPERATOR
            vm.ends_at = vm.spec.hda_save_to if vm.ends_at is None else vm.ends_at

    def _save_retry(self, action: Action) -> None:
        vm = self._taken(action)
        if vm.status is not Status.FAILED_TO_SAVE:
            raise Refused(Code.CONFLICT, "nothing to retry")
        self.turn(action.uuid, Status.SAVING, HaltCause.OPERATOR)

    def _destroy(self, action: Action) -> None:
        if action.uuid in self.vms:
            self._taken(action)
            del self.vms[action.uuid]
        self.tombstones[action.uuid] = max(action.generation, self.tombstones.get(action.uuid, 0))


class FakeSalt:
    """salt-api with these workers behind it. Each fault is a switch."""

    def __init__(self, *workers: FakeWorker):
        self.workers = {worker.id: worker for worker in workers}
        self.silent: set[str] = set()
        self.silence: str | bool | None = None
        """Salt's text in place of a silent worker's answer; None: it omits the worker."""
        self.down = False
        self.lose_events = False
        self.lose_jobs = False
        self.lose_returns = False
        self.by_itself = True
        """Workers continue until nothing changes; False: only on request."""
        self.gates: dict[str, asyncio.Event] = {}
        """worker -> publish to it hangs until this is set, and so does a poll while it is silent."""
        self.jobs: list[tuple[str, list[dict[str, Any]]]] = []
        self.polls = 0
        self._jids = itertools.count(20260101000000000000)
        self._streams: set[asyncio.Queue[Event | None]] = set()
        self.listening = asyncio.Event()

    async def check(self) -> None:
        self._require_up()

    async def profile(self) -> SaltProfile:
        self._require_up()
        return SaltProfile(chosen="dedicated", in_force="dedicated")

    async def publish(self, workers, fun, kwarg, nonce) -> str:
        (worker_id,) = workers
        assert fun == "vmachines.apply"
        if worker_id in self.gates:
            await self.gates[worker_id].wait()
        self._require_up()
        jid = str(next(self._jids))
        self.jobs.append((worker_id, kwarg["actions"]))
        if worker_id not in self.silent and not self.lose_jobs:
            self._run(worker_id, jid, kwarg, nonce)
        return jid

    async def call(self, workers, fun, kwarg, timeout_s, nonce) -> dict[str, Any]:
        self._require_up()
        called = [self.workers[worker_id] for worker_id in workers if worker_id in self.workers]
        if fun == "vmachines.plan":
            for worker_id in self.gates.keys() & set(workers):
                await self.gates[worker_id].wait()
        if fun != "vmachines.list":
            answers = {} if self.lose_jobs else {worker.id: self._answer(worker, fun, kwarg) for worker in called}
            return {
                worker_id: self.workers[worker_id].sign(answer, nonce) if isinstance(answer, dict) else answer
                for worker_id, answer in answers.items()
                if worker_id not in self.silent and not self.lose_returns
            }
        self.polls += 1
        answers: dict[str, Any] = {}
        for worker in called:
            listing = worker.listing()
            answers[worker.id] = worker.sign(listing, nonce) if isinstance(listing, dict) else listing
        answers.update(dict.fromkeys(self.silent & answers.keys(), self.silence))
        self.hand_back(answers.keys() - self.silent, fun, nonce, answers)
        for worker_id in self.silent & self.gates.keys():
            await self.gates[worker_id].wait()
        return {worker_id: answer for worker_id, answer in answers.items() if answer is not None}

    @asynccontextmanager
    async def events(self):
        self._require_up()
        stream: asyncio.Queue[Event | None] = asyncio.Queue()
        self._streams.add(stream)
        self.listening.set()
        try:
            yield self._read(stream)
        finally:
            self._streams.discard(stream)
            self.listening.clear()

    async def close(self) -> None:
        self.break_stream()

    @property
    def read(self) -> bool:
        """Whether the reader of the stream has read all events."""
        return not any(stream._unfinished_tasks for stream in self._streams)

    def break_stream(self) -> None:
        for stream in self._streams:
            stream.put_nowait(None)

    def advance(self, worker_id: str = "w1") -> None:
        """One step of one worker, published on the bus."""
        for uuid in self.workers[worker_id].advance():
            self.report(worker_id, uuid)

    def settle(self, worker_id: str = "w1") -> None:
        """Do steps of one worker until nothing changes."""
        while changed := self.workers[worker_id].advance():
            for uuid in changed:
                self.report(worker_id, uuid)

    def report(self, worker_id: str, uuid: str) -> None:
        status = self.workers[worker_id].status(uuid)
        self.fire(worker_id, event_tag(worker_id, uuid, status.status), msgspec.to_builtins(status))

    def heartbeat(self, worker_id: str) -> None:
        self.fire(worker_id, alive_tag(worker_id), {})

    def fire(self, worker_id: str, tag: str, data: Any) -> None:
        """Publish as the watcher on a minion does on the Salt master's bus."""
        worker = self.workers.get(worker_id) or FakeWorker(worker_id)
        worker.events += 1
        if isinstance(data, dict):
            data = worker.sign(data, tag)
        self.emit(Event(tag=tag, data={"id": worker_id, "cmd": "_minion_event", "tag": tag, "data": data}))

    def emit(self, event: Event) -> None:
        if not self.lose_events:
            for stream in self._streams:
                stream.put_nowait(event)

    def hand_back(self, worker_ids, fun: str, nonce: str, answers: dict[str, Any]) -> None:
        """Publish a minion's return as the Salt master does on its bus."""
        jid = next(self._jids)
        for worker_id in worker_ids:
            data = {"id": worker_id, "jid": str(jid), "fun": fun, "return": answers[worker_id]}
            data["metadata"] = {"nonce": nonce}
            self.emit(Event(tag=f"salt/job/{jid}/ret/{worker_id}", data=data))

    def _answer(self, worker: FakeWorker, fun: str, kwarg: dict[str, Any]) -> dict[str, Any]:
        if fun == "vmachines.screen":
            return worker.screen(kwarg)
        if fun == "vmachines.plan":
            return worker.plan(kwarg)
        if fun == "vmachines.apply":
            self.jobs.append((worker.id, kwarg["actions"]))
            reply = self._do(worker, kwarg)
            if self.by_itself:
                self.settle(worker.id)
            return reply
        return worker.cache(fun, **kwarg)

    def _do(self, worker: FakeWorker, kwarg: dict[str, Any]) -> dict[str, Any]:
        reply = worker.apply(kwarg["actions"])
        worker_id = worker.id
        for action in kwarg["actions"]:
            uuid = action["uuid"]
            if uuid in worker.vms:
                self.report(worker_id, uuid)
            elif action["verb"] == "destroy":
                data = {"uuid": uuid, "generation": worker.tombstones[uuid]}
                self.fire(worker_id, destroyed_tag(worker_id, uuid), data)
        return reply

    def _run(self, worker_id: str, jid: str, kwarg: dict[str, Any], nonce: str) -> None:
        worker = self.workers[worker_id]
        last_event = worker.events
        reply = worker.sign(self._do(worker, kwarg), nonce, last_event)
        if not self.lose_returns:
            data = {"id": worker_id, "fun": "vmachines.apply", "return": reply, "metadata": {"nonce": nonce}}
            self.emit(Event(tag=f"salt/job/{jid}/ret/{worker_id}", data=data))
        if self.by_itself:
            self.settle(worker_id)

    def _require_up(self) -> None:
        if self.down:
            raise SaltError("salt-api does not answer.")

    async def _read(self, stream) -> AsyncIterator[Event]:
        while (event := await stream.get()) is not None:
            yield event
            stream.task_done()  # the next one is asked for
