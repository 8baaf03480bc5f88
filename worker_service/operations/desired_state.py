"""What the states of virtual machines want, and the next thing to do for it: functions of values, no I/O.

`decide` looks at a VM and says the next verb, until nothing is left to do. `imagine` says what the VM would look like
after that verb; with it in the worker's place the same decisions are a dry run. What changed is the difference of two
looks in both cases, so a dry run cannot promise what the real one does not do.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Final, Literal, NamedTuple

import msgspec

from worker_service.contract import INTENDED_HALTS, HaltCause, Spec, Status
from worker_service.core.errors import BadRequest
from worker_service.operations import validation
from worker_service.state.record import OF_KEPT_DISKS

Goal = Literal["running", "paused", "halted", "absent"]
Parameters = Mapping[str, Any]
Seen = Mapping[str, Any]
"""The reply of `status`: a `VMStatus` as plain data, defaults left out. None in its place: there is no such VM."""
Changes = dict[str, dict[str, Any]]

_MODIFIABLE: Final = frozenset({"hda_save_to", "hdb_save_to", "cd_image"})
_DISKS: Final = ("hda", "hdb")
_DEFAULTS: Final[Parameters] = {
    field.name: None if field.default is msgspec.NODEFAULT else field.default for field in msgspec.structs.fields(Spec)
}
_HOW_TO_CHANGE: Final = (
    "That cannot be changed while it is on: use vmachines.halted and then vmachines.running, or vmachines.absent where "
    "nothing is to be saved."
)


class GoalError(Exception):
    """A goal cannot be reached at all; the message says why and what to do."""


class GoalStep(NamedTuple):
    """What is next: a verb of `vmachines`, or `wait`, `done`, `fail` with the reason."""

    do: str
    why: str = ""
    parameters: Mapping[str, Any] = {}
    more: bool = False
    """With `wait`: further verbs follow, so that a caller who does not wait has not asked for everything yet."""


def decide(goal: Goal, given: Parameters, seen: Seen | None, told: Collection[str] = ()) -> GoalStep:
    """The next step towards a goal.

    Args:
        goal: what the VM is to be.
        given: the parameters that it is to have; others are left as they are.
        seen: what the VM is.
        told: verbs carried out already. None but `modify` is repeated: the next apply is the next try.
    """
    if goal == "absent":
        if seen is None:
            return GoalStep("done")
        return GoalStep("wait") if "destroy" in told else GoalStep("destroy", parameters={"timeout_s": 0})
    return _decide_off(given, seen, told) if goal == "halted" else _decide_on(goal, given, seen, told)


def _decide_on(goal: Goal, given: Parameters, seen: Seen | None, told: Collection[str]) -> GoalStep:
    if seen is None:
        return _decide_start(given, seen, told)
    status = Status(seen["status"])
    if status is Status.FAILED_TO_SAVE:
        return GoalStep("fail", f"{seen['message']} Call vmachines.save_retry first.")
    if "start" not in told and (status is Status.SAVING or _unsettled(seen)):
        return GoalStep("wait", "It is being saved, and can be started after that.", more=True)
    if status in (Status.HALTED, Status.FAILED_TO_START, Status.SAVING):
        return _decide_start(given, seen, told)
    differing = difference(given, spec_of(seen))
    if fixed := {key: pair for key, pair in differing.items() if key not in _MODIFIABLE}:
        return GoalStep("fail", f"It is here with {_told(fixed)}. {_HOW_TO_CHANGE}")
    return _decide_live(goal, status, {key: given[key] or "" for key in differing}, told)


def _decide_live(goal: Goal, status: Status, changes: Parameters, told: Collection[str]) -> GoalStep:
    preparing = status in (Status.STARTING, Status.INSTALLING)
    if now := {key: value for key, value in changes.items() if not (preparing and key == "cd_image")}:
        return GoalStep("modify", parameters=now)
    if preparing:
        return GoalStep("wait", "It is being started.", more=bool(changes) or goal == "paused")
    if (goal == "paused") == (status is Status.SUSPENDED):
        return GoalStep("done")
    verb = "suspend" if goal == "paused" else "resume"
    return GoalStep("wait") if verb in told else GoalStep(verb)


def _decide_start(given: Parameters, seen: Seen | None, told: Collection[str]) -> GoalStep:
    if "start" in told:
        return GoalStep("fail", _gone_again(seen))
    if seen is None and not given.get("hda_image"):
        return GoalStep("fail", "It is not here, and without hda_image it cannot be started. Give hda_image.")
    old = spec_of(seen)
    if seen and _kept(seen) and (fixed := difference(given, old).keys() & set(OF_KEPT_DISKS)):
        return GoalStep(
            "fail",
            f"Its disks of before are kept and would go on, so {', '.join(sorted(fixed))} cannot be changed. "
            "Call vmachines.shutdown first, which saves or discards them as asked, or use vmachines.absent.",
        )
    return GoalStep("start", parameters={**old, **given})


def _decide_off(given: Parameters, seen: Seen | None, told: Collection[str]) -> GoalStep:  # noqa: PLR0911 - one line for each status
    if seen is None or seen["status"] == Status.FAILED_TO_START:
        return GoalStep("done")
    status, differing = Status(seen["status"]), difference(given, spec_of(seen))
    if status is Status.SAVING or _unsettled(seen):
        return GoalStep("wait", "Its disks are being saved.")
    if status is Status.HALTED and not _kept(seen):
        if differing:
            return GoalStep("fail", f"It has halted already, with {_told(differing)}. What is saved is not moved.")
        return GoalStep("done")
    if differing:
        return GoalStep("modify", parameters={key: given[key] or "" for key in differing})
    if status is Status.FAILED_TO_SAVE:
        return GoalStep("fail", seen["message"]) if "save_retry" in told else GoalStep("save_retry")
    if status is Status.HALTED and not any(disk.get("save_to") for disk in seen["disks"].values()):
        return GoalStep("done")
    if "shutdown" in told:
        return GoalStep("wait", "The guest was asked to shut down and runs on.")
    # A guest that is paused does not hear its power button.
    return GoalStep("resume") if status is Status.SUSPENDED and "resume" not in told else GoalStep("shutdown")


def simulate(step: GoalStep, seen: Seen) -> Seen | None:
    """What `vmachines.status` would say once a step is done and has had its effect.

    A VM that is asked to start is imagined as running, one that is shut down as saved.
    """
    if step.do == "destroy":
        return None
    if step.do == "start":
        return {"status": Status.RUNNING, "message": "", "spec": dict(step.parameters), "disks": {}}
    if step.do == "modify":
        return {**seen, "spec": {**seen["spec"], **step.parameters}, "disks": _moved(seen, step.parameters)}
    if step.do in ("suspend", "resume"):
        return {**seen, "status": Status.SUSPENDED if step.do == "suspend" else Status.RUNNING}
    if seen["status"] in (Status.STARTING, Status.INSTALLING) and step.do == "wait":
        return {**seen, "status": Status.RUNNING}
    never_ran = seen["status"] == Status.STARTING and not seen.get("halt_cause")
    return {**seen, "status": Status.HALTED, "disks": {} if never_ran else _saved(seen)}


def _moved(seen: Seen, changes: Parameters) -> dict[str, Any]:
    targets = {name: {"save_to": changes[f"{name}_save_to"]} for name in _DISKS if f"{name}_save_to" in changes}
    return {name: {**disk, **targets.get(name, {})} for name, disk in seen["disks"].items()}


def _saved(seen: Seen) -> dict[str, Any]:
    spec = seen["spec"]
    targets = {disk_name: spec.get(f"{disk_name}_save_to") for disk_name in _DISKS if spec.get(f"{disk_name}_image")}
    return {disk_name: {"save_to": uri, "saved_to": uri} if uri else {} for disk_name, uri in targets.items()}


def difference(given: Parameters, old: Parameters) -> dict[str, tuple[Any, Any]]:
    """What is given and is not so: `{parameter: (old, new)}`. Absent and `""` mean the same, defaults are known."""
    was = {**_DEFAULTS, **old}
    pairs = {key: (was.get(key), value) for key, value in given.items()}
    return {key: (old, new) for key, (old, new) in pairs.items() if _comparable(old) != _comparable(new)}


def _comparable(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else None if value == "" else value


def changes_between(before: Seen | None, after: Seen | None) -> Changes:
    """`changes` as Salt shows them, `{what: {"old": …, "new": …}}`, from two replies of `vmachines.status`."""
    changes: Changes = {}
    old, new = (seen["status"] if seen else "absent" for seen in (before, after))
    if old != new:
        changes["status"] = {"old": str(old), "new": str(new)}
    if after is None:
        return changes
    for key, (was, value) in difference(spec_of(after), spec_of(before)).items():
        changes[key] = {"old": was if before else None, "new": value}
    known = before["disks"] if before else {}
    for disk_name, disk in after["disks"].items():
        if disk.get("saved_to") and disk["saved_to"] != known.get(disk_name, {}).get("saved_to"):
            place = {key: disk[key] for key in ("saved_to", "sha256", "size") if disk.get(key) is not None}
            changes[disk_name] = {"old": "on the worker", "new": place}
        elif _discarded(after, disk) and not (before and _discarded(before, known.get(disk_name, {}))):
            changes[disk_name] = {"old": "on the worker", "new": "discarded"}
    return changes


def spec_of(seen: Seen | None) -> dict[str, Any]:
    """The parameters of a VM beside its name; defaults may be left out."""
    return {key: value for key, value in (seen["spec"] if seen else {}).items() if key != "name"}


def _kept(seen: Seen) -> bool:
    return any(disk.get("kept") for disk in seen["disks"].values())


def _discarded(seen: Seen, disk: Parameters) -> bool:
    return seen["status"] == Status.HALTED and not any(disk.get(key) for key in ("kept", "saved_to", "save_to"))


def _unsettled(seen: Seen) -> bool:
    """Whether it is off, not by anybody's wish, and the worker has not put its disks into safety yet."""
    cause = seen.get("halt_cause")
    wished = cause in INTENDED_HALTS and not (cause == HaltCause.GUEST and spec_of(seen).get("run_policy") == "always")
    open_ = [disk for disk in seen["disks"].values() if disk.get("save_to") and not disk.get("saved_to")]
    return seen["status"] == Status.HALTED and bool(open_) and not wished and not _kept(seen)


