"""What the pusher did: the only writer of its bookkeeping, and of generations and assignments that follow."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import update
from sqlmodel import col

from master_service.core.errors import NEVER_ARRIVED
from master_service.core.settings import Settings
from master_service.db.engine import Database, database_method, notify_on_commit
from master_service.db.fencing import FencingToken
from master_service.db.tables import DispatchRow, VMachineRow
from master_service.planning.vm import VM, Command, DispatchState, VMProblem
from master_service.policy import incidents
from master_service.store import operations
from master_service.store.history import record_dispatch
from master_service.store.mapping import dispatch_columns, load_for_change, lock, upsert
from master_service.store.notices import raise_all


@dataclass(frozen=True, kw_only=True, slots=True)
class PendingCommand:
    """A command about to be sent: to which worker, and how long to wait before the same is sent again."""

    vm: VM
    command: Command
    worker: str
    again_in: timedelta


class DispatchStore:
    """What the pusher did."""

    def __init__(self, database: Database, term: FencingToken, settings: Settings) -> None:
        self._database = database
        self._term = term
        self._restart_window = timedelta(seconds=settings.restart_window_s)

    @database_method
    async def sending(self, sendings: Collection[PendingCommand], now: datetime) -> set[str]:
        """Note commands before they are sent, with worker and generation of each; return the uuids to send.

        Left out are VMs whose wish was changed since the decision: their next decision will know better.
        """
        kept: set[str] = set()
        if not sendings:
            return kept
        async with self._database.write() as session:
            await self._term.check(session)
            await lock(session, col(VMachineRow.uuid).in_([sending.vm.uuid for sending in sendings]))
            for sending in sorted(sendings, key=lambda sending: sending.vm.uuid):
                assumed, command = sending.vm.desired, sending.command
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
                push = sending.vm.current_dispatch.sending(
                    command,
                    user_generation=assumed.user_generation,
                    now=now,
                    again_in=sending.again_in,
                    window=self._restart_window,
                )
                await upsert(session, DispatchRow, assumed.uuid, dispatch_columns(push))
                record_dispatch(session, assumed.uuid, sending.worker, push, f"sent, try {push.attempts}", now)
                kept.add(assumed.uuid)
            notify_on_commit(session, kept)
        return kept

    @database_method
    async def sent(self, uuids: Collection[str], jid: str) -> None:
        """Note the Salt job that carries the commands just sent."""
        async with self._database.write() as session:
            await self._term.check(session)
            await lock(session, col(VMachineRow.uuid).in_(uuids))
            await session.exec(update(DispatchRow).where(col(DispatchRow.uuid).in_(uuids)).values(jid=jid))
            await operations.mark_sent(session, uuids, jid)

    @database_method
    async def unplaced(self, vm: VM, problem: VMProblem, now: datetime, again_in: timedelta) -> None:
        """Note that no worker was found for a start."""
        assumed = vm.desired
        push = vm.current_dispatch.unplaced(
            problem, user_generation=assumed.user_generation, generation=assumed.generation, now=now, again_in=again_in
        )
        async with self._database.write() as session:
            await self._term.check(session)
            await lock(session, col(VMachineRow.uuid) == vm.uuid)
            await upsert(session, DispatchRow, vm.uuid, dispatch_columns(push))
            notify_on_commit(session, [vm.uuid])
            if problem != vm.current_dispatch.problem:
                record_dispatch(session, vm.uuid, None, push, problem.message, now)

    @database_method
    async def refused(
        self, minion: str, problems: Mapping[str, tuple[Command, VMProblem, timedelta]], now: datetime
    ) -> set[str]:
        """Note refusals by uuid, each with the time to wait; return those that were about the command sent last."""
        return await self._answered(
            minion,
            {uuid: command for uuid, (command, _, _) in problems.items()},
            lambda uuid, push: push.refused(problems[uuid][1], now=now, again_in=problems[uuid][2], by=minion),
            now,
        )

    @database_method
    async def taken(self, minion: str, commands: Mapping[str, Command], now: datetime) -> set[str]:
        """Note by uuid the commands that a worker acknowledged; return those that were about the command sent last."""
        return await self._answered(minion, commands, lambda uuid, push: push.taken(commands[uuid].generation), now)

    async def _answered(
        self,
        minion: str,
        commands: Mapping[str, Command],
        after: Callable[[str, DispatchState], DispatchState],
        now: datetime,
    ) -> set[str]:
        kept: set[str] = set()
        async with self._database.write() as session:
            await self._term.check(session)
            for uuid, vm in (await load_for_change(session, list(commands))).items():
                command = commands[uuid]
                if vm.desired.worker == minion and vm.dispatch.is_about(command.verb, command.generation):
                    push = after(uuid, vm.dispatch)
                    await upsert(session, DispatchRow, uuid, dispatch_columns(push))
                    incident = incidents.refusal_incident(vm, push)
                    await raise_all(session, [incident] if incident else [], now)
                    told = f"refused: {push.problem.message}" if push.problem else "taken"
                    record_dispatch(session, uuid, minion, push, told, now)
                    if push.problem is None or push.problem.code not in NEVER_ARRIVED:
                        why = push.problem.message if push.problem else None
                        await operations.mark_answered(session, uuid, command.generation, why)
                    kept.add(uuid)
            notify_on_commit(session, kept)
        return kept
