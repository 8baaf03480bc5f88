"""`saltern man` and `completion`: the manual page and the shells' completion, made from the same help."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from enum import StrEnum
from typing import Annotated, Any, Final

import typer
from typer.completion import get_completion_script  # type: ignore[attr-defined] # imported there for its own use
from typer.core import TyperGroup

from master_service import __version__
from master_service.cli.common import terminal
from master_service.cli.common.application import option_record, summary

_NOT_WRAPPED: Final = "\b"
"""The mark of a paragraph whose lines stay as they are."""

_FILES: Final = (
    ("~/.config/saltern/*.token", "The tokens of `saltern login`, one for each master. XDG_CONFIG_HOME moves them."),
    ("/etc/saltern/admin.token", "The administrator's token, on the host of the master."),
)


class Shell(StrEnum):
    """The shells with completion."""

    BASH = "bash"
    ZSH = "zsh"
    FISH = "fish"


def man(context: typer.Context) -> None:
    """Show the manual page, or print its source for a file.

    `saltern man > saltern.1` writes the page for `man`.
    """
    source = page(context.find_root().command)
    viewer = shutil.which("man")
    if terminal.is_interactive() and viewer:
        subprocess.run([viewer, "-l", "-"], input=source.encode(), check=False)
    else:
        terminal.write(source)


def help_(
    context: typer.Context,
    words: Annotated[
        list[str] | None, typer.Argument(help="A command: create, or users quota.", metavar="COMMAND")
    ] = None,
) -> None:
    """Show the help of a command."""
    current = context.find_root()
    for word in words or ():
        if not isinstance(current.command, TyperGroup):
            raise typer.BadParameter(f"{current.command_path} has no commands")
        name, command, _ = current.command.resolve_command(current, [word])
        if command is not None:  # resolve_command ends with a suggestion if there is none
            current = typer.Context(command, info_name=name, parent=current)
    terminal.write(current.get_help() + "\n")


def completion(
    shell: Annotated[Shell, typer.Argument(help="bash, zsh or fish.", show_default=False)],
) -> None:
    """Print the completion script for a shell.

    Bash: `source <(saltern completion bash)` in ~/.bashrc. Zsh: the same in ~/.zshrc, after compinit. Fish:
    `saltern completion fish > ~/.config/fish/completions/saltern.fish`.
    """
    script = get_completion_script(prog_name="saltern", complete_var="_SALTERN_COMPLETE", shell=shell.value)
    terminal.write(script + "\n")


def page(root: Any) -> str:
    """Return the source of the manual page of a tree of commands. Source: groff_man(7)."""
    context = typer.Context(root, info_name="saltern")
    lines = [
        f'.TH SALTERN 1 "" "Saltern {__version__}" "User Commands"',
        ".SH NAME",
        f"saltern \\- {_escaped(root.help[0].lower() + root.help[1:].rstrip('.'))}",
        ".SH SYNOPSIS",
        *_synopsis(root, context),
        ".SH DESCRIPTION",
        "`saltern COMMAND \\-\\-help` shows the part about one command.",
        *_options(root, context),
    ]
    for title, commands in root.sections(context).items():
        lines += [f'.SH "{_escaped(title.upper())}"']
        for command in commands:
            lines += _command(command, context)
    lines += [".SH OTHER NAMES", *_paragraph(", ".join(f"{other} = {name}" for other, name in root.aliases.items()))]
    lines += [".SH EXIT STATUS", *_text(root.epilog)]
    variables = [(param.envvar, param.help) for param in root.get_params(context) if param.envvar]
    for title, entries in (("ENVIRONMENT", variables), ("FILES", _FILES)):
        lines += [f".SH {title}", *(line for name, text in entries for line in _entry(name, text))]
    return "\n".join(lines) + "\n"


def _command(command: Any, parent: Any) -> Iterator[str]:
    context = typer.Context(command, info_name=command.name, parent=parent)
    yield f'.SS "{_escaped(context.command_path)}"'
    if isinstance(command, TyperGroup):
        yield from _paragraph(summary(command))
        for name in command.list_commands(context):
            yield from _command(command.get_command(context, name), context)
        return
    yield from _synopsis(command, context)
    yield ".PP"
    yield from _text(command.help or "")
    yield from _options(command, context)
    yield from _text(command.epilog or "")


def _synopsis(command: Any, context: Any) -> Iterator[str]:
    yield f".B {_escaped(context.command_path)}"
    yield _escaped(" ".join(command.collect_usage_pieces(context)))


def _options(command: Any, context: Any) -> Iterator[str]:
    for param in command.get_params(context):
        if record := option_record(param, context):
            yield from _entry(*record)


def _entry(name: str, text: str) -> Iterator[str]:
    yield from (".TP", f".B {_escaped(name)}", _escaped(" ".join(text.split())))


def _text(text: str) -> Iterator[str]:
    """Yield the paragraphs of a help text."""
    for paragraph in filter(None, text.split("\n\n")):
        first, *lines = paragraph.splitlines()
        if first == _NOT_WRAPPED:
            yield from (".PP", ".nf", *map(_escaped, lines), ".fi")
        else:
            yield from _paragraph(paragraph)


def _paragraph(text: str) -> Iterator[str]:
    yield from (".PP", _escaped(" ".join(text.split())))


def _escaped(text: str) -> str:
    """Return a text without meaning for roff."""
    text = text.replace("\\", "\\e").replace("-", "\\-").replace('"', "\\(dq")
    return f"\\&{text}" if text.startswith((".", "'")) else text


def register(app: typer.Typer) -> None:
    """Add these commands."""
    app.command("help")(help_)
    app.command()(completion)
    app.command()(man)
