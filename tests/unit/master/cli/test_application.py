"""The tree of commands: help at 80 columns, other names, and suggestions for words that are none."""

import re
import subprocess

import pytest
import typer
from typer.core import TyperGroup

from master_service.cli import reference
from master_service.cli.app import app
from master_service.cli.common.application import ALIASES, ELSEWHERE, distance, nearest, option_record, summary

ROOT = typer.main.get_command(app)


def tree(command=ROOT, parent=None, name="saltern"):
    """Yield (context, command) of the root and of all commands below it."""
    context = typer.Context(command, info_name=name, parent=parent, terminal_width=78)
    yield context, command
    if isinstance(command, TyperGroup):
        for each in command.list_commands(context):
            yield from tree(command.get_command(context, each), context, each)


ALL = [pytest.param(context, command, id=context.command_path) for context, command in tree()]


@pytest.mark.parametrize(("context", "command"), ALL)
def test_help_fits_80_columns_and_has_no_types_of_python(context, command):
    text = command.get_help(context)
    assert max(map(len, text.splitlines())) <= 80
    assert not re.search(r"<\w+|\{|<=x|\w\.\.\.$", text.partition("\n\n")[2], re.MULTILINE), text


@pytest.mark.parametrize(("context", "command"), ALL)
def test_summary_is_whole_and_takes_one_line(context, command):
    assert summary(command).endswith((".", ")")), command.name
    assert len(summary(command)) <= 78 - len("  console-url  ")


@pytest.mark.parametrize(("context", "command"), ALL)
def test_every_option_says_what_it_does(context, command):
    for param in command.get_params(context):
        record = option_record(param, context)
        assert record is None or record[1], param.name


def test_commands_of_the_root_have_a_section():
    assert "Commands" not in ROOT.sections(typer.Context(ROOT))


def test_other_names_are_names_of_commands():
    commands = set(ROOT.list_commands(typer.Context(ROOT)))
    assert {*ALIASES.values(), *ELSEWHERE.values()} <= commands
    assert not commands & {*ALIASES, *ELSEWHERE}


@pytest.mark.parametrize(
    ("one", "other", "far"),
    [
        ("", "", 0),
        ("list", "list", 0),
        ("lst", "list", 1),
        ("liste", "list", 1),
        ("lost", "list", 1),
        ("lsit", "list", 1),
        ("tlsi", "list", 3),
        ("start", "", 5),
    ],
)
def test_distance_counts_typing_errors(one, other, far):
    assert (distance(one, other), distance(other, one)) == (far, far)


@pytest.mark.parametrize(
    ("word", "meant"),
    [
        ("lst", ["list"]),
        ("shutdwon", ["shutdown"]),
        ("creat", ["create"]),
        ("strt", ["start"]),
        ("st", []),
        ("frobnicate", []),
        ("history", ["history"]),
        ("", []),
    ],
)
def test_suggestion_is_near(word, meant):
    assert nearest(word, ["list", "start", "shutdown", "create", "history"]) == meant


def test_man_page_has_every_command_and_option():
    page = reference.page(ROOT)
    assert page.startswith(".TH SALTERN 1")
    for context, command in tree():
        assert context.command_path.replace("-", "\\-") in page
        for param in command.get_params(context):
            if record := option_record(param, context):
                assert f".B {record[0]}".replace("-", "\\-") in page.splitlines()


def test_man_page_is_roff_without_warnings():
    words = ["groff", "-man", "-Tutf8", "-ww"]
    done = subprocess.run(words, input=reference.page(ROOT), capture_output=True, text=True, check=True)
    assert done.stderr == ""
