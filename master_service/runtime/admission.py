"""Refuse what cannot work before it is stored: ask the workers that would get it, for a short time.

Only a worker's own refusal that the same request would get again counts. A worker that is silent, slow, full, or of an
older version refuses nothing: the request goes on, and the worker decides when it gets the command.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Final

from master_service.core.audience import two_forms
from master_service.core.errors import NotFound, Refused
from master_service.planning.dry_run import WorkerPlan, dry_run, question_about_changes, unknown_plan
from master_service.planning.placement import Candidate, fitting_workers, incapable, never_starts
from master_service.planning.vm import VM, DesiredState, DispatchState, ObservedState
from master_service.runtime.context import Context
from master_service.runtime.worker_plans import MOST_AT_ONCE, ask_plan
from worker_service.contract import Code

LONGEST_S: Final = 3.0
"""Longest wait for the plan of a worker, and for a free place among the requests that wait for plans."""

QUIET_S: Final = 30.0
"""How long a worker is not asked after it has not answered: it delays a script once, and not each request."""


class Admission:
    """Asks workers before a request is stored. In a dry run it asks none: that shows the plan itself."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._places = asyncio.Semaphore(MOST_AT_ONCE)
        self._quiet_until: dict[str, float] = {}
        """Worker -> the loop's time until which it is not asked, because it has just not answered."""

    async def admit_new(self, desired: DesiredState) -> DesiredState:
        """Return the desired state of a new VM, with its worker if the one that placement prefers refuses it.

        Raises NotFound for a worker that does not exist. Raises Refused if no worker runs such VMs, or if all that fit
        refuse this one.
        """
        candidates = await self._context.store.queries.candidates()
        if desired.pin is not None and desired.pin not in candidates:
            advice = two_forms("`saltern workers` shows those that exist.", "Correct its name, or leave it out.")
            raise NotFound(f"There is no worker {desired.pin!r}.", advice)
        if why := incapable(desired.spec, candidates.values(), desired.pin):
            raise Refused(f"{desired.name} cannot run: {why}.", Code.UNSUPPORTED)
        vm = VM(desired=desired, observed=ObservedState(), dispatch=DispatchState())
        fitting = fitting_workers(desired.spec, candidates.values(), desired.pin)
        first = await self._ask(vm, candidates, fitting[:1])
        if not any(plan.refuses for plan in first):
            return desired
        plans = [*first, *await self._ask(vm, candidates, fitting[1:MOST_AT_ONCE])]
        willing = sorted((plan for plan in plans if not plan.refuses), key=lambda plan: plan.fits is not True)
        if not willing:
            raise _refused(plans)
        return replace(desired, worker=willing[0].worker)

    async def admit_start(self, vm: VM) -> None:
        """Ask the worker that would get the start of a VM. `vm` is as the request would leave it.

        Raises Refused, also without asking if the VM's worker, or none at all, can run it.
        """
        context = self._context
        candidates = await context.store.queries.candidates()
        result = dry_run(vm, candidates.values(), context.clock(), context.settings)
        if result.command in ("start", None) and (why := never_starts(vm, candidates.values())):
            raise Refused(f"{vm.desired.name} cannot run: {why}.", Code.UNSUPPORTED)
        if result.command != "start" or result.worker not in candidates:
            return
        plans = await self._ask(vm, candidates, [result.worker])
        if any(plan.refuses for plan in plans):
            raise _refused(plans)

    async def admit_changes(self, before: VM, after: VM) -> None:
        """Ask the worker of a VM whether it accepts its new save targets and its new CD. Raises Refused."""
        question = question_about_changes(before, after)
        if question is None:
            return
        candidates = await self._context.store.queries.candidates()
        plans = await self._ask(question, candidates, [w for w in candidates if w == question.desired.worker])
        if any(plan.refuses for plan in plans):
            raise _refused(plans)

    async def _ask(self, vm: VM, candidates: Mapping[str, Candidate], workers: Sequence[str]) -> list[WorkerPlan]:
        if self._context.store.database.is_in_unit:
            return []
        return await asyncio.gather(*(self._ask_one(vm, candidates[worker]) for worker in workers))

    async def _ask_one(self, vm: VM, candidate: Candidate) -> WorkerPlan:
        worker, clock = candidate.worker.id, asyncio.get_running_loop().time
        if clock() < self._quiet_until.get(worker, 0.0):
            return unknown_plan(worker, "has just not answered")
        try:
            async with asyncio.timeout(LONGEST_S):
                await self._places.acquire()
        except TimeoutError:
            return unknown_plan(worker, "was not asked: too many others are")
        try:
            plan = await ask_plan(self._context, vm, candidate.worker, LONGEST_S)
        finally:
            self._places.release()
        if plan.fits is None:
            self._quiet_until[worker] = clock() + QUIET_S
        return plan


def _refused(plans: Sequence[WorkerPlan]) -> Refused:
    return Refused("; ".join(dict.fromkeys(plan.message for plan in plans)) + ".", plans[0].code)
