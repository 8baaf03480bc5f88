"""What `saltern doctor` says of workers and VMs: one table from a problem to its sentence and its fix.

A finding says what `saltern workers` and `saltern list` show of the same worker or VM: the same state, the same reason.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

Answer = Mapping[str, Any]
_LOW_DISK: Final = 5 * 2**30
"""Bytes. A worker with less will soon be unable to fetch and save."""
_SKEW_S: Final = 30.0
_STALE_S: Final = 900.0
"""The age of a worker's last answer that counts as a fault: three times the default interval of polls."""
_NAMED: Final = 10
"""At most this many VMs are named in one finding."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """The state of one part; with a fix if it does not work."""

    part: str
    ok: bool
    message: str
    fix: str = ""

    def plain(self) -> dict[str, Any]:
        """Return the same as plain data."""
        return asdict(self)


def good(part: str, message: str) -> Finding:
    """Return the finding of a part that works."""
    return Finding(part=part, ok=True, message=message)


def bad(part: str, message: str, fix: str) -> Finding:
    """Return the finding of a fault."""
    return Finding(part=part, ok=False, message=message, fix=fix)


WORKER_FAULTS: Final[Mapping[str, tuple[str, str]]] = {
    "waiting": ("waits to be enrolled", "compare its key, then: saltern workers enroll {id}"),
    "other_key": (
        "{problem}",
        "compare it with `saltern-worker fingerprint` on {id}; if it is the same: saltern workers enroll {id}",
    ),
    "unreachable_fenced": (
        "is fenced, and unreachable since {unreachable_since}",
        "repair it, then: saltern undrain {id}; to give it up: saltern workers unenroll {id}",
    ),
    "unreachable": (
        "unreachable since {unreachable_since}{because}{affected}",
        "there: systemctl status salt-minion; here: salt {id} vmachines.version; if it is off: saltern fence {id}",
    ),
    "fenced": ("{problem}", "destroy these copies (salt {id} vmachines.list has them), then: saltern undrain {id}"),
    "stale": ("last answered {age_s:.0f} s ago", "no poll succeeds: check salt-api, and read the master's log"),
    "version": (
        "is version {version}; there are {versions}",
        "bring all workers to one version; on {id}: salt-call state.apply worker",
    ),
    "no_capacity": ("has not reported its capacity yet", "salt {id} vmachines.list, and read its answer"),
    "driver_problem": (
        "its hypervisor {driver} does not work: {problem}",
        "do on {id} what is said; it is noticed with the next poll, and `saltern workers show {id}` has the rest",
    ),
    "no_driver": (
        "has no hypervisor driver that works, so it gets no new VMs",
        "on it: salt-call vmachines.capabilities says why; `hypervisors` in its worker.toml chooses them",
    ),
    "low_disk": (
        "{free_gib:.1f} GiB are free on its disk",
        "on it: salt-call vmachines.cache_clean, or give its data root a larger disk",
    ),
    "not_isolated": (
        "its guests on the network `user` reach it and its private networks",
        "on it: systemctl restart saltern-guest-firewall, and read why that fails",
    ),
    "clock": ("its clock is {skew_s:+.0f} s off", "on it: timedatectl set-ntp true"),
    "unassigned": (
        "has {vm_name} ({vm_uuid}) of {vm_owner}, which is not assigned to it",
        "saltern adopt {vm_uuid} --owner {vm_owner}, or, if it is a copy: salt {id} vmachines.shutdown uuid={vm_uuid}",
    ),
}
"""code -> sentence and fix. Both are templates for the values that `_faults_of` finds."""


_CONF: Final = "saltern_dedicated.conf in the Salt master's master.d"
_PROFILES: Final[Mapping[tuple[str, str], tuple[str, str]]] = {
    ("dedicated", "dedicated"): (
        "profile dedicated: `salt` runs only Saltern's functions here; salt-call runs all",
        "",
    ),
    ("shared", "shared"): ("profile shared: the gate alone confines the master service; `salt` runs everything", ""),
    ("dedicated", "shared"): (
        "has no blacklist, although gate.toml says profile dedicated: the gate's password is worth root on each worker",
        f'put back {_CONF}, and restart it; or, if the site shares it: salt_profile = "shared" in gate.toml',
    ),
    ("shared", "dedicated"): (
        "has a blacklist, although gate.toml says profile shared: `salt` runs only Saltern's functions",
        f'remove {_CONF}, and restart it; or: salt_profile = "dedicated" in gate.toml',
    ),
}
"""(chosen, in force) -> sentence and fix."""

_NEWER_PROFILE: Final = ("has a profile that this command does not know", "install the same version of both")


def of_profile(profile: Answer) -> Finding:
    """Check that the Salt master confines accounts as the site has chosen."""
    sentence, fix = _PROFILES.get((profile["chosen"], profile["in_force"]), _NEWER_PROFILE)
    return bad("salt master", sentence, fix) if fix else good("salt master", sentence)


def of_workers(workers: Sequence[Answer], vms: Sequence[Answer] = ()) -> Iterator[Finding]:
    """Check that each worker is reachable and recent, and check its version, drivers, clock and disk."""
    versions = {worker["version"] for worker in workers if worker["reachable"]}
    for worker in workers:
        faults = list(_faults_of(worker, versions, [vm["name"] for vm in vms if vm["worker"] == worker["id"]]))
        for code, values in faults:
            sentence, fix = (text.format(**{"id": worker["id"], **values}) for text in WORKER_FAULTS[code])
            yield bad(f"worker {worker['id']}", sentence, fix)
        if not faults:
            has = worker["capacity"]
            drained = f"drained: it gets no new VMs before `saltern undrain {worker['id']}`; "
            count = len(worker["unassigned_vms"])
            unmanaged = f"; VMs that this master does not manage: {count} (saltern list --unmanaged)" if count else ""
            yield good(
                f"worker {worker['id']}",
                f"{drained if worker['draining'] else ''}{_drivers(worker)}; version {worker['version']}; "
                f"{has['disk_free'] / 2**30:.1f} GiB free on its disk{unmanaged}",
            )


def _faults_of(worker: Answer, versions: set[str], vms: Sequence[str]) -> Iterator[tuple[str, Answer]]:
    """Yield the codes of a worker's faults, with the values for their sentences."""
    if not worker["enrolled"]:
        yield "waiting", {}
        return
    if not worker["reachable"]:
        yield (
            "unreachable_fenced" if worker["fenced_at"] else "unreachable",
            {
                "unreachable_since": worker["unreachable_since"],
                "because": f" ({worker['problem']})" if worker["problem"] else "",
                "affected": f"; last status shown: {_named(vms)}" if vms else "",
            },
        )
        return
    if worker["fenced_at"]:
        yield "fenced", {"problem": worker["problem"]}
    elif worker["problem"]:
        yield "other_key", {"problem": worker["problem"]}
    if worker["age_s"] is not None and worker["age_s"] > _STALE_S:
        yield "stale", {"age_s": worker["age_s"]}
    if len(versions) > 1:
        yield "version", {"version": worker["version"], "versions": ", ".join(sorted(versions))}
    yield from _faults_of_capacity(worker["capacity"], worker.get("drivers") or {})
    skew_s = worker.get("clock_skew_s")
    if skew_s is not None and abs(skew_s) > _SKEW_S:
        yield "clock", {"skew_s": skew_s}
    for vm in worker["unassigned_vms"]:
        if vm.get("owner"):  # the site's own VMs may stay unmanaged
            yield "unassigned", {"vm_name": vm["name"], "vm_uuid": vm["uuid"], "vm_owner": vm["owner"]}


