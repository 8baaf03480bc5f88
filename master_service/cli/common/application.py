"""Groups of commands, and their help: names that people read, whole summaries, other names, and suggestions."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, TypeVar

import typer
from typer.core import TyperArgument, TyperCommand, TyperGroup, TyperOption

from master_service.cli.common.wording import for_terminal

Function = TypeVar("Function", bound=Callable[..., Any])
DEFAULT: Final = "list"
"""The command that a group runs by itself: `saltern users` is `saltern users list`."""

ALIASES: Final[Mapping[str, str]] = {"info": "show", "stop": "shutdown", "rm": "destroy", "delete": "destroy"}
"""other name -> command, in the root group."""

ELSEWHERE: Final[Mapping[str, str]] = {
    "boot": "start",
    "console": "console-url",
    "dominfo": "show",
    "edit": "modify",
    "kill": "destroy",
    "log": "history",
    "logs": "history",
    "ls": "list",
    "new": "create",
    "pause": "suspend",
    "poweroff": "shutdown",
    "ps": "list",
    "run": "create",
    "set": "modify",
    "status": "show",
    "undefine": "destroy",
    "unpause": "resume",
    "vnc": "console-url",
}
"""A word of another tool -> the command to suggest."""

_VALUES: Final[Mapping[str, str]] = {
    "cpu_count": "N",
    "count": "N",
    "expires_in_s": "SECONDS",
    "form": "FORMAT",
    "label": "LABEL",
    "limit": "N",
    "mem_size": "SIZE",
    "owner": "USER",
    "since": "TIME",
    "soft_list": "NAMES",
    "ssh_keys": "KEY",
    "text": "TEXT",
    "timeout_s": "SECONDS",
    "token_file": "FILE",
    "user_data": "URI",
}
"""parameter -> the name of its value in help. The others end with the kind of value, or have its name."""

_KINDS: Final[Mapping[str, str]] = {"_image": "URI", "_save_to": "URI", "_url": "URL", "_id": "ID"}
"""The end of a parameter's name -> the name of its value."""

_FARTHEST: Final = 2
"""The number of typing errors in a word that is still recognized."""

_RANGE: Final = re.compile(r"(?P<low>[0-9.]{1,9})<=x<=(?P<high>[0-9.]{1,9})|x>=(?P<least>[0-9.]{1,9})")


def distance(one: str, other: str) -> int:
    """Return how many letters to add, remove, change or exchange with the next make one word the other."""
    rows = [list(range(len(other) + 1))]
    for i, letter in enumerate(one, 1):
        row = [i]
        for j, opposite in enumerate(other, 1):
            costs = [rows[-1][j] + 1, row[-1] + 1, rows[-1][j - 1] + (letter != opposite)]
            if i > 1 and j > 1 and (letter, one[i - 2]) == (other[j - 2], opposite):
                costs.append(rows[-2][j - 2] + 1)
            row.append(min(costs))
        rows.append(row)
    return rows[-1][-1]


