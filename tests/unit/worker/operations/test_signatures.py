"""The parameters that Salt's loader needs written out are the fields of `Spec`, in its order and with its defaults."""

import importlib.util
import inspect
from pathlib import Path

import msgspec
import pytest

from worker_service.contract import MODIFIABLE, Spec
from worker_service.operations import verbs

REPO = Path(__file__).parents[4]


def load(path):
    spec = importlib.util.spec_from_file_location(f"loaded_{Path(path).parent.name}", REPO / path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


EXECUTION, STATES = load("modules/vmachines.py"), load("states/_states/vmachines.py")
FIELDS = {field.name: field.default for field in msgspec.structs.fields(Spec)}


def parameters(function):
    return {name: parameter.default for name, parameter in inspect.signature(function).parameters.items()}


def defaults(extra):
    """What a function is to have: the required fields first, as Python wants them."""
    required = {name: inspect.Parameter.empty for name, value in FIELDS.items() if value is msgspec.NODEFAULT}
    optional = {
        name: value or None for name, value in FIELDS.items() if name not in required
    }  # None for an absent list
    return {**required, **optional, **extra}


@pytest.mark.parametrize(
    ("function", "extra"),
    [
        (EXECUTION.start, {"origin": None, "uuid": None, "generation": None}),
        (EXECUTION.plan, {"origin": None, "uuid": None, "owner": None}),
    ],
)
def test_execution_module_has_the_fields_of_the_spec(function, extra):
    assert list(parameters(function).items()) == list(defaults(extra).items())


@pytest.mark.parametrize("function", [STATES.running, STATES.paused])
def test_states_have_the_spec_fields_and_omit_the_rest(function):
    given = parameters(function)
    assert given.pop("name") is inspect.Parameter.empty
    assert isinstance(given.pop("timeout"), int)
    assert given.pop("from_image") is False
    assert given == dict.fromkeys(FIELDS.keys() - {"name"})


@pytest.mark.parametrize("function", [EXECUTION.modify, STATES.halted])
def test_only_modifiable_parameters_can_be_modified(function):
    assert parameters(function).keys() & FIELDS.keys() - {"name"} <= set(MODIFIABLE)


def test_modify_has_all_of_them():
    assert set(MODIFIABLE) <= parameters(EXECUTION.modify).keys()


@pytest.mark.parametrize("verb", sorted(verbs.VERBS))
def test_every_verb_has_its_function_in_the_execution_module(verb):
    function = getattr(
        EXECUTION, {function: name for name, function in EXECUTION.__func_alias__.items()}.get(verb, verb)
    )
    taken = {name for name, p in inspect.signature(verbs.VERBS[verb]).parameters.items() if p.kind is p.KEYWORD_ONLY}
    assert taken <= parameters(function).keys()
