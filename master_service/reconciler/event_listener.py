"""The event listener: updates observed states within a second. Events are hints: the next poll finds what they miss.

It reads `GET /events` of salt-api, which has no ids and no keepalive. Watchers' heartbeats (`vmachines/<minion>/alive`)
distinguish a quiet stream from a dead one, and all workers are polled after each (re)connect.
"""

from __future__ import annotations

import asyncio
import random
import re
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Annotated, Any, Final, TypeVar

import msgspec
import structlog

from master_service.core.errors import MasterError
from master_service.planning.outcomes import ONE_SHOT_VERB
from master_service.planning.planner import backoff
from master_service.planning.vm import Command, VMProblem
from master_service.policy import external_audit
from master_service.reconciler.poller import Poller
from master_service.reconciler.pusher import Pusher
from master_service.runtime.context import Context
from master_service.saltapi.client import Event
from master_service.saltapi.untrusted import MOST_GENERATION, sanitize_text, validate_status
from worker_service.contract import (
    EVENT_ROOT,
    Action,
    ActionResult,
    ApplyReply,
    AuditEvent,
    Code,
    VMStatus,
    decode_audit_event,
)

log = structlog.get_logger()

_OURS: Final = re.compile(
    rf"{EVENT_ROOT}/(?P<minion>[^/]+)/(?:(?P<uuid>[0-9a-f-]{{36}})/(?P<what>[a-z_]+)|(?P<of_worker>alive|audit))"
)
_RETURN: Final = re.compile(r"salt/job/(?P<jid>\d{1,32})/ret/(?P<minion>[^/]+)")
_NEW_JOB: Final = re.compile(r"salt/job/\d+/new")
_MOST_AUDIT_EVENTS: Final = 2000
"""Audit events accepted from one worker in a minute: more than its own file of them holds."""

_ANSWER_LIMIT: Final = 1000
_STARTED: Final = re.compile(r"salt/minion/(?P<minion>[^/]+)/start")
_RECONNECT_S: Final = (0.5, 15.0)
"""First and longest pause before the stream is opened again; doubled in between, with jitter."""


_Shape = TypeVar("_Shape")


class _DestroyedEvent(msgspec.Struct, frozen=True):
    """Data of a `destroyed` event."""

    uuid: str
    generation: Annotated[int, msgspec.Meta(ge=0, le=MOST_GENERATION)]


