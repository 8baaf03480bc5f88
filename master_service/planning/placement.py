"""Choose the worker of a new VM: reject workers that cannot hold it, prefer one that has its image. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from master_service.core.audience import NO_ROOM, two_forms
from master_service.planning.disk_ends import targets
from master_service.planning.vm import VM, Worker
from master_service.saltapi.untrusted import sanitize_text
from worker_service.contract import KEEP_FEATURE, Capacity, Spec, Taken, describe_taken, unsupported

_ASK: Final = "ask an administrator"


class WorkerState(StrEnum):
    """Why a worker gets no new VMs."""

    WAITING = "waiting"
    """It waits to be enrolled."""
    UNREACHABLE = "unreachable"
    FENCED = "fenced"
    DRAINED = "drained"


def worker_states(worker: Worker) -> tuple[WorkerState, ...]:
    """Return why this worker gets no new VMs; empty if it gets them."""
    holds = {
        WorkerState.WAITING: not worker.key,
        WorkerState.UNREACHABLE: worker.unreachable_since is not None,
        WorkerState.FENCED: worker.fenced_at is not None,
        WorkerState.DRAINED: worker.draining,
    }
    return tuple(state for state, held in holds.items() if held)


@dataclass(frozen=True, kw_only=True, slots=True)
class Candidate:
    """A worker, and what it promised to VMs since it last reported its capacity (memory in MiB)."""

    worker: Worker
    promised_cpu: int = 0
    promised_mem: int = 0
    promised_vms: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Placement:
    """The chosen worker, or None; and the reason, in two forms: one for those who may see the workers."""

    worker: str | None
    reason: str


def place(
    spec: Spec, candidates: Iterable[Candidate], pin: str | None = None, rejected_by: Collection[str] = ()
) -> Placement:
    """Choose a worker for a VM. `pin` allows only this one. `rejected_by` have just refused it for lack of room.

    Prefer the base image in its cache, then the most free memory, then the name, so that the choice is repeatable.
    """
    pool = [c for c in candidates if pin is None or c.worker.id == pin]
    if not pool:
        unknown = f"worker {pin} is not known" if pin else "no worker is known"
        advice = "accept its minion's key, then enroll it: saltern workers enroll ID"
        return Placement(worker=None, reason=two_forms(f"{unknown}; {advice}", f"{unknown}; {_ASK}"))
    refusals = {
        c.worker.id: "has just refused it for lack of room" if c.worker.id in rejected_by else _refusal(spec, c)
        for c in pool
    }
    fitting = [c for c in pool if not refusals[c.worker.id]]
    if not fitting:
        reasons = "; ".join(f"{worker} {reason}" for worker, reason in sorted(refusals.items()))
        return Placement(worker=None, reason=two_forms(f"no worker fits: {reasons}", _public_reason(spec, pool, pin)))
    best = min(fitting, key=lambda c: _rank(spec, c))
    chosen = f"{best.worker.id} was chosen"
    return Placement(worker=best.worker.id, reason=two_forms(f"{chosen} among {len(fitting)} that fit", chosen))


def _public_reason(spec: Spec, pool: Collection[Candidate], pin: str | None) -> str:
    """Return why no worker fits, for those who may not see the workers: nothing about one worker, or what others run.

    The VM's own needs say what to change, without what is free.
    """
    capable = [c.worker for c in pool if _is_capable(spec, c)]
    if not capable:
        return _incapable(spec, (c.worker.capacity for c in pool))
    subject = "no worker" if pin is None else f"worker {pin}"
    if all(worker_states(w) or w.capacity is None or _problem(spec, w.capacity) for w in capable):
        return f"{subject} takes new VMs now; {_ASK}" if pin is None else f"{subject} takes no new VMs now; {_ASK}"
    processors = "1 processor" if spec.cpu_count == 1 else f"{spec.cpu_count} processors"
    needs = f"it needs {spec.mem_size} MiB of memory and {processors} on one worker"
    return f"{NO_ROOM}: {needs}" if pin is None else f"{subject} has no room for it: {needs}"


def fitting_workers(spec: Spec, candidates: Iterable[Candidate], pin: str | None = None) -> list[str]:
    """Return the workers that could hold a VM now, in the order in which `place` prefers them."""
    fitting = [c for c in candidates if pin in (None, c.worker.id) and not _refusal(spec, c)]
    return [c.worker.id for c in sorted(fitting, key=lambda c: _rank(spec, c))]


def incapable(spec: Spec, candidates: Iterable[Candidate], pin: str | None = None) -> str:
    """Return why no worker, or not the one of the `pin`, runs such VMs at all; empty if one does or may."""
    has = {c.worker.id: c.worker.capacity for c in candidates if c.worker.key and pin in (None, c.worker.id)}
    lacking = {worker: _lacking_kind(spec, capacity) for worker, capacity in has.items() if capacity}
    if not has or len(lacking) < len(has) or not all(lacking.values()):
        return ""
    reasons = "; ".join(f"{worker} {lack}" for worker, lack in sorted(lacking.items()))
    return two_forms(reasons, _incapable(spec, has.values(), pin))


def never_starts(vm: VM, candidates: Iterable[Candidate]) -> str:
    """Return why the worker of a VM, or no worker if it has none, can run it at all; empty if it can or may."""
    spec, worker = vm.desired.spec, vm.desired.worker
    if worker is None:
        return incapable(spec, candidates, vm.desired.pin)
    # An older worker is asked with the command, as it always was.
    own = [c for c in candidates if c.worker.id == worker and c.worker.capacity and c.worker.capacity.drivers]
    return incapable(spec, own, worker)


def too_large_for_all(spec: Spec, workers: Iterable[Worker]) -> str | None:
    """Return why no worker could hold the VM even if empty, or None if one could or no capacity is known.

    A worker does not know all that it has while a hypervisor does not work.
    """
    capacities = [w.capacity for w in workers if w.capacity is not None and not _problem(spec, w.capacity)]
    if not capacities:
        return None
    memory = max(c.mem_total for c in capacities)
    processors = max(c.cpu_total for c in capacities)
    if spec.mem_size > memory:
        return f"mem_size is {spec.mem_size} MiB; the largest worker has {memory} MiB in all"
    if spec.cpu_count > processors:
        return f"cpu_count is {spec.cpu_count}; the largest worker offers {processors} in all"
    return None


def _refusal(spec: Spec, candidate: Candidate) -> str:
    """Return why this worker cannot hold the VM, with numbers; empty when it can."""
    worker, capacity = candidate.worker, candidate.worker.capacity
    if not worker.key:
        return "is not enrolled"
    if worker.unreachable_since is not None:
        return f"is unreachable since {worker.unreachable_since:%Y-%m-%d %H:%M:%S} UTC"
    if worker.fenced_at is not None:
        return f"is fenced since {worker.fenced_at:%Y-%m-%d %H:%M:%S} UTC"
    if worker.draining:
        return "is drained"
    if capacity is None:
        return "has not reported its capacity yet"
    return _lack(spec, capacity, candidate)


def _is_capable(spec: Spec, candidate: Candidate) -> bool:
    """Return whether the worker could run such a VM if it had room, as far as its last report says."""
    has = candidate.worker.capacity
    return has is None or not _lacking_kind(spec, has)


def _lacking_kind(spec: Spec, capacity: Capacity) -> str:
    """Return why a worker never runs such VMs, as its hypervisors and its version are; empty if it does."""
    if capacity.drivers:
        if why := unsupported(spec, capacity.drivers):
            return why
    elif spec.hypervisor not in capacity.hypervisors:
        return f"has no {spec.hypervisor} driver (it has {', '.join(capacity.hypervisors) or 'none'})"
    elif spec.sys_arch not in capacity.arches:
        return f"cannot run {spec.sys_arch} (it runs {', '.join(capacity.arches) or 'none'})"
    if _has_kept_disks(spec) and KEEP_FEATURE not in capacity.features:
        return (
            "has an older version of Saltern, which discards a disk that has no place to save it to: upgrade that "
            "worker, or give each disk a *_save_to"
        )
    return ""


def _problem(spec: Spec, capacity: Capacity) -> str:
    """Return why the hypervisor of such VMs does not work now on a worker that has it; empty if it works."""
    has = capacity.drivers.get(spec.hypervisor)
    return sanitize_text(has.problem).rstrip(".") if has else ""


def _has_kept_disks(spec: Spec) -> bool:
    return None in targets(spec).values()


def _incapable(spec: Spec, capacities: Iterable[Capacity | None], pin: str | None = None) -> str:
    """Return why workers never run such VMs, for those who may not see the workers: what to change, and no names."""
    drivers = [capacity.drivers for capacity in capacities if capacity and spec.hypervisor in capacity.drivers]
    lacks = sorted({unsupported(spec, each) for each in drivers} - {""})
    if not lacks:
        return f"no worker runs {_kind(spec)}" if pin is None else f"{pin} does not run {_kind(spec)}"
    if pin is not None:
        return f"{pin} {lacks[0]}"
    which = f"each that has {spec.hypervisor}" if len(lacks) == 1 else "one"
    return f"no worker can run it: {'; '.join(f'{which} {lack}' for lack in lacks)}"


def _kind(spec: Spec) -> str:
    kind = f"{spec.sys_arch} on {spec.hypervisor}"
    return f"{kind} and keeps disks that have no place to save them to" if _has_kept_disks(spec) else kind


def _lack(spec: Spec, capacity: Capacity, candidate: Candidate) -> str:
    memory = capacity.mem_free - candidate.promised_mem
    processors = capacity.cpu_free - candidate.promised_cpu
    taken = f" (taken: {describe_taken(by)})" if (by := _all_taken(candidate, capacity)) else ""
    if kind := _lacking_kind(spec, capacity):
        return kind
    if problem := _problem(spec, capacity):
        return f"starts no VM on {spec.hypervisor} now: {problem}"
    if spec.mem_size > memory:
        return f"has {max(0, memory)} of {capacity.mem_total} MiB memory free, {spec.mem_size} are needed{taken}"
    if spec.cpu_count > processors:
        return f"has {max(0, processors)} of {capacity.cpu_total} processors free, {spec.cpu_count} are needed{taken}"
    if capacity.disk_free <= 0:
        return "has a full disk"
    return ""


def _all_taken(candidate: Candidate, capacity: Capacity) -> dict[str, Taken]:
    """Return what takes a worker, with the starts that its last report does not have yet."""
    promised = Taken(vms=candidate.promised_vms, cpus=candidate.promised_cpu, mem=candidate.promised_mem)
    return {**capacity.taken, **({"promised": promised} if promised.vms else {})}


def _rank(spec: Spec, candidate: Candidate) -> tuple[bool, int, str]:
    capacity = candidate.worker.capacity
    images = capacity.images if capacity else ()
    memory = capacity.mem_free if capacity else 0
    return spec.hda_image not in images, candidate.promised_mem - memory, candidate.worker.id
