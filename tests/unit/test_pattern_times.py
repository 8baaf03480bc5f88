"""Every regular expression of both services takes linear time, whatever the text: found in the source, then timed.

A text comes from a caller, a guest, a worker or a store. A pattern that takes quadratic time stops a service for
seconds, because `re` does not let other threads run.
"""

import ast
import importlib
import itertools
import re
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

REPO = Path(__file__).parents[2]
FOLDERS = ("master_service", "worker_service", "http_bounds", "web_assets", "modules", "states")
METHODS = {"search", "match", "fullmatch", "split", "findall", "finditer", "sub", "subn"}
MADE_LATER = {"worker_service/transfer/access.py"}
"""Files with a pattern that is made of the settings of a site, which trusts itself."""

SIZES = (16, 20, 24, 200, 1_000, 30_000)
"""Lengths of the texts. The small ones end the test early where time is exponential or cubic."""
LIMIT_S = 0.1
"""Processor time for one text. Linear patterns need a tenth of this, quadratic ones some ten times as much."""


OF_A_PART = {
    "LITERAL": chr,
    "NOT_LITERAL": lambda _: "a",
    "ANY": lambda _: "a",
    "NEGATE": lambda _: "a",
    "RANGE": lambda ends: chr(ends[0]),
    "CATEGORY": lambda kind: {"SPACE": " ", "DIGIT": "0"}.get(str(kind).removeprefix("CATEGORY_"), "a"),
}
"""A part of a parsed pattern -> a character that it matches."""


@dataclass(frozen=True)
class Use:
    """A pattern, and the method of `re` that is called with it."""

    place: str
    pattern: re.Pattern
    method: str


class _Known(ast.NodeTransformer):
    """Replaces the parts of an f-string that are known only at run time by a letter."""

    def __init__(self, names):
        self.names = names

    def visit_FormattedValue(self, node):
        known = all(name.id in self.names for name in ast.walk(node) if isinstance(name, ast.Name))
        return node if known else ast.Constant("x")


def value(node, names):
    """Evaluate an expression with the names of its module."""
    expression = ast.fix_missing_locations(ast.Expression(_Known(names).visit(node)))
    return eval(compile(expression, "pattern", "eval"), names)


def calls_of_re(tree):
    """Return each `re.NAME(...)` of a file, with the name."""
    for node in ast.walk(tree):
        is_call = isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
        if is_call and isinstance(node.func.value, ast.Name) and node.func.value.id == "re":
            yield node, node.func.attr


def methods_by_name(trees):
    """Return the methods that are called on each name: `_USER.sub(…)` gives {"_USER": {"sub"}}."""
    found = {}
    for tree in trees:
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and node.attr in METHODS:
                of = node.value.attr if isinstance(node.value, ast.Attribute) else getattr(node.value, "id", None)
                if of is not None:
                    found.setdefault(of, set()).add(node.attr)
    return found


def module_of(path):
    parts = path.relative_to(REPO).with_suffix("").parts
    return importlib.import_module(".".join(parts).removesuffix(".__init__"))


def uses():
    """Return every pattern in the source of the services with each method that it is used with."""
    sources = {path: path.read_text() for folder in FOLDERS for path in sorted((REPO / folder).rglob("*.py"))}
    trees = {path: ast.parse(text) for path, text in sources.items()}
    methods, found = methods_by_name(trees.values()), []
    for path, tree in trees.items():
        assert "from re import" not in sources[path], path
        names_of = {
            id(node.value): target.id
            for node in ast.walk(tree)
            if isinstance(node, ast.Assign | ast.AnnAssign) and node.value
            for target in (node.targets if isinstance(node, ast.Assign) else [node.target])
            if isinstance(target, ast.Name)
        }
        for call, function in calls_of_re(tree):
            if function not in METHODS | {"compile"}:
                continue
            names = vars(module_of(path))
            flags = [value(given, names) for given in call.args[1:2] if function == "compile"]
            flags += [value(given.value, names) for given in call.keywords if given.arg == "flags"]
            try:
                pattern = re.compile(value(call.args[0], names), *flags)
            except NameError:
                assert str(path.relative_to(REPO)) in MADE_LATER
                continue
            # A pattern without a name of its own is in a table. Tables are of patterns for whole texts.
            of = methods.get(names_of.get(id(call)), {"fullmatch"}) if function == "compile" else {function}
            place = f"{path.relative_to(REPO)}:{call.lineno}"
            found += [Use(place, pattern, method) for method in sorted(of)]
    return found


USES = uses()


def letters(parsed):
    """Return characters that the parts of a parsed pattern match."""
    if isinstance(parsed, tuple) and len(parsed) == 2 and (of := OF_A_PART.get(str(parsed[0]))):
        yield of(parsed[1])
    elif isinstance(parsed, list | tuple | re._parser.SubPattern):
        for part in parsed:
            yield from letters(part)


def texts(pattern, size):
    """Return texts of this length: what the pattern matches, again and again, and at last what it does not match."""
    is_text = isinstance(pattern.pattern, str)
    text = pattern.pattern if is_text else pattern.pattern.decode("latin-1")
    found = list(letters(re._parser.parse(text, pattern.flags & ~re.UNICODE)))
    whole = "".join(found)
    pairs = map("".join, itertools.pairwise(found))
    for pump in dict.fromkeys((*found, *pairs, whole, "\n", " ")):
        for begin in ("", whole):
            for end in ("", "\0", "\n"):
                made = begin + pump * (size // len(pump)) + end
                yield made if is_text else made.encode("latin-1", "replace")


def seconds(pattern, method, text):
    """Return the processor time of one call."""
    call = getattr(pattern, method)
    arguments = ("" if isinstance(text, str) else b"", text) if method in ("sub", "subn") else (text,)
    began = time.thread_time()
    result = call(*arguments)
    if method == "finditer":
        list(result)
    return time.thread_time() - began


def slow(use):
    """Return the length of a text that takes too long, and its begin; None without one."""
    for size in SIZES:
        for text in texts(use.pattern, size):
            # A second look: the first one may have met a pause of the machine.
            if seconds(use.pattern, use.method, text) > LIMIT_S and seconds(use.pattern, use.method, text) > LIMIT_S:
                return size, text[:60]
    return None


@pytest.mark.parametrize("use", USES, ids=lambda use: f"{use.place}-{use.method}")
def test_pattern_takes_linear_time(use):
    assert slow(use) is None


def test_slow_patterns_are_found():
    for text in (r"//.*@", r"^(a|a)*b"):
        assert slow(Use("here", re.compile(text, re.DOTALL), "search")), text
    assert len(USES) > 25
