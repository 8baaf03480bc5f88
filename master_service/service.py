"""What the API's verbs do: commit what is wanted, wake the pusher, and wait where the contract says that it blocks."""

from __future__ import annotations

import asyncio
import uuid as uuidlib
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Final

import structlog

from master_service.actions import asked_for, modified
from master_service.errors import NotFound, TooLarge
from master_service.facts import VM, Assumed, Wanted
from master_service.parts import Parts
from master_service.placement import too_large_for_all
from master_service.poller import Poller
from master_service.pusher import Pusher
from master_service.seen import Seen, last_seen
from master_service.store.wishes import Asked
from worker_service.contract import Spec

log = structlog.get_logger()
_POLL_AFTER_S: Final = 5.0
"""A blocking call that hears nothing for so long asks for a poll: the event may have been lost."""


class Service:
    """What users may do. `who` is the user's name, for the audit."""

    def __init__(self, parts: Parts, pusher: Pusher, poller: Poller) -> None:
        self._parts = parts
        self._pusher = pusher
        self._poller = poller

    async def create(self, spec: Spec, who: str, pin: str | None = None) -> VM:
        """Keep a new VM, to be started unless its run policy is manual. Raises NameTaken, TooLarge."""
        if why := too_large_for_all(spec, await self._parts.store.reading.workers()):
            raise TooLarge(f"No worker can ever hold {spec.name}: {why}.")
        now = self._parts.clock()
        assumed = Assumed(
            uuid=str(uuidlib.uuid4()),
            name=spec.name,
            owner=who,
            spec=spec,
            wanted=Wanted.HALTED if spec.run_policy == "manual" else Wanted.RUNNING,
            generation=1,
            asked=1,
            version=1,
            created_at=now,
            changed_at=now,
            pin=pin,
        )
        await self._parts.store.wishes.create(assumed, self._asked(who, "create"))
        self._tell(assumed.uuid)
        return await self.get(assumed.uuid)

    async def get(self, id_or_name: str) -> VM:
        """One VM by uuid or name. Raises NotFound."""
        vm = await self._parts.store.reading.vm(id_or_name)
        if vm is None:
            raise NotFound(f"There is no VM {id_or_name!r}.")
        return vm

    async def act(self, id_or_name: str, verb: str, who: str) -> VM:
        """Ask for start, suspend, resume, shutdown or destroy. Raises NotFound, Conflict."""
        uuid = (await self.get(id_or_name)).uuid
        await self._parts.store.wishes.change(
            uuid, lambda vm: asked_for(vm, verb, self._parts.clock()), self._asked(who, verb)
        )
        self._tell(uuid)
        return await self.get(uuid)

    async def modify(self, id_or_name: str, settings: Mapping[str, str], who: str, if_version: int | None) -> VM:
        """Change where disks are saved, or the CD. Raises NotFound, Conflict."""
        uuid = (await self.get(id_or_name)).uuid
        await self._parts.store.wishes.change(
            uuid, lambda vm: modified(vm, settings, self._parts.clock(), if_version), self._asked(who, "modify")
        )
        self._tell(uuid)
        return await self.get(uuid)

    async def wait(self, uuid: str, verb: str, timeout_s: float) -> tuple[VM, bool]:
        """Wait until the verb's effect is seen; the VM as it is then, and whether it was seen within `timeout_s`.

        Ends early when the worker refuses for good: waiting longer would show nothing else.
        """
        done = _DONE[verb]
        with self._parts.changes.subscribe() as subscription, suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                while not (done(vm := await self.get(uuid)) or vm.current_push.refused_for_good):
                    if not await subscription.wait(_POLL_AFTER_S):
                        self._poller.request()
        vm = await self.get(uuid)
        return vm, done(vm)

    def _asked(self, who: str, verb: str) -> Asked:
        return Asked(who=who, door="http", verb=verb, at=self._parts.clock())

    def _tell(self, uuid: str) -> None:
        self._pusher.wake([uuid])
        self._parts.changes.publish([uuid])


_DONE: Final[Mapping[str, Callable[[VM], bool]]] = {
    "suspend": lambda vm: last_seen(vm) is Seen.SUSPENDED,
    "resume": lambda vm: last_seen(vm) in (Seen.RUNNING, Seen.INSTALLING),
    "destroy": lambda vm: vm.assumed.destroyed_at is not None,
}
"""Verbs that block, and when each is seen to be done."""
