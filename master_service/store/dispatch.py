"""The pusher's bookkeeping, and the generations and assignments that follow from it: their only writer."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from sqlalchemy import update
from sqlmodel import col
from sqlmodel.ext.asyncio.session import AsyncSession

from master_service.core.errors import NEVER_ARRIVED
from master_service.core.settings import Settings
from master_service.db.engine import Database, database_method, notify_on_commit
from master_service.db.fencing import FencingToken
from master_service.db.tables import DispatchRow, VMachineRow
from master_service.planning import user_actions
from master_service.planning.vm import VM, Command, DispatchState, VMProblem
from master_service.policy import incidents
from master_service.policy.audit import MASTER
from master_service.policy.history_sentences import ACCEPTED, NOT_DELIVERED, REFUSED, SENT
from master_service.store import operations
from master_service.store.history import record_desired_change, record_dispatch
from master_service.store.mapping import desired_columns, dispatch_columns, load_for_change, lock, upsert
from master_service.store.notices import raise_all


@dataclass(frozen=True, kw_only=True, slots=True)
class PendingCommand:
    """A command about to be sent to `worker`. `again_in`: how long to wait before it is sent again."""

    vm: VM
    command: Command
    worker: str
    again_in: timedelta
    cause: str = ""
    """Why the master gives the command by itself; empty: its user changed the VM."""


class DispatchStore:
    """Writer of the pusher's bookkeeping."""

    def __init__(self, database: Database, term: FencingToken, settings: Settings) -> None:
        self._database = database
        self._term = term
        self._restart_window = timedelta(seconds=settings.restart_window_s)

    @database_method
    async def sending(self, sendings: Collection[PendingCommand], now: datetime) -> set[str]:
        """Record commands before they are sent, with worker and generation of each; return the uuids to send.

        VMs whose desired state changed since the decision are left out: the next decision is about the new state.
        """
        kept: set[str] = set()
        if not sendings:
            return kept
        async with self._database.write() as session:
            await self._term.check(session)
            await lock(session, col(VMachineRow.uuid).in_([sending.vm.uuid for sending in sendings]))
            for sending in sorted(sendings, key=lambda sending: sending.vm.uuid):
                desired, command = sending.vm.desired, sending.command
                result = await session.exec(
                    update(VMachineRow)
                    .where(
                        col(VMachineRow.uuid) == desired.uuid,
                        col(VMachineRow.version) == desired.version,
                        col(VMachineRow.generation) == desired.generation,
                    )
                    .values(worker=sending.worker, generation=command.generation)
                )
                if not result.rowcount:
                    continue
                dispatch = sending.vm.current_dispatch.sending(
                    command,
                    user_generation=desired.user_generation,
                    now=now,
                    again_in=sending.again_in,
                    window=self._restart_window,
                )
                await upsert(session, DispatchRow, desired.uuid, dispatch_columns(dispatch))
                placed = replace(desired, worker=sending.worker, generation=command.generation)
                vm = replace(sending.vm, desired=placed, dispatch=dispatch)
                record_dispatch(session, sending.worker, vm, f"{SENT}{dispatch.attempts}", now, sending.cause)
                kept.add(desired.uuid)
            notify_on_commit(session, kept)
        return kept

    @database_method
    async def sent(self, uuids: Collection[str], jid: str) -> None:
        """Record the Salt job that carries the commands just sent."""
        async with self._database.write() as session:
            await self._term.check(session)
            await lock(session, col(VMachineRow.uuid).in_(uuids))
            await session.exec(update(DispatchRow).where(col(DispatchRow.uuid).in_(uuids)).values(jid=jid))
            await operations.mark_sent(session, uuids, jid)

    @database_method
    async def unplaced(self, vm: VM, problem: VMProblem, now: datetime, again_in: timedelta) -> None:
        """Record that no worker fits a start."""
        desired = vm.desired
        dispatch = vm.current_dispatch.unplaced(
            problem, user_generation=desired.user_generation, generation=desired.generation, now=now, again_in=again_in
        )
        async with self._database.write() as session:
            await self._term.check(session)
            await lock(session, col(VMachineRow.uuid) == vm.uuid)
            await upsert(session, DispatchRow, vm.uuid, dispatch_columns(dispatch))
            notify_on_commit(session, [vm.uuid])
            if problem != vm.current_dispatch.problem:
                record_dispatch(session, None, replace(vm, dispatch=dispatch), problem.message, now)

    @database_method
    async def refused(
        self, minion: str, problems: Mapping[str, tuple[Command, VMProblem, timedelta]], now: datetime
    ) -> set[str]:
        """Record refusals by uuid, each with the time to wait; return those of the command sent last."""
        return await self._answered(
            minion,
            {uuid: command for uuid, (command, _, _) in problems.items()},
            lambda uuid, dispatch: dispatch.refused(problems[uuid][1], now=now, again_in=problems[uuid][2], by=minion),
            now,
        )

    @database_method
    async def accepted(self, minion: str, commands: Mapping[str, Command], now: datetime) -> set[str]:
        """Record by uuid the commands that a worker accepted; return those of the command sent last."""
        return await self._answered(
            minion, commands, lambda uuid, dispatch: dispatch.with_accepted(commands[uuid].generation), now
        )

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
                    dispatch = after(uuid, vm.dispatch)
                    problem = dispatch.problem
                    record_dispatch(session, minion, replace(vm, dispatch=dispatch), _answer(problem), now)
                    # What a user has changed since was not in this command: it is sent next.
                    is_newest = dispatch.user_generation == vm.desired.user_generation
                    if command.verb == "modify" and dispatch.refused_for_good and is_newest:
                        dispatch = await _take_back(session, vm, dispatch, now)
                    await upsert(session, DispatchRow, uuid, dispatch_columns(dispatch))
                    incident = incidents.refusal_incident(vm, dispatch)
                    await raise_all(session, [incident] if incident else [], now)
                    if problem is None or problem.code not in NEVER_ARRIVED:
                        reason = problem.message if problem else None
                        await operations.mark_answered(session, uuid, command.generation, reason)
                    kept.add(uuid)
            notify_on_commit(session, kept)
        return kept


async def _take_back(session: AsyncSession, vm: VM, dispatch: DispatchState, now: datetime) -> DispatchState:
    """Restore the settings that the worker holds after it refused others for good. Nothing of the refusal remains."""
    before, after = vm.desired, user_actions.take_back(vm)
    if after == before:
        return dispatch
    await session.exec(update(VMachineRow).where(col(VMachineRow.uuid) == vm.uuid).values(**desired_columns(after)))
    record_desired_change(session, before, replace(vm, desired=after), "take_back", MASTER.name, now)
    return replace(dispatch, problem=None, next_at=now)


def _answer(problem: VMProblem | None) -> str:
    if problem is None:
        return ACCEPTED
    return f"{NOT_DELIVERED if problem.code in NEVER_ARRIVED else REFUSED}{problem.message}"
