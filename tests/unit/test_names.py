"""Names of tests are short, and every file of tests says in its docstring what it tests."""

import ast
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
FILES = sorted(TESTS.rglob("test_*.py"))
LONGEST = 59


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(TESTS)))
def test_names_are_short_and_file_has_a_docstring(path):
    tree = ast.parse(path.read_text())
    names = [node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    assert [name for name in names if name.startswith("test_") and len(name) > LONGEST] == []
    assert ast.get_docstring(tree)
