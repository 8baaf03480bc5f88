"""What the pusher did: the only writer of its bookkeeping, and of generations and assignments that follow."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import update
from sqlmodel import col

from master_service.core.errors import NEVER_ARRIVED
from master_service.core.settings import Settings
from master_service.db.engine import Database, tell, uninterrupted
from master_service.db.fencing import Term
from master_service.db.tables import PushRow, VMachineRow
from master_service.planning.vm import VM, Command, Problem, Push
from master_service.policy import incidents
from master_service.store import audit
from master_service.store.history import note_push
from master_service.store.mapping import load_for_change, lock, push_columns, put
from master_service.store.notifications import raise_all


@dataclass(frozen=True, kw_only=True, slots=True)
class Sending:
    """A command about to be sent: to which worker, and how long to wait before the same is sent again."""

    vm: VM
    command: Command
    worker: str
    again_in: timedelta


class Pushes:
    """What the pusher did."""

    def __init__(self, database: Database, term: Term, settings: Settings) -> None:
        self._database = database
        self._term = term
        self._restart_window = timedelta(seconds=settings.restart_window_s)

    @uninterrupted
    async def sending(self, sendings: Collection[Sending], now: datetime) -> set[str]:
        """Note commands before they are sent, with worker and generation of each; return the uuids to send.

        Left out are VMs whose wish was changed since the decision: their next decision will know better.
        """
        kept: set[str] = set()
        if not sendings:
            return kept
        async with self._database.write() as session:
            await self._term.confirm(session)
            for sending in sorted(sendings, key=lambda sending: sending.vm.uuid):
                assumed, command = sending.vm.assumed, sending.command
                result = await session.exec(
                    update(VMachineRow)
                    .where(
                        col(VMachineRow.uuid) == assumed.uuid,
                        col(VMachineRow.version) == assumed.version,
                        col(VMachineRow.generation) == assumed.generation,
                    )
                    .values(worker=sending.worker, generation=command.generation)
                )
                if not result.rowcount:
                    continue
                push = sending.vm.current_push.sending(
                    command, asked=assumed.asked, now=now, again_in=sending.again_in, window=self._restart_window
                )
                await put(session, PushRow, assumed.uuid, push_columns(push))
                note_push(session, assumed.uuid, sending.worker, push, f"sent, try {push.attempts}", now)
                kept.add(assumed.uuid)
            tell(session, kept)
        return kept

    @uninterrupted
    async def sent(self, uuids: Collection[str], jid: str) -> None:
        """Note the Salt job that carries the commands just sent."""
        async with self._database.write() as session:
            await self._term.confirm(session)
            await session.exec(update(PushRow).where(col(PushRow.uuid).in_(uuids)).values(jid=jid))
            await audit.sent(session, uuids, jid)

    @uninterrupted
    async def unplaced(self, vm: VM, problem: Problem, now: datetime, again_in: timedelta) -> None:
        """Note that no worker was found for a start."""
        assumed = vm.assumed
        push = vm.current_push.unplaced(
            problem, asked=assumed.asked, generation=assumed.generation, now=now, again_in=again_in
        )
        async with self._database.write() as session:
            await self._term.confirm(session)
            await lock(session, col(VMachineRow.uuid) == vm.uuid)
            await put(session, PushRow, vm.uuid, push_columns(push))
            tell(session, [vm.uuid])
            if problem != vm.current_push.problem:
                note_push(session, vm.uuid, None, push, problem.message, now)

    @uninterrupted
    async def refused(
        self, minion: str, problems: Mapping[str, tuple[Command, Problem, timedelta]], now: datetime
    ) -> set[str]:
        """Note refusals by uuid, each with the time to wait; return those that were about the command sent last."""
        return await self._answered(
            minion,
            {uuid: command for uuid, (command, _, _) in problems.items()},
            lambda uuid, push: push.refused(problems[uuid][1], now=now, again_in=problems[uuid][2], by=minion),
            now,
        )

    @uninterrupted
    async def taken(self, minion: str, commands: Mapping[str, Command], now: datetime) -> set[str]:
        """Note by uuid the commands that a worker acknowledged; return those that were about the command sent last."""
        return await self._answered(minion, commands, lambda uuid, push: push.taken(commands[uuid].generation), now)

    async def _answered(
        self, minion: str, commands: Mapping[str, Command], after: Callable[[str, Push], Push], now: datetime
    ) -> set[str]:
        kept: set[str] = set()
        async with self._database.write() as session:
            await self._term.confirm(session)
            for uuid, vm in (await load_for_change(session, list(commands))).items():
                command = commands[uuid]
                if vm.assumed.worker == minion and vm.push.is_about(command.verb, command.generation):
                    push = after(uuid, vm.push)
                    await put(session, PushRow, uuid, push_columns(push))
                    incident = incidents.of_refusal(vm, push)
                    await raise_all(session, [incident] if incident else [], now)
                    told = f"refused: {push.problem.message}" if push.problem else "taken"
                    note_push(session, uuid, minion, push, told, now)
                    if push.problem is None or push.problem.code not in NEVER_ARRIVED:
                        why = push.problem.message if push.problem else None
                        await audit.answered(session, uuid, command.generation, why)
                    kept.add(uuid)
            tell(session, kept)
        return kept
