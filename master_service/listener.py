"""The event listener: makes what is real fresh within a second. A hint only: what it misses, the next poll finds.

It reads `GET /events` of salt-api, which has no ids and no keepalive. Watchers' heartbeats (`vmachines/<minion>/alive`)
tell a quiet stream from a dead one, and everything is polled after each (re)connect.
"""

from __future__ import annotations

import asyncio
import random
import re
import time
from collections.abc import Mapping
from typing import Any, Final

import msgspec
import structlog

from master_service.errors import MasterError
from master_service.facts import Command, Problem
from master_service.parts import Parts
from master_service.plan import backoff
from master_service.poller import Poller
from master_service.pusher import Pusher
from master_service.salt_api import Event
from worker_service.contract import EVENT_ROOT, Action, ActionResult, ApplyReply, Code, VMStatus

log = structlog.get_logger()

_OURS: Final = re.compile(rf"^{EVENT_ROOT}/(?P<minion>[^/]+)/(?:(?P<uuid>[0-9a-f-]{{36}})/(?P<what>[a-z_]+)|alive)$")
_RETURN: Final = re.compile(r"^salt/job/\d+/ret/(?P<minion>[^/]+)$")
_STARTED: Final = re.compile(r"^salt/minion/(?P<minion>[^/]+)/start$")
_RECONNECT_S: Final = (0.5, 15.0)
"""First and longest pause before the stream is opened again; doubled in between, with jitter."""


class _Burial(msgspec.Struct, frozen=True):
    """Data of a `destroyed` event."""

    uuid: str
    generation: int