def _faults_of_capacity(has: Answer | None, drivers: Answer) -> Iterator[tuple[str, Answer]]:
    if has is None:
        yield "no_capacity", {}
        return
    problems = {name: each["problem"].rstrip(".") for name, each in drivers.items() if each["problem"]}
    for name, problem in problems.items():
        yield "driver_problem", {"driver": name, "problem": problem}
    if not has["hypervisors"] or (drivers and len(problems) == len(drivers)):
        yield "no_driver", {}
    if has["disk_free"] < _LOW_DISK:
        yield "low_disk", {"free_gib": has["disk_free"] / 2**30}
    if has.get("guests_isolated") is False:
        yield "not_isolated", {}


def _drivers(worker: Answer) -> str:
    """Return a worker's hypervisors, and how guests run there: `kvm (tcg), xen (hvm)`."""
    drivers = worker.get("drivers") or {name: {} for name in worker["capacity"]["hypervisors"]}
    return ", ".join(f"{name} ({ran})" if (ran := has.get("acceleration")) else name for name, has in drivers.items())


def _named(names: Sequence[str]) -> str:
    return ", ".join(sorted(names)[:_NAMED]) + (", …" if len(names) > _NAMED else "")


_RESTART: Final = "fix the cause, then: saltern start {name}; `saltern history {name}` shows how it happened"
_RECREATE: Final = "create it again with other parameters, after: saltern destroy {name}"
_RETRIED: Final = "it is tried again by itself; `saltern history {name}` shows each try"
_GONE: Final = "destroy it here too: saltern destroy {name}; or let it start again: saltern start {name}"
_SALT: Final = "mend what is found above of salt api; the master then sends the command by itself"

