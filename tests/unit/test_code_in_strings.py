"""Module names and code inside strings of the tests exist: a rename of the product does not find them."""

import ast
import importlib
import re
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
IMPORT = re.compile(r"^from ((?:master|worker)_service[\w.]*) import (\w+(?:, \w+)*)", re.MULTILINE)
MODULE = re.compile(r"(?:master|worker)_service(?:\.\w+)+")


def strings():
    """Return (file, line, text) of each string constant that names one of the services."""
    for path in sorted(TESTS.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and "_service" in node.value:
                yield f"{path.relative_to(TESTS)}:{node.lineno}", node.value


def resolve(dotted):
    """Return the module or attribute of a dotted name. Raises AttributeError or ImportError."""
    module, _, attribute = dotted.rpartition(".")
    try:
        return importlib.import_module(dotted)
    except ModuleNotFoundError:
        return getattr(resolve(module), attribute)


def names_in(text):
    for module, names in IMPORT.findall(text):
        yield from (f"{module}.{name}" for name in names.split(", "))
    if MODULE.fullmatch(text):
        yield text


PLACES = {name: where for where, text in strings() for name in names_in(text)}


@pytest.mark.parametrize("name", sorted(PLACES))
def test_name_in_string_exists(name):
    assert resolve(name) is not None, PLACES[name]
