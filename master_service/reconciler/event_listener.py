"""The event listener: updates observed states within a second. Events are hints: the next poll finds what they miss.

It reads the stream of the gate, which has no ids and no keepalive. Watchers' heartbeats (`vmachines/<minion>/alive`)
distinguish a quiet stream from a dead one, and all workers are polled after each (re)connect. Each minion can write any
event, so only what its worker signed counts (`runtime.worker_trust`).
"""

from __future__ import annotations

import asyncio
import random
import re
import time
from collections.abc import Mapping
from typing import Annotated, Any, Final, cast

import msgspec
import structlog

from master_service.core.audience import two_forms, without_marks
from master_service.core.errors import MasterError
from master_service.planning.decision import backoff
from master_service.planning.observed import LEFT
from master_service.planning.vm import Command, Verb, VMProblem
from master_service.policy import external_audit
from master_service.policy.incidents import doubt_incident
from master_service.reconciler.poller import Poller
from master_service.reconciler.pusher import Pusher
from master_service.runtime.context import Context
from master_service.saltapi.client import Event
from master_service.saltapi.signatures import Doubt, NotBelieved, verify
from master_service.saltapi.untrusted import MOST_GENERATION, sanitize_text, validate_status
from worker_service.contract import (
    ACTIONS,
    EVENT_ROOT,
    ActionResult,
    ApplyReply,
    AuditEvent,
    Code,
    Status,
    VMStatus,
    decode_audit_event,
)

log = structlog.get_logger()

_OURS: Final = re.compile(
    rf"{EVENT_ROOT}/(?P<minion>[^/]+)/(?:(?P<uuid>[0-9a-f-]{{36}})/(?P<what>[a-z_]+)|(?P<of_worker>alive|audit))"
)
_RETURN: Final = re.compile(r"salt/job/[0-9]{1,32}(?:_[0-9]{1,10})?/ret/(?P<minion>[^/]+)")
_MOST_CLAIMS: Final = 10_000
"""Keys of minions that were stored already, and need not be stored again."""

_MOST_AUDIT_EVENTS: Final = 2000
"""Audit events accepted from one worker in a minute: more than its own file of them holds."""

_MOST_UNKNOWN: Final = 10_000
"""VMs of which it is remembered that a poll was requested for them."""

