"""Messages for somebody who typed a command: no words of HTTP, no names of parameters, no holes, nothing twice."""

import ast
import re

import pytest

from master_service.cli.common.wording import FUNCTIONS, OPTIONS, PHRASES, distinct, for_terminal
from tests.unit.master.cli.test_application import tree
from tests.unit.test_architecture import REPO, sources

SPEAKING = ("core", "planning", "policy", "services", "store", "runtime", "reconciler", "api", "cli")
"""The folders of the master with messages that a command prints. `gate` and `saltapi` speak to the master alone."""

SILENT = {"cli/common/client.py", "policy/permissions.py", "core/settings.py", "policy/notice_formats.py"}
"""Files whose texts are requests, routes, descriptions of settings, or mails."""

HTTP = re.compile(
    r"(?<!-)\b(PATCH|POST|PUT|GET|DELETE|HTTP|ETag|If-Match|Idempotency-Key|header|headers|endpoint|resource"
    r"|query|status code|Bearer|4[0-9][0-9]|50[0-9])\b|/docs\b"
)
PARAMETER = re.compile(rf"(?<![\w./:=&?-])({'|'.join(OPTIONS)}|save_retry)(?![\w./&-])")
HOLE = re.compile(r"\b(call|run|then|use|give|with|of) [.;,]|\( ?\)|` ?`|  [.;]")

OUTSIDE = {
    'Bearer realm="saltern"',
    "The Idempotency-Key x1 was used for another request.",
    "Send the ETag of your last GET as If-Match, or `If-Match: *` to overwrite any version.",
    "This change needs If-Match: another request may have changed the VM since you read it.",
    'give the ETag of the VM as it was read, such as "3"',
    "Send the header `Authorization: Bearer TOKEN`; the administrator's token is in the file `admin_token_file`.",
}
"""Sentences that the command line never gets: it always sends these, or has its own hint."""


def left_out_of(module):
    """Return the nodes of docstrings, of descriptions for OpenAPI, of logs, and of the parts of f-strings."""
    left_out = set()
    for node in ast.walk(module):
        match node:
            case ast.Expr(value=ast.Constant(value=str())):
                left_out.add(node.value)
            case ast.keyword(arg="description" | "responses" | "epilog"):
                left_out |= set(ast.walk(node.value))
            case ast.Call(func=ast.Attribute(value=ast.Name(id="log"))):
                left_out |= set(ast.walk(node))
            case ast.JoinedStr(values=parts):
                left_out |= set(parts)
    return left_out


def texts(path):
    """Yield each sentence in the code of a file."""
    module = ast.parse(path.read_text())
    left_out = left_out_of(module)
    for node in ast.walk(module):
        match node:
            case _ if node in left_out:
                continue
            case ast.JoinedStr(values=parts):
                text = "".join(part.value if isinstance(part, ast.Constant) else "x1" for part in parts)
            case ast.Constant(value=str() as text):
                pass
            case _:
                continue
        if " " in text.strip() and text not in OUTSIDE:
            yield text


def speaking():
    paths = [path for folder in SPEAKING for path in sources(f"master_service/{folder}")]
    return [path for path in paths if str(path.relative_to(REPO / "master_service")) not in SILENT]


@pytest.mark.parametrize("path", speaking(), ids=lambda path: str(path.relative_to(REPO / "master_service")))
def test_no_message_of_the_master_has_words_of_http(path):
    own = path.is_relative_to(REPO / "master_service/cli") and path.name != "wording.py"
    for text in texts(path):
        shown = for_terminal(text)
        assert not HTTP.search(shown), (text, shown)
        assert not PARAMETER.search(shown) or own, (text, shown)
        assert not HOLE.search(shown), text


@pytest.mark.parametrize(("context", "command"), [pytest.param(*each, id=each[0].command_path) for each in tree()])
def test_help_has_no_words_of_http(context, command):
    assert not HTTP.search(command.get_help(context))


def test_worker_messages_name_commands_and_have_no_holes():
    folders = [f"worker_service/{name}" for name in ("operations", "state", "steps", "images", "guest_agent")]
    for path in sources(*folders):
        for text in texts(path):
            assert not re.search(r"\bcall save.retry|vmachines\.(save_retry|list)\b", for_terminal(text)), text
            assert not HOLE.search(text), text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("hda_image: unknown scheme", "--hda-image: unknown scheme"),
        ("Use it as cd_image, with a disk such as hda_image=blank:20G.", None),
        ("mem_size is 9 MiB; more", "--mem-size is 9 MiB; more"),
        ("Remove the cause, then call save_retry.", "Remove the cause, then run `saltern save-retry`."),
        ("It failed. Call vmachines.save_retry first.", "It failed. Run `saltern save-retry` first."),
        ("save_retry of web01: done.", "save-retry of web01: done."),
        ("`vmachines.list` shows the names.", "`saltern list` shows the names."),
        ("discard it: salt w1 vmachines.list uuid=1", "discard it: salt w1 vmachines.list uuid=1"),
        ("timeout_s: Input should be less than 5", "--timeout: must be less than 5"),
        ("a request with the Idempotency-Key 1-2 is open", "a request is open"),
        ("a was modified: hda_save_to, cd_image.", "a was modified: --hda-save-to, --cd-image."),
        ("  hda_image: a b -> c d", "  hda_image: a b -> c d"),
        ("hda_image", "hda_image"),
        ("the file /srv/hda_image.qcow2 is away", "the file /srv/hda_image.qcow2 is away"),
        ("https://host.test/a?hda_image=1 is away", "https://host.test/a?hda_image=1 is away"),
    ],
)
def test_sentence_gets_the_words_of_the_command_line(text, shown):
    expected = shown or "Use it as --cd-image, with a disk such as --hda-image=blank:20G."
    assert for_terminal(text) == expected


def test_file_of_vms_keeps_its_parameters():
    assert for_terminal("a: hda_image is away. Call save_retry.", of_file=True).startswith(
        "a: hda_image is away. Run `s"
    )


def test_options_and_commands_exist():
    options = {option for _, command in tree() for param in command.params for option in param.opts}
    assert set(OPTIONS.values()) <= options
    paths = {context.command_path for context, _ in tree()}
    assert {f"saltern {command}" for command in FUNCTIONS.values()} <= paths


def test_every_phrase_is_still_said():
    code = "".join(
        path.read_text() for path in [*speaking(), *sources("worker_service/steps")] if path.name != "wording.py"
    )
    others = ("Input should be", "Value error, ", "status: '")  # pydantic's, and a field before its sentence
    lost = [phrase for phrase in PHRASES if phrase not in code and not phrase.startswith(others)]
    assert lost == []


@pytest.mark.parametrize(
    ("given", "left"),
    [
        ([], []),
        (["a is off.", "", "a is off"], ["a is off."]),
        (["refused: the disk is full. It waits.", "The disk is full."], None),
        (["the disk is full, so it waits", "the disk is full."], ["the disk is full, so it waits"]),
    ],
)
def test_nothing_is_said_twice(given, left):
    assert distinct(*given) == (given if left is None else left)
