"""Messages of the worker API name settings that exist."""

import ast
import re
from pathlib import Path

import pytest

from worker_service.core.settings import ApiSettings

FOLDER = Path(__file__).parents[4] / "worker_service"


def settings_named(path):
    """The `[api]` and `[facade]` settings that the strings of a file name."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield from re.findall(r"(?<![\w./])((?:api|facade)\.[a-z_]+)\b", node.value)


@pytest.mark.parametrize("folder", ["api", "operations", "core"])
def test_settings_in_messages_exist(folder):
    known = {f"api.{name}" for name in ApiSettings.__struct_fields__}
    named = {name for path in (FOLDER / folder).glob("*.py") for name in settings_named(path)}
    assert named <= known
