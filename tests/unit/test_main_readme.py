"""The main README: each command has the verbs, options and paths that it names, and each state its parameters."""

import importlib.util
import inspect
import re
import shlex
from pathlib import Path

import pytest
import typer.main
import yaml

from devstack import demo, more_workers
from devstack.__main__ import VERBS as TARGETS
from devstack.layout import PYTHON, REPO, Layout
from devstack.stack import LIBVIRT_URI
from master_service.cli.app import app
from worker_service.api.calls import SCOPE
from worker_service.operations import desired_state

README = (REPO / "README.md").read_text()
PAGES = [REPO / "README.md", REPO / "CONTRIBUTING.md", *sorted((REPO / "docs").glob("*.md"))]
STACK = Layout()
STATES = ("running", "paused", "halted", "absent")


def commands():
    """Return each line of the indented blocks, without its comment."""
    lines = re.findall(r"^ {4}(\S.*)$", README.partition("## In your SLS")[0], re.MULTILINE)
    return [line for line in (re.sub(r"\s+# .*", "", line) for line in lines) if line]


def parse(words):
    """Let the command line parse its words, without a call of the command. Raises click's errors."""
    command = typer.main.get_command(app)
    context = command.make_context("saltern", list(words))
    while hasattr(command, "resolve_command"):
        name, command, rest = command.resolve_command(context, [*context._protected_args, *context.args])
        context = command.make_context(name, rest, parent=context)


def below_clone(path):
    return str(path.relative_to(REPO))


def check_salt(words):
    folder, minion, function = words[2:5]
    assert words[:2] == ["salt", "-c"]
    assert (folder, minion) == (below_clone(STACK.salt), STACK.minion)
    assert function.removeprefix("vmachines.") in SCOPE


def check_curl(words):
    assert words[:2] == ["curl", "-H"]
    assert f"$(cat {below_clone(STACK.worker_token)})" in words[2]
    verb = re.fullmatch(rf"{STACK.worker_url}/vmachines/(\w+)\?name={demo.NAME}", words[3])
    assert verb
    assert verb[1] in SCOPE


def check_saltern(words):
    parse(words[1:])
    for uri in re.findall(r"file://\$PWD(/\S+)", " ".join(words)):
        assert f"file://{REPO}{uri}" == demo.specification(STACK)["hda_save_to"]


def check_make(words):
    known = set(TARGETS) | {f"HYPERVISOR={name}" for name in more_workers.NAMES}
    assert [word for word in words[1:] if word not in known] == []


def check_exact(*expected):
    def check(words):
        assert words == list(expected)

    return check


CHECKS = {
    "saltern": check_saltern,
    "make": check_make,
    "salt": check_salt,
    "curl": check_curl,
    "export": check_exact("export", f"PATH=$PWD/{below_clone(PYTHON.parent)}:$PATH"),
    "virsh": check_exact("virsh", "-c", LIBVIRT_URI, "console", demo.NAME),
    "ls": check_exact("ls", "-l", below_clone(STACK.saved)),
}
"""Program -> the check of a command line of it."""


@pytest.mark.parametrize("line", commands())
def test_command_names_what_there_is(line):
    words = shlex.split(line)
    CHECKS[words[0]](words)


def test_every_program_is_in_the_tour():
    assert {shlex.split(line)[0] for line in commands()} == set(CHECKS)


def spans():
    """Return each code span of the documents that is a whole command of `saltern`, with its page."""
    return sorted(
        {
            (span, page.name)
            for page in PAGES
            for span in re.findall(r"`(?:/opt/saltern/bin/)?(saltern [a-z][^`\n…]*)`", page.read_text())
        }
    )


@pytest.mark.parametrize(("span", "page"), spans())
def test_command_in_a_sentence_exists(span, page):
    """A command may stand without its arguments: `saltern doctor` and `saltern workers enroll` are both names."""
    command, words = typer.main.get_command(app), shlex.split(span)[1:]
    while words and hasattr(command, "commands"):
        assert words[0] in command.commands, page
        command = command.commands[words.pop(0)]
    options = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}
    assert [word for word in words if word.startswith("--") and word.partition("=")[0] not in options] == [], page


def sls():
    """Return the states of the example: [(id, state, parameters)]."""
    (text,) = re.findall(r"^```yaml\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
    return [
        (name, key.removeprefix("vmachines."), {key: value for each in given for key, value in each.items()})
        for name, declared in yaml.safe_load(text).items()
        for key, given in declared.items()
    ]


def states():
    """Return the state module. Salt's loader adds the names that its functions use when they run."""
    path = REPO / "states/_states/vmachines.py"
    spec = importlib.util.spec_from_file_location("vmachines_states", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_example_has_each_state_once():
    assert tuple(state for _, state, _ in sls()) == STATES


@pytest.mark.parametrize(("name", "state", "given"), sls(), ids=STATES)
def test_state_of_the_example_takes_its_parameters(name, state, given):
    inspect.signature(getattr(states(), state)).bind(name, **given)
    desired_state.parse_parameters({key: value for key, value in given.items() if key != "timeout"})


@pytest.mark.parametrize("path", sorted(set(re.findall(r"\]\((?!https:)([^)#]+)", README))))
def test_link_leads_to_a_file(path):
    assert Path(REPO, path).exists()
