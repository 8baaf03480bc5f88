"""Salt and its workers in virtual time: their work takes seconds, and each of them can fail on its own."""

import asyncio
from dataclasses import dataclass, field
from typing import Any

from master_service.core.errors import SaltError
from tests.functional.master.fakes import SETTLED, FakeSalt, FakeVM, FakeWorker
from worker_service.contract import Action, ActionResult, HaltCause, Status

BOOT_S, BUTTON_S, SAVE_S, CRASH_S, HEARTBEAT_S = 3.0, 2.0, 5.0, 10.0, 30.0


@dataclass
class Host(FakeWorker):
    """A worker whose VMs continue by themselves."""

    log: Any = None
    names: dict[str, str] = field(default_factory=dict)
    cursed: set[str] = field(default_factory=set)
    """uuids of VMs that crash after each boot."""
    stalled: set[str] = field(default_factory=set)
    """uuids of VMs whose step goes no further."""
    unsavable: bool = False

    def _one(self, action: Action) -> ActionResult:
        result = super()._one(action)
        if not result.success:
            what = f"{action.verb} {self.names[action.uuid]} ({action.generation})"
            self.log(f"{self.id} refuses to {what}: {result.code}")
        return result

    def next_of(self, uuid: str) -> tuple[float, Status, HaltCause | None] | None:
        """The next event of a VM by itself: after how many seconds, which event, and its cause."""
        vm = self.vms[uuid]
        match vm.status:
            case Status.STARTING:
                return BOOT_S, Status.RUNNING, None
            case Status.RUNNING if uuid in self.cursed:
                return CRASH_S, Status.HALTED, HaltCause.CRASHED
            case Status.RUNNING if vm.shutdown_asked and not self.deaf:
                return BUTTON_S, ended(vm), HaltCause.OPERATOR
            case Status.SAVING:
                return SAVE_S, Status.FAILED_TO_SAVE if self.unsavable else Status.HALTED, vm.halt_cause
        return None


def ended(vm: FakeVM) -> Status:
    return Status.SAVING if vm.spec.hda_save_to else Status.HALTED