_RECONNECT_S: Final = (0.5, 15.0)
"""First and longest pause before the stream is opened again; doubled in between, with jitter."""


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
        self._claims: dict[str, str] = {}
        self._notified: set[str] = set()
        self._unknown: set[str] = set()

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
        """Handle one event. What is not signed by the worker that it names changes nothing."""
        if match := _OURS.fullmatch(event.tag):
            await self._from_watcher(match, event)
        elif (match := _RETURN.fullmatch(event.tag)) and event.data.get("fun") == "vmachines.list":
            self._poller.take_reply(event.nonce, match["minion"], event.data.get("return"))
        elif match and event.data.get("fun") == "vmachines.apply":
            await self._from_job(match["minion"], event)

    async def _from_watcher(self, match: re.Match[str], event: Event) -> None:
        minion, uuid = match["minion"], match["uuid"]
        if match["of_worker"] == "alive":
            await self._claim(minion, event.data.get("data"), event.tag)
        if (believed := await self._believed(minion, event)) is None:
            return
        self._pusher.answered(minion)
        if minion not in self._poller.answered:
            self._poller.request()  # new, or back again
        try:
            if uuid is None:
                if match["of_worker"] == "audit":
                    await self._audit_event(minion, decode_audit_event(believed))
                return
            if match["what"] == "destroyed":
                news = await self._destroyed(minion, uuid, msgspec.convert(believed, _DestroyedEvent))
            else:
                news = await self._status(minion, uuid, msgspec.convert(believed, VMStatus))
        except msgspec.ValidationError as err:
            log.warning("event_in_another_shape", worker=minion, vm=uuid, why=str(err))
            return
        if news:
            self._notify(uuid)

    async def _believed(self, minion: str, event: Event) -> Mapping[str, Any] | None:
        """Return the data of a worker's own event, or None for anything else."""
        if minion not in self._context.trust.keys:
            return None  # it waits to be enrolled
        try:
            if event.data.get("id") != minion:
                raise self._context.trust.doubt(minion, Doubt.OTHER_SENDER)
            return self._context.trust.believe_event(minion, event.data.get("data"), event.tag)
        except NotBelieved as err:
            await self._refuse(minion, err.doubt, event.tag)
            return None

    async def _claim(self, minion: str, data: object, tag: str) -> None:
        """Keep the key that a minion presents, so that an administrator can compare it."""
        match data:
            case {"key": str() as key} if key not in (self._context.trust.keys.get(minion), self._claims.get(minion)):
                try:
                    verify(data, tag, minion, key)
                except NotBelieved:
                    return
                if len(self._claims) >= _MOST_CLAIMS:
                    self._claims.clear()
                self._claims[minion] = key
                await self._context.store.workers.claim(minion, key, self._context.clock())
                log.info("worker_waits_to_be_enrolled", worker=minion, fingerprint=key)

    async def _refuse(self, minion: str, doubt: Doubt, tag: str) -> None:
        """Tell administrators that somebody speaks in the name of a worker, and ask the worker itself."""
        if self._context.trust.should_look_again(minion):
            self._poller.request()
        if doubt is Doubt.EARLY:
            return
        log.warning("message_not_believed", worker=minion, why=doubt.value, tag=tag[:200])
        now = self._context.clock()
        incident = doubt_incident(minion, doubt.value, now)
        if incident.key not in self._notified:
            self._notified.add(incident.key)
            await self._context.store.notices.keep([incident], now)

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
        after = await self._context.store.observed.status(minion, status, self._context.clock())
        if after is None:
            await self._look_for(uuid)
            return False
        log.info("vm_reported", vm=uuid, name=status.name, status=status.status.value, worker=minion)
        off = status.status is Status.HALTED and status.halt_cause in LEFT
        if after.elsewhere or status.job or off:
            self._poller.request()  # only the other workers know whether its domain is on one of them
        return True

    async def _look_for(self, uuid: str) -> None:
        """Request a poll, once, for a VM that the master does not know: it shows the VM as unmanaged."""
        if uuid in self._unknown or await self._context.store.queries.vm(uuid) is not None:
            return
        if len(self._unknown) >= _MOST_UNKNOWN:
            self._unknown.clear()
        self._unknown.add(uuid)
        self._poller.request()

    async def _destroyed(self, minion: str, uuid: str, destroyed: _DestroyedEvent) -> bool:
        return destroyed.uuid == uuid and await self._context.store.observed.destroyed(
            minion, uuid, destroyed.generation, self._context.clock()
        )

    async def _from_job(self, minion: str, event: Event) -> None:
        """Store the results of one of our `apply` jobs."""
        try:
            reply = self._context.trust.believe_reply(minion, event.data.get("return"), event.nonce)
            results = [result for result in msgspec.convert(reply, ApplyReply).results if result.verb in ACTIONS]
        except NotBelieved as err:
            await self._refuse(minion, err.doubt, event.tag)
            return
        except msgspec.ValidationError as err:
            log.warning("answer_in_another_shape", worker=minion, why=sanitize_text(err))
            return
        self._pusher.answered(minion)
        await self._store_accepted(minion, {str(r.uuid): command_of(r) for r in results if r.success})
        await self._store_refused(minion, {str(r.uuid): r for r in results if not r.success})

    async def _store_accepted(self, minion: str, accepted: Mapping[str, Command]) -> None:
        await self._context.store.dispatch.accepted(minion, accepted, self._context.clock())
        for uuid, command in accepted.items():
            if command.verb == "destroy":
                # The worker accepts a destroy when the VM is gone and its tombstone is on disk.
                await self._context.store.observed.destroyed(minion, uuid, command.generation, self._context.clock())
            self._notify(uuid)

    async def _store_refused(self, minion: str, refused: Mapping[str, ActionResult]) -> None:
        vms = {vm.uuid: vm for vm in await self._context.store.queries.vms(list(refused))}
        problems: dict[str, tuple[Command, VMProblem, Any]] = {}
        for uuid, result in refused.items():
            command = command_of(result)
            if uuid not in vms or result.attempt != vms[uuid].dispatch.attempts_of(command.verb, command.generation):
                continue  # the refusal of an earlier try says nothing about the newest one
            tries = result.attempt
            message = without_marks(sanitize_text(result.message))
            if result.code == Code.NO_ROOM:
                message = two_forms(message)
            problem = VMProblem(code=result.code or Code.INTERNAL, message=message)
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


def command_of(result: ActionResult) -> Command:
    """Return the command that a worker answered."""
    return Command(verb=cast(Verb, result.verb), generation=result.generation or 0)
