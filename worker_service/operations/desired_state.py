"""The planner of the Salt states of VMs: functions of values, no I/O.

`decide` returns the next verb for an observed status, until there is no more to do. `simulate` returns the status after
that verb. A dry run makes the same decisions on simulated statuses, and `state_report.changes_between` compares the
first status with the last one in both cases, so a dry run promises nothing that a real run does not do.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Final, Literal, NamedTuple

import msgspec

from worker_service.contract import (
    GUEST_LISTS,
    IGNORES_BUTTON,
    INTENDED_HALTS,
    KEEP,
    MODIFIABLE,
    DiskReport,
    HaltCause,
    Spec,
    Status,
    VMStatus,
)
from worker_service.contract.words import refusal_of_any
from worker_service.core.errors import BadRequest
from worker_service.operations import validation
from worker_service.operations.state_report import (
    Parameters,
    describe_difference,
    describe_failed_start,
    difference,
    is_kept,
    parameters_of,
)
from worker_service.state.record import DISKS, OF_KEPT_DISKS

Goal = Literal["running", "paused", "halted", "absent"]
Observed = VMStatus | None
"""The status of a VM, or None if the worker has no such VM."""

_HOW_TO_CHANGE: Final = (
    "That cannot be changed while it is on: use vmachines.halted and then vmachines.running, or vmachines.absent to "
    "discard its disks."
)


_NEW_LIFE_OF_KEPT: Final = (
    "Its disks are kept here, and a new life would discard them. Use vmachines.absent first, or leave out from_image."
)


class GoalError(Exception):
    """A goal cannot be reached; the message says why and what to do."""


class GoalStep(NamedTuple):
    """The next step: a verb of `vmachines`, or `wait`, `done`, `fail` with the reason."""

    do: str
    reason: str = ""
    parameters: Mapping[str, Any] = {}
    more: bool = False
    """With `wait`: whether further verbs follow, so that a caller without a timeout has not sent all of them yet."""


def decide(
    goal: Goal, given: Parameters, observed: Observed, done: Collection[str] = (), *, from_image: bool = False
) -> GoalStep:
    """Return the next step towards a goal.

    Args:
        goal: the desired state.
        given: the desired parameters; others keep their values.
        observed: the VM's status.
        done: the verbs that this run has carried out. Only `modify` is repeated: the next apply is the next try.
        from_image: whether a VM that was saved starts a new life from its images, and not from its last save.
    """
    if goal == "absent":
        if observed is None:
            return GoalStep("done")
        return GoalStep("wait") if "destroy" in done else GoalStep("destroy", parameters={"timeout_s": 0})
    if goal == "halted":
        return _decide_off(given, observed, done)
    step = _decide_on(goal, given, observed, done)
    if step.do != "start" or observed is None:
        return step
    if is_kept(observed):
        return GoalStep("fail", _NEW_LIFE_OF_KEPT) if from_image else step
    return step if from_image else _from_last_save(given, observed, step)


def _from_last_save(given: Parameters, observed: VMStatus, step: GoalStep) -> GoalStep:
    """Return the start of a VM from its last save, if it has one. Another image would leave that aside."""
    saves = last_saves(observed)
    images = [f"{disk}_image" for disk in saves]
    if fixed := [name for name in images if name in difference(given, parameters_of(observed))]:
        return GoalStep(
            "fail",
            f"It would start from its last save, so {' and '.join(fixed)} cannot be changed. Give from_image: true for "
            "a new life from the image; the save stays.",
        )
    return step._replace(parameters={**step.parameters, "origin": saves}) if saves else step


def last_saves(observed: VMStatus) -> dict[str, str]:
    """Return the last save of each disk that has one, as `URI#sha256=DIGEST`."""
    saved = {
        disk: f"{each.saved_to}#sha256={each.sha256}" if each.sha256 else each.saved_to
        for disk, each in observed.disks.items()
        if each.saved_to
    }
    return {**observed.origin, **saved}


def plannable(parameters: Parameters) -> Parameters:
    """Return the parameters of a start as `plan` takes them: without a save that is still to be made."""
    saves = {disk: uri for disk, uri in parameters.get("origin", {}).items() if "#" in uri}
    return {**parameters, "origin": saves} if "origin" in parameters else parameters


def _decide_on(goal: Goal, given: Parameters, observed: Observed, done: Collection[str]) -> GoalStep:
    if observed is None:
        return _decide_start(given, observed, done)
    if observed.status is Status.FAILED_TO_SAVE:
        return GoalStep("fail", f"{observed.message} Call vmachines.save_retry first.")
    if "start" not in done and (observed.status is Status.SAVING or _is_unsettled(observed)):
        return GoalStep("wait", "It is being saved, and can be started after that.", more=True)
    if observed.status in (Status.HALTED, Status.FAILED_TO_START, Status.SAVING):
        return _decide_start(given, observed, done)
    differing = difference(given, parameters_of(observed))
    if fixed := {key: pair for key, pair in differing.items() if key not in MODIFIABLE}:
        return GoalStep("fail", f"It is here with {describe_difference(fixed)}. {_HOW_TO_CHANGE}")
    return _decide_live(goal, observed.status, {key: given[key] or "" for key in differing}, done)


def _decide_live(goal: Goal, status: Status, changes: Parameters, done: Collection[str]) -> GoalStep:
    preparing = status in (Status.STARTING, Status.INSTALLING)
    if now := {key: value for key, value in changes.items() if not (preparing and key == "cd_image")}:
        return GoalStep("modify", parameters=now)
    if preparing:
        return GoalStep("wait", "It is being started.", more=bool(changes) or goal == "paused")
    if (goal == "paused") == (status is Status.SUSPENDED):
        return GoalStep("done")
    verb = "suspend" if goal == "paused" else "resume"
    return GoalStep("wait") if verb in done else GoalStep(verb)


def _decide_start(given: Parameters, observed: Observed, done: Collection[str]) -> GoalStep:
    if "start" in done:
        return GoalStep("fail", describe_failed_start(observed))
    if observed is None and not given.get("hda_image"):
        return GoalStep("fail", "It is not here, and without hda_image it cannot be started. Give hda_image.")
    old = parameters_of(observed)
    if observed and is_kept(observed) and (fixed := difference(given, old).keys() & set(OF_KEPT_DISKS)):
        return GoalStep(
            "fail",
            f"It would start from its kept disks, so {', '.join(sorted(fixed))} cannot be changed. "
            "Use vmachines.halted with hda_save_to first, which saves them, or vmachines.absent, which discards them.",
        )
    return GoalStep("start", parameters={**old, **given})


def _decide_off(given: Parameters, observed: Observed, done: Collection[str]) -> GoalStep:  # noqa: PLR0911 - one line for each status
    if observed is None or observed.status is Status.FAILED_TO_START:
        return GoalStep("done")
    status, differing = observed.status, difference(given, parameters_of(observed))
    if status is Status.SAVING or _is_unsettled(observed):
        return GoalStep("wait", "Its disks are being saved.")
    if status is Status.HALTED and not is_kept(observed):
        if differing:
            reason = f"It has halted already, with {describe_difference(differing)}. Saved disks are not moved."
            return GoalStep("fail", reason)
        return GoalStep("done")
    if differing:
        return GoalStep("modify", parameters={key: given[key] or "" for key in differing})
    if status is Status.FAILED_TO_SAVE:
        return GoalStep("fail", observed.message) if "save_retry" in done else GoalStep("save_retry")
    if status is Status.HALTED and not _ends_by_shutdown(given, observed):
        return GoalStep("done")
    if "shutdown" in done:
        return GoalStep("wait", f"The guest was asked to shut down and still runs. Perhaps {IGNORES_BUTTON}.")
    # A paused guest does not notice its power button.
    return GoalStep("resume") if status is Status.SUSPENDED and "resume" not in done else GoalStep("shutdown")


def _ends_by_shutdown(given: Parameters, observed: VMStatus) -> bool:
    """Return whether a shutdown would save kept disks, or discard them as the state says in so many words."""
    disks = observed.disks
    if any(disk.save_to and not disk.saved_to for disk in disks.values()):
        return True
    stay = any(disk.save_to is None for disk in disks.values())
    return not stay and any(given.get(f"{name}_save_to") == "" for name in disks)


def _is_unsettled(observed: VMStatus) -> bool:
    """Return whether a VM went off unexpectedly and the worker has not secured its disks yet."""
    cause, always = observed.halt_cause, observed.spec is not None and observed.spec.run_policy == "always"
    intended = cause in INTENDED_HALTS and not (cause is HaltCause.GUEST and always)
    unsaved = any(disk.save_to != "" and not disk.saved_to for disk in observed.disks.values())
    return observed.status is Status.HALTED and unsaved and not intended and not is_kept(observed)


def simulate(step: GoalStep, observed: Observed) -> Observed:
    """Return the status of a VM once a step has had its effect: running after a start, saved after a shutdown."""
    if step.do == "destroy":
        return None
    if step.do == "start":
        parameters = {key: value for key, value in step.parameters.items() if key != "origin" and value != KEEP}
        spec = msgspec.convert({"name": "", **parameters}, Spec)
        return VMStatus(uuid="", name="", status=Status.RUNNING, message="", generation=0, since="", spec=spec)
    if observed is None:
        raise AssertionError(f"{step.do} needs a VM")
    spec = observed.spec or Spec(name="", hda_image="")
    if step.do == "modify":
        changes = {key: None if value == KEEP else value for key, value in step.parameters.items()}
        disks = _retarget(observed, changes)
        return msgspec.structs.replace(observed, spec=msgspec.structs.replace(spec, **changes), disks=disks)
    if step.do in ("suspend", "resume"):
        status = Status.SUSPENDED if step.do == "suspend" else Status.RUNNING
        return msgspec.structs.replace(observed, status=status)
    if observed.status in (Status.STARTING, Status.INSTALLING) and step.do == "wait":
        return msgspec.structs.replace(observed, status=Status.RUNNING)
    never_ran = observed.status is Status.STARTING and not observed.halt_cause
    disks = {} if never_ran else _save(spec)
    return msgspec.structs.replace(observed, status=Status.HALTED, disks=disks)


def _retarget(observed: VMStatus, changes: Parameters) -> dict[str, DiskReport]:
    return {
        name: msgspec.structs.replace(disk, save_to=changes.get(f"{name}_save_to", disk.save_to))
        for name, disk in observed.disks.items()
    }


def _save(spec: Spec) -> dict[str, DiskReport]:
    targets = {name: getattr(spec, f"{name}_save_to") for name in DISKS if getattr(spec, f"{name}_image")}
    kept = "its folder on this worker" if None in targets.values() else None
    return {name: DiskReport(save_to=uri, saved_to=uri or None, kept=kept) for name, uri in targets.items()}


def dry_run(
    goal: Goal, given: Parameters, observed: Observed, *, from_image: bool = False
) -> tuple[Observed, list[GoalStep]]:
    """Return the status of a VM once its goal is reached, and all steps. The last step is `done` or `fail`."""
    steps = [decide(goal, given, observed, from_image=from_image)]
    while steps[-1].do not in ("done", "fail"):
        observed = simulate(steps[-1], observed)
        steps.append(decide(goal, given, observed, {step.do for step in steps}, from_image=from_image))
    return observed, steps


def timeout_message(goal: Goal, observed: Observed, step: GoalStep, limit_s: float) -> str:
    """Return why a goal is missed when the time is over; `""` for a caller who does not wait, if all verbs are sent."""
    if not limit_s and not step.more:
        return ""
    doing = f"It is {observed.status}. " if observed else ""
    after = f"Not {goal} within {limit_s:g} s; the worker goes on by itself." if limit_s else "Apply again."
    return f"{doing}{step.reason} {after}".replace("  ", " ").strip()


def parse_status(reply: Mapping[str, Any]) -> Observed:
    """Return the status in a reply of `vmachines.status`. Raises GoalError for any failure but `not_found`."""
    if reply["success"]:
        return msgspec.convert(reply, VMStatus)
    if reply.get("code") == "not_found":
        return None
    raise GoalError(reply["message"])


def parse_parameters(parameters: Parameters) -> dict[str, Any]:
    """Return the parameters that are given, with the types of `Spec`. Raises GoalError that names the wrong one."""
    given = {key: value for key, value in parameters.items() if value is not None}
    try:
        given |= {key: validation.listed(given[key], key) for key in GUEST_LISTS if key in given}
        validation.check_known(given, Spec)
        made = msgspec.convert({"name": "any", "hda_image": "", **given}, Spec, strict=False)
    except BadRequest as err:
        raise GoalError(str(err)) from err
    except msgspec.ValidationError as err:
        raise GoalError(refusal_of_any(given) or f"The parameters are not right: {err}.") from err
    return {key: list(value) if isinstance(value := getattr(made, key), tuple) else value for key in given}


def name_of(name: object) -> str:
    """Return the name of a VM; raises GoalError for one that is no text."""
    try:
        return validation.word("name", name)
    except BadRequest as err:
        raise GoalError(str(err)) from err


def flag(name: str, value: object) -> bool:
    """Return a parameter that is true or false; raises GoalError."""
    try:
        return validation.flag(value)
    except BadRequest as err:
        raise GoalError(f"{name}: {err}") from err


def seconds(timeout: object) -> float:
    """Return a time limit in seconds; raises GoalError."""
    try:
        return validation.seconds(timeout)
    except BadRequest as err:
        raise GoalError(str(err).replace("timeout_s", "timeout")) from err