class EventListener:
    """The daemon. `age_s` is the time since the last event."""

    def __init__(self, context: Context, pusher: Pusher, poller: Poller) -> None:
        self._context = context
        self._pusher = pusher
        self._poller = poller
        self._last: float | None = None
        self._audit_events: dict[str, tuple[int, int]] = {}

    @property
    def age_s(self) -> float | None:
        """Seconds since the stream was opened or the last event came. It is None while the stream is not open."""
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
                log.warning("event_stream_dead", silent_s=self._context.settings.heartbeat_timeout_s)
            except MasterError as err:
                log.warning("event_stream_broken", error=str(err), hint=err.hint, again_in_s=pause_s)
            except Exception:
                log.exception("event_stream_broken")
            self._last = None
            await asyncio.sleep(pause_s * random.uniform(0.5, 1))  # noqa: S311 - spreads load, guards nothing
            pause_s = min(_RECONNECT_S[1], pause_s * 2)

    async def _listen(self) -> None:
        async with self._context.salt.events() as events:
            self._last = time.monotonic()
            log.info("event_stream_open")
            self._poller.request()  # for events that were missed
            while True:
                async with asyncio.timeout(self._context.settings.heartbeat_timeout_s):
                    event = await anext(events, None)
                if event is None:
                    return
                self._last = time.monotonic()
                try:
                    await self.handle(event)
                except Exception:
                    log.exception("event_not_handled", tag=event.tag)

    async def handle(self, event: Event) -> None:
        """Handle one event. Invalid events are ignored, because the bus is open to every minion."""
        from_minion = _OURS.fullmatch(event.tag) or _RETURN.fullmatch(event.tag)
        if from_minion and event.data.get("id") == from_minion["minion"]:
            self._pusher.answered(from_minion["minion"])
        if match := _OURS.fullmatch(event.tag):
            await self._from_watcher(match, event.data)
        elif match := _RETURN.fullmatch(event.tag):
            if event.data.get("id") == match["minion"]:
                await self._from_return(match["minion"], match["jid"], event)
        elif _NEW_JOB.fullmatch(event.tag):
            await self._from_bus(event.data)
        elif _STARTED.fullmatch(event.tag):
            self._poller.request()

    async def _from_watcher(self, match: re.Match[str], event: Mapping[str, Any]) -> None:
        # The minion chooses the tag. The Salt master sets `id` to the minion that sent the event.
        minion, uuid = match["minion"], match["uuid"]
        if event.get("id") != minion:
            log.warning("event_from_another_minion", said=minion, came_from=event.get("id"))
            return
        if minion not in self._poller.answered:
            self._poller.request()  # new, or back again
        try:
            if uuid is None:
                if match["of_worker"] == "audit":
                    await self._audit_event(minion, decode_audit_event(event.get("data")))
                return
            if match["what"] == "destroyed":
                news = await self._destroyed(minion, uuid, msgspec.convert(event.get("data"), _DestroyedEvent))
            else:
                news = await self._status(minion, uuid, msgspec.convert(event.get("data"), VMStatus))
        except msgspec.ValidationError as err:
            log.warning("event_in_another_shape", worker=minion, vm=uuid, why=str(err))
            return
        if news:
            self._notify(uuid)

    async def _from_bus(self, job: Mapping[str, Any]) -> None:
        """Add audit entries for a job of another Salt user that calls `vmachines`."""
        if str(job.get("user", "")) != self._context.settings.salt_api_username and (
            entries := external_audit.entries_from_job(job, self._context.clock())
        ):
            await self._context.store.audit.add(*entries)

    async def _audit_event(self, minion: str, event: AuditEvent) -> None:
        """Add the audit entry of an act through a worker's own interface, unless the VM is another worker's."""
        entry = external_audit.entry_from_worker_event(minion, event, self._context.clock())
        if entry is None or self._sends_too_many(minion):
            return
        for vm in await self._context.store.queries.vms([entry.uuid]) if entry.uuid else []:
            if vm.desired.worker != minion:
                log.warning("audit_event_about_vm_of_another", worker=minion, vm=vm.uuid)
                return
        await self._context.store.audit.add(entry)

    def _sends_too_many(self, minion: str) -> bool:
        minute = int(time.monotonic() // 60)
        since, number = self._audit_events.get(minion, (minute, 0))
        number = number + 1 if since == minute else 1
        self._audit_events[minion] = minute, number
        if number == _MOST_AUDIT_EVENTS + 1:
            log.warning("too_many_audit_events", worker=minion, taken=_MOST_AUDIT_EVENTS)
        return number > _MOST_AUDIT_EVENTS

    async def _status(self, minion: str, uuid: str, status: VMStatus) -> bool:
        if status.uuid != uuid:
            return False
        if why := validate_status(status, self._context.settings.vm_report_limit_kib << 10):
            log.warning("event_cannot_be_kept", worker=minion, vm=uuid, why=why)
            return False
        news = await self._context.store.observed.status(minion, status, self._context.clock())
        if news:
            log.info("vm_reported", vm=uuid, name=status.name, status=status.status.value, worker=minion)
        return news

    async def _destroyed(self, minion: str, uuid: str, destroyed: _DestroyedEvent) -> bool:
        return destroyed.uuid == uuid and await self._context.store.observed.destroyed(
            minion, uuid, destroyed.generation, self._context.clock()
        )

    async def _from_return(self, minion: str, jid: str, event: Event) -> None:
        match event.data.get("fun"):
            case "vmachines.apply":
                await self._from_job(minion, jid, event.data)
            case "vmachines.list":
                self._poller.take_reply(event.mark, minion, event.data.get("return"))
        for ended in external_audit.results_from_return(event.data):
            await self._context.store.operations.returned(
                jid, external_audit.minion_label(minion), ended.verb, ended.refused
            )

    async def _from_job(self, minion: str, jid: str, event: Mapping[str, Any]) -> None:
        """Store the results of one of our `apply` jobs."""
        actions = _actions_of(event.get("fun_args"))
        accepted: dict[str, Command] = {}
        refused: dict[str, tuple[Command, ActionResult]] = {}
        one_shots: dict[str, str | None] = {}
        for action, result in zip(actions, _results_of(minion, event.get("return"), len(actions)), strict=False):
            if action is None:
                continue
            if action.verb == ONE_SHOT_VERB:
                one_shots[action.uuid] = None if result.success else sanitize_text(result.message)
                continue
            command = Command(verb=action.verb, generation=action.generation)
            if result.success:
                accepted[action.uuid] = command
            else:
                refused[action.uuid] = (command, result)
        await self._store_accepted(minion, accepted)
        await self._store_refused(minion, refused)
        if one_shots:
            await self._context.store.observed.one_shot_answered(minion, one_shots, jid)
            self._context.changes.publish(one_shots)

    async def _store_accepted(self, minion: str, accepted: Mapping[str, Command]) -> None:
        await self._context.store.dispatch.accepted(minion, accepted, self._context.clock())
        for uuid, command in accepted.items():
            if command.verb == "destroy":
                # The worker accepts a destroy when the VM is gone and its tombstone is on disk.
                await self._context.store.observed.destroyed(minion, uuid, command.generation, self._context.clock())
            self._notify(uuid)

    async def _store_refused(self, minion: str, refused: Mapping[str, tuple[Command, ActionResult]]) -> None:
        vms = {vm.uuid: vm for vm in await self._context.store.queries.vms(list(refused))}
        problems: dict[str, tuple[Command, VMProblem, Any]] = {}
        for uuid, (command, result) in refused.items():
            if uuid not in vms:
                continue
            tries = max(1, vms[uuid].dispatch.attempts_of(command.verb, command.generation))
            problem = VMProblem(code=result.code or Code.INTERNAL, message=sanitize_text(result.message))
            problems[uuid] = (command, problem, backoff(tries, uuid, self._context.settings))
            if problem.code == Code.STALE:
                self._poller.request()  # the worker knows a newer command than we do
        for uuid in await self._context.store.dispatch.refused(minion, problems, self._context.clock()):
            command, problem, _ = problems[uuid]
            log.warning("vm_refused", vm=uuid, verb=command.verb, worker=minion, code=problem.code, why=problem.message)
            self._notify(uuid)

    def _notify(self, uuid: str) -> None:
        self._pusher.wake([uuid])
        self._context.changes.publish([uuid])


def _actions_of(fun_args: object) -> list[Action | None]:
    """Return the actions of a job, from the arguments in its return. An unknown action is None."""
    for argument in fun_args if isinstance(fun_args, list) else []:
        if isinstance(argument, dict) and isinstance(given := argument.get("actions"), list):
            return [_action(each) for each in given]
    return []


def _action(given: object) -> Action | None:
    with suppress(msgspec.ValidationError):
        action: Action = msgspec.convert(given, Action)
        return action
    return None


def _results_of(minion: str, answer: object, number: int) -> Sequence[ActionResult]:
    """Return a worker's results of so many actions. A failure of the whole job is the result of each."""
    if (reply := _converted(answer, ApplyReply)) is not None:
        return reply.results
    refusal = _converted(answer, ActionResult)
    if refusal is None or refusal.success:
        # Salt returned a sentence or a traceback.
        last = sanitize_text(str(answer)[-_ANSWER_LIMIT:]).strip().splitlines()[-1:] or ["nothing"]
        message = f"Worker {minion} could not carry it out: {last[0][:300]}"
        refusal = ActionResult(success=False, message=message, code=Code.INTERNAL)
    return [refusal] * number


def _converted(given: object, shape: type[_Shape]) -> _Shape | None:
    try:
        return msgspec.convert(given, shape)
    except msgspec.ValidationError:
        return None