def _told(differing: Mapping[str, tuple[Any, Any]]) -> str:
    return ", ".join(f"{key} {old!r} (asked for: {new!r})" for key, (old, new) in sorted(differing.items()))


def _gone_again(seen: Seen | None) -> str:
    if seen is None:
        return "It was started, and destroyed by somebody else."
    if seen["status"] == Status.FAILED_TO_START:
        return str(seen["message"])
    return f"It was started and is {seen['status']} again. {seen['message']}".rstrip()


def parse_parameters(parameters: Parameters) -> dict[str, Any]:
    """The parameters that are given at all, with the types of `Spec`; raises Unreachable that names the wrong one."""
    given = {key: value for key, value in parameters.items() if value is not None}
    try:
        given |= {key: validation.listed(given[key]) for key in ("soft_list", "ssh_keys") if key in given}
    except BadRequest as err:
        raise GoalError(str(err)) from err
    try:
        validation.check_known(given, Spec)
        made = msgspec.convert({"name": "any", "hda_image": "", **given}, Spec, strict=False)
    except BadRequest as err:
        raise GoalError(str(err)) from err
    except msgspec.ValidationError as err:
        raise GoalError(f"The parameters are not right: {err}.") from err
    return {key: list(value) if isinstance(value := getattr(made, key), tuple) else value for key in given}


