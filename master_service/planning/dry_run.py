"""Compute the next action of the pusher for a VM, and its worker, by the same decisions. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

import msgspec

from master_service.core.settings import Settings
from master_service.planning.placement import Candidate, place
from master_service.planning.planner import DecisionKind, decide
from master_service.planning.vm import VM

NOTHING: Final = "it is in its desired state; nothing would be done"


@dataclass(frozen=True, kw_only=True, slots=True)
class DryRunResult:
    """The result of a dry run. `command` would be sent to `worker`; both are None when nothing would be sent."""

    kind: DecisionKind
    message: str
    worker: str | None = None
    command: str | None = None
    due: datetime | None = None


def dry_run(vm: VM, candidates: Iterable[Candidate], now: datetime, settings: Settings) -> DryRunResult:
    """Return what the pusher would do about a VM, with the worker that placement would choose if it has none."""
    decision = decide(vm, now, settings)
    if decision.command is None:
        return DryRunResult(
            kind=decision.kind, message=decision.reason or NOTHING, worker=vm.desired.worker, due=decision.due
        )
    verb, elsewhere = decision.command.verb, decision.command.elsewhere
    if vm.desired.worker is not None and not elsewhere:
        return DryRunResult(kind=decision.kind, message=decision.reason, worker=vm.desired.worker, command=verb)
    placement = place(vm.desired.spec, candidates, vm.desired.pin, vm.current_dispatch.rejected_by if elsewhere else ())
    if placement.worker is None:
        return DryRunResult(kind=DecisionKind.WAIT, message=f"{decision.reason}: {placement.reason}")
    message = f"{decision.reason if elsewhere else verb}: {placement.reason}"
    return DryRunResult(kind=decision.kind, message=message, worker=placement.worker, command=verb)


def changes(before: VM | None, after: VM) -> list[tuple[str, Any, Any]]:
    """Return (field, before, after) for each difference in the desired state; for a new VM all fields."""
    old, new = _desired(before) if before else {}, _desired(after)
    return [(field, old.get(field), new[field]) for field in new if old.get(field) != new[field]]


def _desired(vm: VM) -> dict[str, Any]:
    spec = msgspec.structs.asdict(vm.desired.spec)
    spec |= {"soft_list": list(spec["soft_list"]), "ssh_keys": list(spec["ssh_keys"])}
    return {"desired": vm.desired.status.value, **spec, "worker": vm.desired.pin, "labels": dict(vm.desired.labels)}