class Salt(FakeSalt):
    """`away`: workers whose network is cut. `off`: without power. `frozen`: their minion is stopped, jobs wait."""

    def __init__(self, log, kick) -> None:
        super().__init__()
        self.by_itself = False
        self.log, self.kick = log, kick
        self.names: dict[str, str] = {}
        self.away: set[str] = set()
        self.off: set[str] = set()
        self.unknown: set[str] = set()
        """Workers whose keys are not accepted: Salt gives them no job."""
        self.frozen: dict[str, list[tuple[str, dict[str, Any], str]]] = {}
        self.sent: list[tuple[str, str, dict[str, Any], str]] = []

    def hears(self, worker_id: str) -> bool:
        return worker_id not in self.away | self.off | self.unknown | self.frozen.keys()

    def add(self, worker_id: str, mem: int) -> None:
        host = Host(worker_id, log=self.log, names=self.names)
        host.capacity = type(host.capacity)(
            **{name: getattr(host.capacity, name) for name in host.capacity.__struct_fields__}
            | {"mem_total": mem, "mem_free": mem}
        )
        self.workers[worker_id] = host
        self._beat(worker_id)

    async def publish(self, workers, fun, kwarg, nonce):
        (worker_id,) = workers
        self._require_up()
        jid = str(next(self._jids))
        if self._arrives(worker_id, jid, kwarg, nonce):
            self.deliver(worker_id, jid, kwarg, nonce)
        return jid

    def _arrives(self, worker_id: str, jid: str, kwarg: dict[str, Any], nonce: str) -> bool:
        """Log a job, and return whether its worker gets it now."""
        if worker_id in self.unknown:
            self.log(f"Salt knows no {worker_id}: it takes no job for {len(kwarg['actions'])} VMs")
            raise SaltError(f"Salt knows no minion named {worker_id}.", "Accept its key: salt-key -a MINION.")
        self.sent.append((worker_id, jid, kwarg, nonce))
        lost = self.lose_jobs or worker_id in self.away | self.off
        fate = ", and it is lost" if lost else ", and it waits there" if worker_id in self.frozen else ""
        for action in kwarg["actions"]:
            name = self.names[action["uuid"]]
            self.log(f"job {len(self.sent)}: {worker_id} is to {action['verb']} {name} ({action['generation']}){fate}")
        if worker_id in self.frozen:
            self.frozen[worker_id].append((jid, kwarg, nonce))
        return not lost and worker_id not in self.frozen

    def deliver(self, worker_id: str, jid: str, kwarg: dict[str, Any], nonce: str) -> None:
        self._run(worker_id, jid, kwarg, nonce)
        for action in kwarg["actions"]:
            self.schedule(worker_id, action["uuid"])

    async def call(self, workers, fun, kwarg, timeout_s, nonce):
        self._require_up()
        if fun == "vmachines.apply":
            (worker_id,) = workers
            if not self._arrives(worker_id, "", kwarg, nonce):
                return {}
            reply = self.workers[worker_id].sign(self._do(self.workers[worker_id], kwarg), nonce)
            for action in kwarg["actions"]:
                self.schedule(worker_id, action["uuid"])
            self.kick()
            return {worker_id: reply}
        if fun == "vmachines.plan":  # the scenarios are about commands, and no plan changes one here
            return {}
        called = [self.workers[worker_id] for worker_id in workers]
        answers = {host.id: host.sign(host.listing(), nonce) for host in called if self.hears(host.id)}
        await asyncio.sleep(timeout_s if len(answers) < len(called) else 0.1)
        self.kick()
        return answers

    def turn(self, worker_id: str, uuid: str, status: Status, cause: HaltCause | None = None) -> None:
        """Apply an event to a VM, which continues from there."""
        self.workers[worker_id].turn(uuid, status, cause)
        self.report(worker_id, uuid)
        self.schedule(worker_id, uuid)

    def report(self, worker_id: str, uuid: str) -> None:
        if self.hears(worker_id):
            super().report(worker_id, uuid)

    def schedule(self, worker_id: str, uuid: str) -> None:
        host = self.workers[worker_id]
        if uuid not in host.vms or (coming := host.next_of(uuid)) is None:
            return
        vm = host.vms[uuid]
        as_it_was = (vm, vm.since, vm.status)

        def step() -> None:
            now = host.vms.get(uuid)
            goes_on = worker_id not in self.off and uuid not in host.stalled
            if goes_on and now is not None and (now, now.since, now.status) == as_it_was:
                self.turn(worker_id, uuid, *coming[1:])

        asyncio.get_running_loop().call_later(coming[0], step)

    def cut_power(self, worker_id: str) -> None:
        self.off.add(worker_id)
        for uuid, vm in self.workers[worker_id].vms.items():
            if vm.status not in SETTLED:
                self.workers[worker_id].turn(uuid, Status.HALTED, HaltCause.HOST_LOST)

    def heard_again(self, worker_id: str) -> None:
        """Its watcher reports everything once it runs again. Then the waiting jobs are done."""
        waiting = self.frozen.pop(worker_id, [])
        self.away.discard(worker_id)
        self.unknown.discard(worker_id)
        if worker_id in self.off:
            self.off.discard(worker_id)
            for uuid in self.workers[worker_id].vms:
                self.report(worker_id, uuid)
        self.heartbeat(worker_id)
        for jid, kwarg, nonce in waiting:
            self.deliver(worker_id, jid, kwarg, nonce)

    def _beat(self, worker_id: str) -> None:
        if self.hears(worker_id):
            self.heartbeat(worker_id)
        asyncio.get_running_loop().call_later(HEARTBEAT_S, self._beat, worker_id)
