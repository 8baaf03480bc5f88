"""Every change of phase in the source is in the table. A missing one would make each helper fail, without end."""

import ast
import inspect
from itertools import product

import msgspec
import pytest

from tests.unit.worker.state.test_command_rules import EXPECTED as COMMANDED
from tests.unit.worker.state.test_lifecycle import AGENT, AWAITED, DOMAINS, FAILED, PLACE, READY, record
from worker_service.contract import TRIES, HaltCause
from worker_service.state.lifecycle import Step, after_giving_up, after_halt, halt_cause, next_step
from worker_service.state.record import STARTING, TRANSITIONS, Disk, Phase
from worker_service.steps import halt, install, registry, remove, retry, running, save, start

MODULES = (halt, install, remove, retry, running, save, start)


def records(phase):
    """Every kind of record in a phase, as far as it matters for a decision."""
    causes = (None,) if phase is Phase.FETCHING else (None, HaltCause.GUEST, HaltCause.CRASHED)
    for (save_to, saved), agent, policy, cause, pressed, tries, lost, cd in product(
        ((None, None), ("", None), (PLACE, None), (PLACE, PLACE)), ({}, AGENT["spec"]), ("on_failure", "always"),
        causes, (False, True), (0, TRIES), (False, True), ("", "file:///cd.iso"),
    ):  # fmt: skip
        known = record(phase, save_to, spec={**agent, "run_policy": policy}, disks={"hda": Disk(saved_to=saved)})
        yield msgspec.structs.replace(
            known, halt_cause=cause, shutdown_asked=pressed, tries=tries, ended_by_host=lost, cd_uri=cd
        )


def cases(phase):
    return product(records(phase), DOMAINS, (AWAITED, READY, FAILED))


NEXT = {phase: {next_step(*case) for case in cases(phase)} for phase in Phase}
"""The possible next steps in each phase."""


def halts(phase):
    """Each case in which the next step is to record a halt, with its result."""
    for known, domain, readiness in cases(phase):
        if next_step(known, domain, readiness) is Step.NOTE_HALT:
            yield known, after_halt(known, halt_cause(known, domain), readiness)


COMPUTED = {
    "note_halt": lambda phase: {ending for _, ending in halts(phase)},
    "give_up_start": lambda phase: {after_giving_up(known) for known in records(phase)},
}
"""Where the functions lead that decide by a record, from a phase."""


def phases_of(function):
    """The phases in which a function may run that advances a record."""
    if function == "give_up_start":
        return STARTING
    names = {"failed_to_start": {"note_halt", "give_up"}}.get(function, {function})
    steps = {step for step, does in registry.STEPS.items() if does.__name__ in names}
    assert len(steps) == len(names), function
    return {phase for phase in Phase if steps & NEXT[phase]}


def moves(module):
    """(function, aim) of each change of phase in a module of steps; the aim is None where it is computed."""
    for function in ast.walk(ast.parse(inspect.getsource(module))):
        for call in ast.walk(function) if isinstance(function, ast.FunctionDef) else ():
            if isinstance(call, ast.Call) and getattr(call.func, "attr", getattr(call.func, "id", "")) == "advance":
                aim = call.args[1]
                yield function.name, Phase[aim.attr] if isinstance(aim, ast.Attribute) else None


MOVES = {
    (function, phase, ending)
    for module in MODULES
    for function, aim in moves(module)
    for phase in phases_of(function)
    for ending in ({aim} if aim else COMPUTED[function](phase))
}


@pytest.mark.parametrize(("function", "phase", "aim"), sorted(MOVES))
def test_phases_of_steps_are_in_the_table(function, phase, aim):
    assert aim in TRANSITIONS[phase]


def test_every_step_has_a_phase_and_every_phase_is_reachable():
    assert set().union(*NEXT.values()) - {None} == set(Step) == set(registry.STEPS)
    commanded = {aim for aim in COMMANDED.values() if isinstance(aim, Phase)}
    assert {aim for _, _, aim in MOVES} | commanded == set(Phase)


def test_shutdown_of_kept_disks_is_in_the_table():
    settled = frozenset({Phase.KEPT})  # it stays in its phase
    assert {after_halt(known, HaltCause.OPERATOR) for known in records(Phase.KEPT)} <= TRANSITIONS[Phase.KEPT] | settled


def test_no_disk_is_removed_unless_saved_or_discarded():
    """A removed disk is saved, or to be discarded, or never written by a guest."""
    for phase in Phase:
        for known, ending in halts(phase):
            never_ran = phase is not Phase.UP and known.halt_cause is None
            ends = not known.unsaved_disks and not known.disks_stay
            assert ending is not Phase.CLEANING or never_ran or ends, known
