"""All output of the command line goes through one module, which makes it printable."""

import ast
import io
import re

import pytest

from master_service.cli.common import terminal
from master_service.cli.common.progress import ProgressDisplay
from tests.unit.test_architecture import sources

ATTACK = "\x1b]0;owned\x07\x9b2J\u202eEVIL\r\nok"
OUTPUTS = {"print", "echo", "secho", "prompt", "confirm", "pager"}
STYLE = re.compile(r"\x1b\[[0-9;]*m")


def writes(tree):
    """Return the lines of a file that write without the module `terminal`."""
    for node in ast.walk(tree):
        match node:
            case ast.Attribute(value=ast.Attribute(value=ast.Name(id="sys"), attr="stdout" | "stderr"), attr=name):
                if name != "isatty":
                    yield node.lineno
            case ast.Call(func=ast.Name(id="print")):
                yield node.lineno
            case ast.Call(func=ast.Attribute(value=ast.Name(id="typer" | "click"), attr=name)) if name in OUTPUTS:
                yield node.lineno


@pytest.mark.parametrize("path", sources("master_service/cli"), ids=lambda path: path.name)
def test_only_the_terminal_writes(path):
    if path.name != "terminal.py":
        assert list(writes(ast.parse(path.read_text()))) == []


class Screen(io.StringIO):
    """A terminal that keeps what is written to it."""

    def isatty(self):
        return True


def test_table_on_a_terminal_has_only_the_codes_of_styles(monkeypatch):
    screen = Screen()
    monkeypatch.setattr("sys.stdout", screen)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.delenv("NO_COLOR", raising=False)
    terminal.table(("NAME", f"TITLE{ATTACK}"), [(f"web01{ATTACK}", "running")], styles={"running": "green"})
    assert "\x1b[32m" in screen.getvalue()
    plain = STYLE.sub("", screen.getvalue())
    assert all(line.isprintable() for line in plain.split("\n")), plain
    assert "web01\\x1b]0;owned\\x07\\x9b2J\\u202eEVIL  ok" in plain


def test_progress_on_a_terminal_is_printable(monkeypatch):
    screen = Screen()
    monkeypatch.setattr("sys.stderr", screen)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "400")
    vm = {"name": f"web01{ATTACK}", "status": ATTACK, "reason": ATTACK, "progress": {"phase": f"fetching{ATTACK}"}}
    with ProgressDisplay() as progress:
        progress.show(vm)
    assert "owned" in screen.getvalue()
    for forbidden in ("\x1b]", "\x07", "\x9b", "\u202e"):
        assert forbidden not in screen.getvalue()


def test_one_line_stays_one_line(capsys):
    terminal.say(f"a{ATTACK}")
    terminal.warn(f"b{ATTACK}")
    terminal.say_all([ATTACK, "c"])
    terminal.write(f"[\n{ATTACK}\n]\n")
    out, err = capsys.readouterr()
    escaped = "\\x1b]0;owned\\x07\\x9b2J\\u202eEVIL "
    assert out == f"a{escaped} ok\n{escaped} ok\nc\n[\n{escaped}\nok\n]\n"
    assert err == f"b{escaped} ok\n"


LONG = [["URI", "x" * 60], ["WORKERS", "w1"], ["STATE", "cached"]]


@pytest.mark.parametrize(
    ("columns", "width", "widths"),
    [
        ([["NAME", "web01"], ["STATE", "reachable"], ["TEXT", "a sentence of words"]], 80, [5, 9, 19]),
        ([["NAME", "web01"], ["STATE", "reachable"], ["TEXT", "a sentence of words"]], 40, [5, 9, 17]),
        ([["TEXT", "a sentence of words"], ["MORE", "as many words as this"]], 40, [18, 16]),
        (LONG, 100, [60, 7, 6]),
        (LONG, 80, [58, 7, 6]),
        (LONG, 40, [18, 7, 6]),
        (LONG, 20, [None, None, None]),
        ([["", ""]], 20, [1]),
    ],
)
def test_columns_share_the_room_and_cut_no_short_word(columns, width, widths):
    assert terminal.column_widths(columns, width) == widths


def test_narrow_terminal_cuts_nothing_off(monkeypatch):
    screen = Screen()
    monkeypatch.setattr("sys.stdout", screen)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", "dumb")
    titles, row = ("URI", "WORKERS", "SIZE", "STATE"), (f"file:///{'x' * 90}", "worker1", "1.0 MiB", "cached")
    terminal.table(titles, [row])
    text = screen.getvalue()
    assert all(len(line) <= 80 for line in text.splitlines())
    assert text.count("x") == 90
    for word in (*titles, "worker1", "cached"):
        assert word in text