class Listener:
    """The daemon. `age_s` says how long ago anything came."""

    def __init__(self, parts: Parts, pusher: Pusher, poller: Poller) -> None:
        self._parts = parts
        self._pusher = pusher
        self._poller = poller
        self._last: float | None = None

    @property
    def age_s(self) -> float | None:
        """Seconds since the stream was opened or anything came over it; None: it is not open."""
        return None if self._last is None else time.monotonic() - self._last

    async def run(self) -> None:
        """Work until cancelled."""
        pause_s = _RECONNECT_S[0]
        while True:
            try:
                await self._listen()
                pause_s = _RECONNECT_S[0]
                log.info("event_stream_ended")
            except TimeoutError:
                log.warning("event_stream_dead", silent_s=self._parts.settings.heartbeat_timeout_s)
            except MasterError as err:
                log.warning("event_stream_broken", error=str(err), hint=err.hint, again_in_s=pause_s)
            except Exception:
                log.exception("event_stream_broken")
            self._last = None
            await asyncio.sleep(pause_s * random.uniform(0.5, 1))  # noqa: S311 - spreads load, guards nothing
            pause_s = min(_RECONNECT_S[1], pause_s * 2)

    async def _listen(self) -> None:
        async with self._parts.salt.events() as events:
            self._last = time.monotonic()
            log.info("event_stream_open")
            self._poller.request()  # whatever happened while nobody listened
            while True:
                async with asyncio.timeout(self._parts.settings.heartbeat_timeout_s):
                    event = await anext(events, None)
                if event is None:
                    return
                self._last = time.monotonic()
                try:
                    await self.handle(event)
                except Exception:
                    log.exception("event_not_handled", tag=event.tag)

    async def handle(self, event: Event) -> None:
        """Take in one event. What does not fit is left out: the bus is open to every minion."""
        if match := _OURS.match(event.tag):
            await self._from_watcher(match, event.data)
        elif match := _RETURN.match(event.tag):
            if event.data.get("fun") == "vmachines.apply" and event.data.get("id") == match["minion"]:
                await self._from_job(match["minion"], event.data)
        elif _STARTED.match(event.tag):
            self._poller.request()

    async def _from_watcher(self, match: re.Match[str], event: Mapping[str, Any]) -> None:
        # The tag is what the minion says; `id` is what the Salt master knows about who said it.
        minion, uuid = match["minion"], match["uuid"]
        if event.get("id") != minion:
            log.warning("event_from_another_minion", said=minion, came_from=event.get("id"))
            return
        if minion not in self._poller.answered:
            self._poller.request()  # new, or back again
        if uuid is None:
            return
        try:
            if match["what"] == "destroyed":
                news = await self._buried(minion, uuid, msgspec.convert(event.get("data"), _Burial))
            else:
                news = await self._status(minion, uuid, msgspec.convert(event.get("data"), VMStatus))
        except msgspec.ValidationError as err:
            log.warning("event_in_another_shape", worker=minion, vm=uuid, why=str(err))
            return
        if news:
            self._tell(uuid)

    async def _status(self, minion: str, uuid: str, status: VMStatus) -> bool:
        if status.uuid != uuid:
            return False
        news = await self._parts.store.reports.status(minion, status, self._parts.clock())
        if news:
            log.info("vm_reported", vm=uuid, name=status.name, status=status.status.value, worker=minion)
        return news

    async def _buried(self, minion: str, uuid: str, burial: _Burial) -> bool:
        return burial.uuid == uuid and await self._parts.store.reports.buried(
            minion, uuid, burial.generation, self._parts.clock()
        )

    async def _from_job(self, minion: str, event: Mapping[str, Any]) -> None:
        """The return of one of our `apply` jobs: what was acknowledged, what was refused and why."""
        actions = _actions_of(event.get("fun_args"))
        answer = event.get("return")
        try:
            results = msgspec.convert(answer, ApplyReply).results
        except msgspec.ValidationError:
            # The whole job failed on the minion: Salt returns a sentence or a traceback.
            last = str(answer).strip().splitlines()[-1:] or ["nothing"]
            told = f"Worker {minion} could not carry it out: {last[0][:300]}"
            results = tuple(ActionResult(success=False, message=told, code=Code.INTERNAL) for _ in actions)
        taken: dict[str, Command] = {}
        refused: dict[str, tuple[Command, ActionResult]] = {}
        for action, result in zip(actions, results, strict=False):
            if action.verb == "save_retry":
                continue
            command = Command(verb=action.verb, generation=action.generation)
            if result.success:
                taken[action.uuid] = command
            else:
                refused[action.uuid] = (command, result)
        await self._note_taken(minion, taken)
        await self._note_refused(minion, refused)

    async def _note_taken(self, minion: str, taken: Mapping[str, Command]) -> None:
        await self._parts.store.pushes.taken(minion, taken)
        for uuid, command in taken.items():
            if command.verb == "destroy":
                # The worker answers so once the VM is gone and its tombstone is on disk.
                await self._parts.store.reports.buried(minion, uuid, command.generation, self._parts.clock())
            self._tell(uuid)

    async def _note_refused(self, minion: str, refused: Mapping[str, tuple[Command, ActionResult]]) -> None:
        vms = {vm.uuid: vm for vm in await self._parts.store.reading.vms(list(refused))}
        problems: dict[str, tuple[Command, Problem, Any]] = {}
        for uuid, (command, result) in refused.items():
            if uuid not in vms:
                continue
            tries = max(1, vms[uuid].push.attempts_of(command.verb, command.generation))
            problem = Problem(code=result.code or Code.INTERNAL, message=result.message)
            problems[uuid] = (command, problem, backoff(tries, uuid, self._parts.settings))
            if problem.code == Code.STALE:
                self._poller.request()  # the worker was told more than we know of
        for uuid in await self._parts.store.pushes.refused(minion, problems, self._parts.clock()):
            command, problem, _ = problems[uuid]
            log.warning("vm_refused", vm=uuid, verb=command.verb, worker=minion, code=problem.code, why=problem.message)
            self._tell(uuid)

    def _tell(self, uuid: str) -> None:
        self._pusher.wake([uuid])
        self._parts.changes.publish([uuid])


def _actions_of(fun_args: object) -> list[Action]:
    """The actions that a job carried, from the arguments that its return repeats; empty when they do not fit."""
    for argument in fun_args if isinstance(fun_args, list) else []:
        if isinstance(argument, dict) and "actions" in argument:
            try:
                return msgspec.convert(argument["actions"], list[Action])
            except msgspec.ValidationError:
                return []
    return []
