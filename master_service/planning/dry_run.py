"""What the pusher would do about a VM now, and where: its own decisions, told in place of carried out. Pure."""

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

NOTHING: Final = "it is as wanted; nothing would be done"


@dataclass(frozen=True, kw_only=True, slots=True)
class DryRunResult:
    """What would be done. `command` is what the worker would be told; both None: nobody is told anything."""

    kind: DecisionKind
    message: str
    worker: str | None = None
    command: str | None = None
    due: datetime | None = None


def dry_run(vm: VM, candidates: Iterable[Candidate], now: datetime, settings: Settings) -> DryRunResult:
    """What the pusher would do about a VM, with the worker that placement would choose where one is looked for."""
    decision = decide(vm, now, settings)
    if decision.command is None:
        return DryRunResult(
            kind=decision.kind, message=decision.why or NOTHING, worker=vm.desired.worker, due=decision.due
        )
    verb, elsewhere = decision.command.verb, decision.command.elsewhere
    if vm.desired.worker is not None and not elsewhere:
        return DryRunResult(kind=decision.kind, message=decision.why, worker=vm.desired.worker, command=verb)
    placement = place(vm.desired.spec, candidates, vm.desired.pin, vm.current_dispatch.rejected_by if elsewhere else ())
    if placement.worker is None:
        return DryRunResult(kind=DecisionKind.WAIT, message=f"{decision.why}: {placement.why}")
    told = f"{decision.why if elsewhere else verb}: {placement.why}"
    return DryRunResult(kind=decision.kind, message=told, worker=placement.worker, command=verb)


def changes(before: VM | None, after: VM) -> list[tuple[str, Any, Any]]:
    """(field, before, after) of all that would be different in what is wanted; all that is said of a new VM."""
    old, new = _wishes(before) if before else {}, _wishes(after)
    return [(field, old.get(field), new[field]) for field in new if old.get(field) != new[field]]


def _wishes(vm: VM) -> dict[str, Any]:
    spec = msgspec.structs.asdict(vm.desired.spec)
    spec |= {"soft_list": list(spec["soft_list"]), "ssh_keys": list(spec["ssh_keys"])}
    return {"desired": vm.desired.status.value, **spec, "worker": vm.desired.pin, "labels": dict(vm.desired.labels)}
