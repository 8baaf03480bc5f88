"""Patterns match whole texts: `$` also matches before a newline at the end, so only `fullmatch` is an end."""

import ast
import re
from pathlib import Path

import pytest
from pydantic import BaseModel, Field, ValidationError
from pydantic import TypeAdapter as Adapter

from master_service.core.settings import Settings
from tests.unit.test_architecture import sources

REPO = Path(__file__).parents[2]
FILES = sources("master_service", "worker_service", "modules", "states", "devstack", "web_assets")
FUNCTIONS = {"compile", "match", "search", "fullmatch", "sub", "subn", "split", "findall", "finditer"}
OPEN_ENDED = {
    "devstack/bootstrap.py": "finds the block of a package in a lock file",
    "worker_service/transfer/s3.py": "finds an element in an answer of the store",
    "worker_service/contract/uri.py": "finds a forbidden character anywhere",
    "worker_service/contract/uri_secrets.py": "finds the parts of a URI, and words in the name of a parameter",
    "worker_service/hypervisor/screenshot_png.py": "reads the head of a file",
    "worker_service/hypervisor/vbox/driver.py": "finds words in a message of VBoxManage",
    "worker_service/hypervisor/vbox/state.py": "finds an error in a log",
    "worker_service/hypervisor/vbox/vboxmanage.py": "finds words in a message of VBoxManage",
    "worker_service/images/compression.py": "reads the beginning of a file",
    "worker_service/images/qemu_img.py": "finds a percentage in a line",
}
"""File -> why it uses `match` or `search`. All other files use `fullmatch`."""


def literal(node):
    """Return the text of a pattern, with `x` for what is put into it, or None if it is no literal."""
    match node:
        case ast.Constant(value=str(text)):
            return text
        case ast.Constant(value=bytes(text)):
            return text.decode("latin-1")
        case ast.JoinedStr(values=parts):
            return "".join(part.value if isinstance(part, ast.Constant) else "x" for part in parts)
        case _:
            return None


def calls(tree):
    """Return (function, arguments, keywords) of each call of a function of `re`."""
    for node in ast.walk(tree):
        match node:
            case ast.Call(func=ast.Attribute(value=ast.Name(id="re"), attr=name)) if name in FUNCTIONS:
                yield name, node


def patterns(tree):
    """Return (line, text, whether `$` is the end of a line) of each pattern: of calls, and of constants for them."""
    for _, node in calls(tree):
        if (text := literal(node.args[0])) is not None:
            yield node.lineno, text, "MULTILINE" in ast.unparse(node)
    for node in ast.walk(tree):
        match node:
            case (
                ast.AnnAssign(target=ast.Name(id=name), value=value)
                | ast.Assign(targets=[ast.Name(id=name)], value=value)
            ) if name.endswith("PATTERN") and (text := literal(value)) is not None:
                yield node.lineno, text, False


def ends(parsed):
    """Return whether a parsed pattern has a `$` anywhere."""
    return "AT_END" in repr([*parsed]).replace("AT_END_STRING", "")


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(REPO)))
def test_no_pattern_ends_with_a_dollar(path):
    tree = ast.parse(path.read_text())
    found = [(line, text) for line, text, lines in patterns(tree) if not lines and ends(re._parser.parse(text))]
    assert found == []


def test_match_and_search_are_used_only_where_no_end_is_meant():
    found = set()
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            match node:
                case ast.Call(func=ast.Attribute(attr="match" | "search")):
                    found.add(str(path.relative_to(REPO)))
    assert found - OPEN_ENDED.keys() == set()


@pytest.mark.parametrize("text", [r"^a$", r"a(?:b$)?", r"(?=a$)a"])
def test_dollar_is_found_anywhere(text):
    assert ends(re._parser.parse(text))


@pytest.mark.parametrize("text", [r"[$]", r"\$", r"a\Z", "a"])
def test_other_dollars_and_ends_are_allowed(text):
    assert not ends(re._parser.parse(text))


class Documented(BaseModel):
    """A field with a pattern: pydantic matches it with Rust's engine, whose `$` is the end alone."""

    word: str = Field(pattern="^[a-z]+$")


def test_pattern_of_a_field_takes_no_newline():
    assert Documented(word="info").word == "info"
    with pytest.raises(ValidationError):
        Documented(word="info\n")
    with pytest.raises(ValidationError):
        Adapter(Settings).validate_python({"log_level": "info\n"})


def test_no_model_chooses_the_engine_of_python():
    assert [str(path) for path in FILES if "regex_engine" in path.read_text()] == []
