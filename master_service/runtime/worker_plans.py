"""Ask workers what the start of a VM would do there: the bytes to fetch, what is cached, and what is refused."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

import msgspec

from master_service.core.errors import SaltError
from master_service.planning.dry_run import WorkerPlan, plan_request, read_plan, reason_not_to_send, unknown_plan
from master_service.planning.vm import VM, Worker
from master_service.runtime.context import Context
from master_service.runtime.worker_calls import call

ANSWER_S: Final = 10.0
"""Longest wait for a plan. A worker asks the image's server, which may be slow; its answer is of no use later."""

MOST_AT_ONCE: Final = 16
"""VMs in one list that workers are asked about; each is a job of Salt."""


async def ask_plan(context: Context, vm: VM, worker: Worker, longest_s: float | None = None) -> WorkerPlan:
    """Return what the start of a VM would do on a worker. Never raises: an unknown plan says why.

    No transaction may be open: this waits for others, for `longest_s` or ANSWER_S.
    """
    limit_s = ANSWER_S if longest_s is None else longest_s
    if why := reason_not_to_send(worker):
        return unknown_plan(worker.id, why)
    kwarg = msgspec.to_builtins(plan_request(replace(vm, worker=worker)))
    try:
        async with asyncio.timeout(limit_s):
            answers = await call(context, [worker.id], "vmachines.plan", kwarg, limit_s)
    except TimeoutError:
        answers = {}
    except SaltError as err:
        return unknown_plan(worker.id, f"cannot be asked: {str(err).rstrip('.')}")
    if worker.id not in answers:
        return unknown_plan(worker.id, f"did not answer within {limit_s:g} s")
    return read_plan(worker.id, answers[worker.id])


async def ask_plans(context: Context, starts: Sequence[tuple[VM, Worker]]) -> dict[str, WorkerPlan]:
    """Return the plans of several starts by uuid, asked at the same time. Those beyond `MOST_AT_ONCE` are missing."""
    first = starts[:MOST_AT_ONCE]
    plans = await asyncio.gather(*(ask_plan(context, vm, worker) for vm, worker in first))
    return {vm.uuid: plan for (vm, _), plan in zip(first, plans, strict=True)}