VM_FIXES: Final[Mapping[str, str]] = {
    "elsewhere": "do there what is said; it goes on by itself once that domain is gone",
    "migrated": "do there what is said; it goes on by itself once it is back",
    "gone": _GONE,
    "destroyed": _GONE,
    "failed_to_save": "fix the cause, or choose another target (saltern modify {name} --hda-save-to URI), then: "
    "saltern save-retry {name}; its disks are safe on {worker}",
    "failed_to_start": _RESTART,
    "crashed": _RESTART,
    "no_effect": "`saltern history {name}` shows how; a guest that ignores a shutdown is shut down from inside",
    "stuck": "read its helper.log on {worker}; it goes on by itself once the cause is gone",
    "no_room": "free room (`saltern plan` shows why no worker fits), or create it smaller; it starts by itself",
    "policy": "give what {worker} permits (saltern modify {name}, or create it again), or let an administrator permit "
    "it in the worker's settings; then: saltern start {name}",
    "bad_image": "give an image that {worker} can read: saltern destroy {name}, and create it again",
    "name_taken": "remove or rename the other domain of this name on {worker}, then: saltern start {name}",
    "bad_request": _RECREATE,
    "too_large": _RECREATE,
    "unsupported": _RECREATE,
    "hypervisor_unavailable": "on {worker}: salt-call vmachines.capabilities (or systemctl status libvirtd) says why; "
    "it is tried again by itself",
    "disk_unavailable": "on {worker}: check that its data root is mounted and not full; it is tried again by itself",
    "fetch_failed": _RETRIED,
    "save_failed": _RETRIED,
    "timeout": _RETRIED,
    "internal": _RETRIED,
    "conflict": _RETRIED,
    "not_found": _RETRIED,
    "stale_generation": _RETRIED,
    "no_token": _RETRIED,
    "too_many_requests": _RETRIED,
    "salt_unavailable": _SALT,
    "salt_denied": _SALT,
    "unreachable": "it goes on by itself once {worker} answers; an administrator can say that {worker} is certainly "
    "off: saltern fence {worker}",
}
"""Code of a VM's problem -> fix. The first code that a VM has decides. The sentence is the one of `saltern list`."""
_PASSING: Final = frozenset({"busy", "drained", "fenced", "worker"})
"""Problems that need no user: `saltern show` has them, and they are no faults."""


def of_vms(vms: Sequence[Answer], *, workers_known: bool = False) -> Iterator[Finding]:
    """Check for VMs that need a user: disks that could not be saved, starts that failed, a worker that is silent.

    `workers_known`: the findings about workers name the VMs of a silent one already.
    """
    faults = [(vm, code) for vm in vms if (code := _fault_of(vm)) and not (workers_known and code == "unreachable")]
    if not faults:
        yield good("VMs", "none needs a user" if vms else "there are none")
    for vm, code in faults:
        values = {"name": vm["name"], "worker": vm["worker"] or "its worker"}
        silent = f"once {vm['worker']} answers: " if code != "unreachable" and "unreachable" in _codes(vm) else ""
        fix = silent + VM_FIXES.get(code, _RESTART).format(**values)
        yield bad(f"VM {vm['name']}", _sentence(vm, code), fix)


def _codes(vm: Answer) -> dict[str, str]:
    return {problem["code"]: problem.get("message", "") for problem in vm["problems"]}


def _fault_of(vm: Answer) -> str:
    """Return the code that decides, empty if the VM needs no user."""
    codes = _codes(vm)
    if vm["status"] == "halted":
        codes.pop("crashed", None)  # its user lets it be off: the next start goes on with the kept disks
    found = next((code for code in VM_FIXES if code in codes), "")
    unknown = next((code for code in codes if code not in _PASSING), "")
    return found or unknown or ("failed" if vm["status"] == "failed" else "")


def _sentence(vm: Answer, code: str) -> str:
    """Return the status and the reason of `saltern list`, and the problem if they do not have it."""
    listed, problem = vm["reason"] or vm["message"], _codes(vm).get(code, "")
    known = problem.rstrip(".").casefold() in listed.casefold()
    return f"{vm['status']}; {listed if known else f'{listed}; {problem}' if listed else problem}"