def seconds(timeout: object) -> float:
    """A time limit; raises Unreachable."""
    try:
        return validation.seconds(timeout)
    except BadRequest as err:
        raise GoalError(str(err).replace("timeout_s", "timeout")) from err


def dry_run(goal: Goal, given: Parameters, seen: Seen | None) -> tuple[Seen | None, list[GoalStep]]:
    """What a VM would be once its goal is reached, and all the steps; the last one is `done` or `fail`."""
    steps = [decide(goal, given, seen)]
    while steps[-1].do not in ("done", "fail"):
        seen = simulate(steps[-1], seen or {})
        steps.append(decide(goal, given, seen, {step.do for step in steps}))
    return seen, steps


def start_obstacle(plan: Mapping[str, Any]) -> str:
    """Why a start with this reply of `plan` would be refused; `""` where it would not."""
    return "" if plan["success"] and plan["fits"] else str(plan["message"])


def to_fetch(plan: Mapping[str, Any]) -> str:
    """What a start would fetch, for people, exactly as far as the sources say it."""
    unknown = any(image["size"] is None and not image["cached"] for image in plan["images"])
    return f"{'At least ' if unknown else ''}{plan['bytes_to_fetch']} bytes to fetch."


def timeout_message(goal: Goal, seen: Seen | None, step: GoalStep, limit_s: float) -> str:
    """Why a goal counts as missed when the time is over; `""` for one who did not want to wait, if all is asked for."""
    if not limit_s and not step.more:
        return ""
    doing = f"It is {seen['status']}. " if seen else ""
    after = f"Not {goal} within {limit_s:g} s; the worker goes on by itself." if limit_s else "Apply again."
    return f"{doing}{step.why} {after}".replace("  ", " ").strip()


def comment(goal: Goal, name: str, before: Seen | None, after: Seen | None, *, foretold: bool) -> str:
    """A sentence or two on what was done, or would be, and where disks are."""
    changes = changes_between(before, after)
    status = after["status"] if after else "absent"
    if not changes:
        text = f"{name} is {status}." if after or goal == "absent" else f"{name} is not here: nothing of it runs."
    elif "status" in changes:
        text = f"{name} would be {status}." if foretold else f"{name} is {status} now."
    else:
        text = f"{name} would be changed: " if foretold else f"{name} is changed: "
        text += f"{', '.join(sorted(changes))}."
    if goal == "absent" and before:
        if before["status"] != Status.FAILED_TO_SAVE:
            return f"{text} Nothing is saved."
        after = before  # the one case in which a destroyed VM leaves something
    places = (_place(disk_name, disk) for disk_name, disk in (after or {}).get("disks", {}).items())
    return " ".join(part for part in (text, *places) if part)


def _place(disk_name: str, disk: Parameters) -> str:
    if uri := disk.get("saved_to"):
        digest = f" (sha256 {disk['sha256']})" if disk.get("sha256") else ""
        return f"{disk_name}: {uri}{digest}."
    return f"{disk_name} is kept in {disk['kept']}." if disk.get("kept") else ""