def nearest(word: str, known: Iterable[str]) -> list[str]:
    """Return the known words that somebody may have meant, at most three, the nearest first."""
    limit = min(_FARTHEST, len(word.lstrip("-")) // 3)
    found = sorted((distance(word, each), each) for each in known)
    return [each for far, each in found if far <= limit][:3]


def suggestion(words: Iterable[str]) -> str:
    """Return the question that ends a message, or ""."""
    return f" Did you mean {' or '.join(map(repr, words))}?" if words else ""


def summary(command: Any) -> str:
    """Return the first sentence of a command's help, whole."""
    text = " ".join((command.short_help or command.help or "").partition("\n\n")[0].split())
    return re.split(r"(?<=\.) (?=[A-Z])", text, maxsplit=1)[0]


def option_record(param: Any, context: Any) -> tuple[str, str] | None:
    """Return the name and the text of an argument or option for help, or None for a hidden one."""
    record = param.get_help_record(context)
    if record is None:
        return None
    name, text = record
    return name.partition(" <")[0] if isinstance(param, TyperArgument) else name, _RANGE.sub(_in_words, text)


def _in_words(found: re.Match[str]) -> str:
    if found["least"]:
        return f"at least {found['least']}"
    return f"at most {found['high']}" if found["low"] == "0" else f"{found['low']} to {found['high']}"


def _with_names(params: Iterable[Any]) -> None:
    """Give each parameter the name of its value that people read: NAME, URI, in place of `<str>`."""
    for param in params:
        if param.metavar is None and (isinstance(param, TyperArgument) or not param.is_flag):
            kind = next((kind for end, kind in _KINDS.items() if param.name.endswith(end)), None)
            param.metavar = _VALUES.get(param.name) or kind or param.name.upper()


def _usage(pieces: list[str]) -> list[str]:
    return [piece.replace("{", "").replace("}", "") for piece in pieces]


def _write_options(command: Any, context: Any, formatter: Any) -> None:
    params = command.get_params(context)
    for title, kind in (("Arguments", TyperArgument), ("Options", TyperOption)):
        records = (option_record(param, context) for param in params if isinstance(param, kind))
        if rows := [record for record in records if record is not None]:
            with formatter.section(title):
                formatter.write_dl(rows)


def _with_suggestions(parse: Callable[[], list[str]]) -> list[str]:
    """Parse options. The message about an unknown one names those that were perhaps meant, and no others."""
    try:
        return parse()
    except typer.TyperException as err:
        if hasattr(err, "message"):
            err.message = for_terminal(err.message)
        if (possible := getattr(err, "possibilities", None)) is not None and hasattr(err, "option_name"):
            err.message = f"{err.message}.{suggestion(nearest(err.option_name, possible))}"
            vars(err)["possibilities"] = None
        raise


class Command(TyperCommand):
    """A command of `saltern`."""

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        _with_names(self.params)

    def get_help_option_names(self, ctx: Any) -> list[str]:
        """Return the options that show the help."""
        del ctx
        return ["-h", "--help"]

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """Return the usage without braces."""
        return _usage(super().collect_usage_pieces(ctx))

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the words of this command."""
        return _with_suggestions(lambda: super(Command, self).parse_args(ctx, args))

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write arguments and options."""
        _write_options(self, ctx, formatter)


class Group(TyperGroup):
    """A group of commands, such as `saltern users`. Without a command it lists, if it can."""

    aliases: Mapping[str, str] = {}

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        _with_names(self.params)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Return a command by one of its names."""
        return super().get_command(ctx, self.aliases.get(cmd_name, cmd_name))

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the words of this group."""
        own = {name for param in self.get_params(ctx) for name in (*param.opts, *param.secondary_opts)}
        lists = not args or (args[0].startswith("-") and args[0].partition("=")[0] not in own)
        if lists and DEFAULT in self.commands and not self.no_args_is_help and (args or not ctx.resilient_parsing):
            args = [DEFAULT, *args]
        return _with_suggestions(lambda: super(Group, self).parse_args(ctx, args))

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any, list[str]]:
        """Return the command of these words."""
        if self.get_command(ctx, args[0]) is None and not args[0].startswith("-"):
            known = [ELSEWHERE[args[0]]] if ELSEWHERE.get(args[0]) in self.commands else []
            meant = known or nearest(args[0], [*self.list_commands(ctx), *self.aliases])
            ctx.fail(f"No such command {args[0]!r}.{suggestion(meant)}")
        return super().resolve_command(ctx, args)

    def get_help_option_names(self, ctx: Any) -> list[str]:
        """Return the options that show the help."""
        del ctx
        return ["-h", "--help"]

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """Return the usage without braces."""
        return _usage(super().collect_usage_pieces(ctx))

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write options, and the commands in their sections."""
        _write_options(self, ctx, formatter)
        for title, commands in self.sections(ctx).items():
            with formatter.section(title):
                formatter.write_dl([(command.name, summary(command)) for command in commands], col_max=12)
        if self.aliases:
            with formatter.section("Other names"):
                formatter.write_text(", ".join(f"{other} = {name}" for other, name in self.aliases.items()))

    def sections(self, ctx: Any) -> Mapping[str, list[Any]]:
        """Return the visible commands by the title of their section."""
        found: dict[str, list[Any]] = {}
        for name in self.list_commands(ctx):
            command = self.get_command(ctx, name)
            if not command.hidden:
                found.setdefault(command.rich_help_panel or "Commands", []).append(command)
        return found


class Root(Group):
    """The command `saltern` itself."""

    aliases = ALIASES

    def get_params(self, ctx: Any) -> list[Any]:
        """Return the options. Those that typer adds for completion still work, and are hidden."""
        params: list[Any] = super().get_params(ctx)
        for param in params:
            param.hidden = param.name in ("install_completion", "show_completion")
        return params


class Application(typer.Typer):
    """A group of commands. `section`: the title of the section in which help lists the commands added next."""

    section: str | None = None

    def __init__(self, *, cls: type[Group] = Group, **more: Any) -> None:
        super().__init__(cls=cls, rich_markup_mode=None, suggest_commands=False, **more)

    def command(self, name: str | None = None, **more: Any) -> Callable[[Function], Function]:
        """Add a command, as typer does."""
        return super().command(name, cls=Command, **{"rich_help_panel": self.section, **more})

    def add_typer(self, typer_instance: typer.Typer, **more: Any) -> None:
        """Add a group, as typer does."""
        super().add_typer(typer_instance, **{"rich_help_panel": self.section, **more})
