"""Identifiers of the product use the words of DESIGN.md's glossary, and none of the words that they replaced."""

import ast
import re
from pathlib import Path

import pytest

REPO = Path(__file__).parents[2]
FOLDERS = ("master_service", "worker_service", "http_bounds", "modules", "states", "devstack", "tests")

RETIRED = {
    "anew": "again",
    "aside asides": "failed_to_save",
    "asked asker": "desired, requested, caller",
    "bear birth born": "start, fork",
    "buried burial bury epitaph grave": "tombstone, destroyed",
    "checkpoint checkpoints": "failpoint",
    "courier": "notifier",
    "deed deeds": "audit event",
    "demand demanded demands": "require, check",
    "door doors": "interface",
    "facade": "api",
    "fleet": "workers",
    "forese foresee foreseen foresight foretell foretold imagine imagined": "dry run",
    "wanted wish wished wishes": "desired",
    "harmless hostile unfit": "sanitize, validate, untrusted",
    "housekeeper": "retention",
    "nobody whoever": "none, anonymous",
    "nudge": "start",
    "nursery": "fork server",
    "overheard": "external",
    "overtaken": "superseded",
    "pace": "back-off, stall",
    "people": "accounts, users",
    "redo redone": "retry",
    "rehearsal rehearsals rehearse rehearsed rehearses": "dry run",
    "seal sealed sealing": "flatten",
    "seat seats": "slot",
    "seen": "observed",
    "stranger strangers": "unassigned",
    "tell tells told": "message, notify, publish",
}
"""Retired words -> the words in use."""

INSTEAD = {word: instead for words, instead in RETIRED.items() for word in words.split()}

EXCEPTIONS = {
    "shutdown_asked": "record.json of version 0.1.0 has this field",
    "seen_at": "a column of version 0.1.0: when a worker answered last",
}
"""Identifier -> why it keeps a retired word."""

MIGRATIONS = "master_service/db/migrations/versions/"
"""Migrations are history: they name columns as the columns were called then."""


def identifiers(tree):
    """Return (line, name) of everything that a file names: functions, classes, parameters, variables, attributes."""
    for node in ast.walk(tree):
        match node:
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                yield node.lineno, name
            case ast.arg(arg=name) | ast.Name(id=name, ctx=ast.Store()) | ast.Attribute(attr=name, ctx=ast.Store()):
                yield node.lineno, name
            case ast.ImportFrom() | ast.Import():
                yield from ((node.lineno, alias.asname) for alias in node.names if alias.asname)
            case ast.ExceptHandler(name=str(name)) | ast.MatchAs(name=str(name)) | ast.MatchStar(name=str(name)):
                yield node.lineno, name


def words(name):
    """Split an identifier at underscores and capitals: `DryRunResult` is dry, run, result."""
    return [word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", name)]


def retired_in(folder):
    """Return a line for each identifier of a folder that has a retired word."""
    found = []
    for path in sorted((REPO / folder).rglob("*.py")):
        file = str(path.relative_to(REPO))
        if not file.startswith(MIGRATIONS):
            named = [(1, path.stem), *identifiers(ast.parse(path.read_text()))]
            found += [
                f"{file}:{line} {name}: use {INSTEAD[word]}"
                for line, name in sorted(set(named))
                if name not in EXCEPTIONS
                for word in words(name)
                if word in INSTEAD
            ]
    return found


@pytest.mark.parametrize("folder", FOLDERS)
def test_no_identifier_has_a_retired_word(folder):
    assert retired_in(folder) == []


def test_every_exception_is_used_and_has_a_reason():
    everywhere = "\n".join(path.read_text() for folder in FOLDERS for path in (REPO / folder).rglob("*.py"))
    assert [name for name, reason in EXCEPTIONS.items() if not reason or name not in everywhere] == []
