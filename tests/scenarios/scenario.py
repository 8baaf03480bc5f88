"""Runs one script: the whole master on SQLite against a simulated Salt, in virtual time, and writes a log.

A script has one event a line: `MINUTES:SECONDS WORD...`; README.md lists the words. The log has each event (`>`), each
command that was sent, and the displayed status of each VM and worker whenever it changes.
"""

import asyncio
import shutil
import sqlite3
from contextlib import AsyncExitStack
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path

import msgspec

from master_service.core.audience import full_text
from master_service.core.errors import MasterError
from master_service.core.settings import Settings
from master_service.planning.status import display_status
from master_service.planning.vm import VM, Worker
from master_service.policy.audit import Actor
from master_service.services.master import Master, running
from master_service.store.notices import NoticeQuery
from tests.scenarios.salt import Salt, ended
from tests.scenarios.virtual_time import VirtualLoop, clock
from worker_service.contract import HaltCause, Progress, Spec, Status, event_tag

USER = Actor(name="admin", interface="http")
SOON_S = 0.01
AT_LEAST_EVERY_S = 60.0


class Scenario:
    """One run. `lines` is the log."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.lines: list[str] = []
        self.kicked = asyncio.Event()
        self.salt = Salt(self.log, self.kicked.set)
        self.masters: dict[str, tuple[Master, AsyncExitStack]] = {}
        self.shown: dict[str, str] = {}
        self.notices = 0
        self.user = USER
        self.reports: dict[str, tuple[str, str, dict]] = {}
        self.file = Path(settings.database_url.removeprefix("sqlite:///"))

    def log(self, text: str) -> None:
        # Many short waits do not add up to whole seconds exactly.
        minutes, seconds = divmod(int(asyncio.get_running_loop().time() + 1e-6), 60)
        self.lines.append(f"{minutes:3}:{seconds:02}  {text}")

    async def run(self, script: str) -> str:
        events = list(parsed(script))
        await self.begin("master")
        account = await self.master.accounts.user(USER.name)
        self.user = replace(USER, account_id=account.id)
        watching = asyncio.create_task(self.watch())
        loop = asyncio.get_running_loop()
        for at_s, words in events:
            await asyncio.sleep(max(0.0, at_s - loop.time()))
            self.log("> " + " ".join(words))
            try:
                await getattr(self, f"do_{words[0].replace('-', '_')}")(*words[1:])
            except MasterError as err:
                self.log(f"  refused: {err}")
            self.kicked.set()
        await asyncio.sleep(1)
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)
        for name in list(self.masters):
            await self.do_stop(name)
        return "\n".join(self.lines) + "\n"

    @property
    def master(self) -> Master:
        return next(iter(self.masters.values()))[0]

    async def begin(self, name: str) -> None:
        stack = AsyncExitStack()
        self.masters[name] = (await stack.enter_async_context(running(self.settings, self.salt, clock)), stack)
        changes = stack.enter_context(self.masters[name][0].context.changes.subscribe())

        async def forward() -> None:
            while True:
                await changes.take()
                self.kicked.set()

        task = asyncio.create_task(forward())
        stack.callback(task.cancel)

    # --- what is seen -------------------------------------------------------------------------------------------------

    async def watch(self) -> None:
        while True:
            try:
                async with asyncio.timeout(AT_LEAST_EVERY_S):
                    await self.kicked.wait()
            except TimeoutError:
                pass
            await asyncio.sleep(SOON_S)  # passes once everybody else has done what there was to do
            self.kicked.clear()
            if self.masters:
                await self.look()

    async def look(self) -> None:
        store = self.master.context.store
        vms = sorted(await store.queries.vms(), key=lambda vm: vm.desired.name)
        now = {vm.desired.name: self.vm_line(vm) for vm in vms}
        now |= {worker.id: worker_line(worker) for worker in await store.queries.workers()}
        now |= {name: f"{name}: gone" for name in self.shown if name not in now}
        for name, text in now.items():
            if self.shown.get(name) != text:
                self.log(text)
        self.shown = now
        fresh = [n for n in reversed(await store.notices.newest(NoticeQuery(), 100)) if n.id > self.notices]
        for notice in fresh:
            self.notices = notice.id
            self.log(f"people are told: {notice.text}")
        self.require_one_of_each()

    def vm_line(self, vm: VM) -> str:
        observed = display_status(vm, clock(), self.settings)
        where = f" on {vm.desired.worker}" if vm.desired.worker else ""
        why = f" ({full_text(observed.reason)})" if observed.reason else ""
        return f"{vm.desired.name}: {observed.status.value}{where}{why}"

    def require_one_of_each(self) -> None:
        """Check that no VM runs in two places."""
        on = [
            uuid
            for worker_id, host in self.salt.workers.items()
            for uuid, vm in host.vms.items()
            if worker_id not in self.salt.off and vm.status in (Status.RUNNING, Status.SUSPENDED)
        ]
        assert len(on) == len(set(on)), f"a VM runs twice at {clock()}"

    def find(self, name: str) -> tuple[str, str]:
        """Return the worker that has a VM, and the VM's uuid."""
        found = [
            (worker_id, uuid)
            for worker_id, host in self.salt.workers.items()
            for uuid, vm in host.vms.items()
            if vm.spec.name == name
        ]
        return found[-1]

    # --- users --------------------------------------------------------------------------------------------------------

    async def do_create(self, name: str, *given: str) -> None:
        parameters = dict(word.split("=", 1) for word in given)
        pin = parameters.pop("worker", None)
        spec = {"name": name, "mem_size": 256, "hda_image": "file:/srv/web.qcow2", "hda_save_to": f"file:/srv/{name}"}
        spec = msgspec.convert(spec | parameters, Spec, strict=False)
        vm = await self.master.vms.create(spec, self.user, pin)
        self.salt.names[vm.uuid] = name

    async def do_start(self, name: str) -> None:
        await self.master.vms.act(name, "start", USER)

    async def do_suspend(self, name: str) -> None:
        await self.master.vms.act(name, "suspend", USER)

    async def do_resume(self, name: str) -> None:
        await self.master.vms.act(name, "resume", USER)

    async def do_shutdown(self, name: str) -> None:
        await self.master.vms.act(name, "shutdown", USER)

    async def do_destroy(self, name: str) -> None:
        await self.master.vms.act(name, "destroy", USER)

    async def do_save_retry(self, name: str) -> None:
        await self.master.vms.save_retry(name, USER)

    async def do_drain(self, worker: str) -> None:
        await self.master.vms.drain(worker, USER)

    async def do_undrain(self, worker: str) -> None:
        await self.master.vms.undrain(worker, USER)

    async def do_fence(self, worker: str) -> None:
        await self.master.vms.fence(worker, worker, USER)

    # --- guests and their disks ---------------------------------------------------------------------------------------

    async def do_guest_off(self, name: str) -> None:
        worker, uuid = self.find(name)
        vm = self.salt.workers[worker].vms[uuid]
        kept = vm.spec.run_policy == "always"
        self.salt.turn(worker, uuid, Status.HALTED if kept else ended(vm), HaltCause.GUEST)

    async def do_crash(self, name: str) -> None:
        self.salt.turn(*self.find(name), Status.HALTED, HaltCause.CRASHED)

    async def do_curse(self, name: str) -> None:
        worker, uuid = self.find(name)
        self.salt.workers[worker].cursed.add(uuid)
        self.salt.schedule(worker, uuid)

    async def do_fail_start(self, name: str) -> None:
        self.salt.turn(*self.find(name), Status.FAILED_TO_START)

    async def do_stall(self, name: str) -> None:
        worker, uuid = self.find(name)
        self.salt.workers[worker].stalled.add(uuid)

    async def do_unstall(self, name: str) -> None:
        worker, uuid = self.find(name)
        self.salt.workers[worker].stalled.discard(uuid)
        self.salt.schedule(worker, uuid)

    async def do_progress(self, name: str, done: str) -> None:
        worker, uuid = self.find(name)
        self.salt.workers[worker].vms[uuid].progress = Progress(phase="fetch", done=int(done), total=100)
        self.salt.report(worker, uuid)

    async def do_pause_outside(self, name: str) -> None:
        self.salt.turn(*self.find(name), Status.SUSPENDED)

    async def do_run_outside(self, name: str) -> None:
        self.salt.turn(*self.find(name), Status.RUNNING)

    async def do_vanish(self, name: str) -> None:
        worker, uuid = self.find(name)
        del self.salt.workers[worker].vms[uuid]

    async def do_unsavable(self, worker: str, yes: str) -> None:
        self.salt.workers[worker].unsavable = yes == "yes"

    async def do_deaf(self, worker: str) -> None:
        self.salt.workers[worker].deaf = True

    # --- workers and Salt ---------------------------------------------------------------------------------------------

    async def do_worker(self, worker: str, mem: str = "mem=8192") -> None:
        self.salt.add(worker, int(mem.removeprefix("mem=")))
        await self.master.vms.enroll(worker, self.salt.workers[worker].fingerprint, None, USER)

    async def do_refuse(self, worker: str, verb: str, code: str) -> None:
        self.salt.workers[worker].refusals[verb] = code

    async def do_accept(self, worker: str, verb: str) -> None:
        del self.salt.workers[worker].refusals[verb]

    async def do_cut(self, worker: str) -> None:
        self.salt.away.add(worker)

    async def do_unknown(self, worker: str) -> None:
        self.salt.unknown.add(worker)

    async def do_power_off(self, worker: str) -> None:
        self.salt.cut_power(worker)

    async def do_freeze(self, worker: str) -> None:
        self.salt.frozen[worker] = []

    async def do_back(self, worker: str) -> None:
        self.salt.heard_again(worker)

    async def do_lose(self, what: str) -> None:
        setattr(self.salt, f"lose_{what}", True)

    async def do_keep(self, what: str) -> None:
        setattr(self.salt, f"lose_{what}", False)

    async def do_break_stream(self) -> None:
        self.salt.break_stream()

    async def do_salt(self, word: str) -> None:
        self.salt.down = word == "down"
        if self.salt.down:
            self.salt.break_stream()

    async def do_job_again(self, number: str) -> None:
        self.salt.deliver(*self.salt.sent[int(number) - 1])

    async def do_note_report(self, name: str) -> None:
        worker, uuid = self.find(name)
        status = self.salt.workers[worker].status(uuid)
        self.reports[name] = worker, event_tag(worker, uuid, status.status), msgspec.to_builtins(status)

    async def do_report_again(self, name: str) -> None:
        self.salt.fire(*self.reports[name])

    async def do_clock(self, actor: str) -> None:
        unit = {"d": "days", "h": "hours"}[actor[-1]]
        asyncio.get_running_loop().jumped += timedelta(**{unit: int(actor[:-1])})

    # --- masters and their database -----------------------------------------------------------------------------------

    async def do_stop(self, name: str) -> None:
        await self.masters.pop(name)[1].aclose()

    async def do_run(self, name: str) -> None:
        await self.begin(name)

    async def do_backup(self) -> None:
        with sqlite3.connect(self.file) as source, sqlite3.connect(self.file.with_suffix(".old")) as copy:
            source.backup(copy)

    async def do_restore(self) -> None:
        for left in self.file.parent.glob(f"{self.file.name}-*"):
            left.unlink()
        shutil.copy(self.file.with_suffix(".old"), self.file)
        self.shown, self.notices = {}, 0

    async def do_end(self) -> None:
        pass


def worker_line(worker: Worker) -> str:
    since: datetime | None = worker.unreachable_since
    words = [f"silent since {since:%H:%M:%S}" if since else "answers"]
    words += ["drained"] * worker.draining + ["fenced"] * bool(worker.fenced_at)
    words += [f"strangers: {', '.join(s.name for s in worker.unassigned_vms)}"] * bool(worker.unassigned_vms)
    words += [worker.problem] * bool(worker.problem)
    return f"{worker.id}: {', '.join(words)}"


def parsed(script: str):
    """(seconds, words) of each line."""
    for line in script.splitlines():
        if words := line.partition("#")[0].split():
            minutes, seconds = words[0].split(":")
            yield 60 * int(minutes) + int(seconds), words[1:]


def run(script: str, settings: Settings) -> str:
    """The log of a script."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(Scenario(settings).run(script))
