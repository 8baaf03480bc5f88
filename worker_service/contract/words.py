"""Names are words: what YAML makes of a text, and the refusal of a value that is not the text that its sender wrote.

Salt's command line, SLS and files of VMs are YAML. It makes numbers, booleans, dates and nothing of words, and the
text is lost: 42 may have been `0042`, `42` or `0x2a`. Pure.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

HOW: Final = (
    "YAML, and so Salt's command line, reads words such as 0042, 1.10, on or 12:30:00 as numbers, booleans or dates "
    """unless they are quoted. Write it as '"0042"'."""
)
"""Why a word did not arrive as one, and how to write it."""

_TIME: Final = (
    r"(?:[Tt]|[ \t]+)[0-9][0-9]?:[0-9]{2}:[0-9]{2}(?:\.[0-9]*)?(?:[ \t]*(?:Z|[-+][0-9][0-9]?(?::[0-9]{2})?))?"
)
_READINGS: Final[Mapping[str, re.Pattern[str]]] = {
    "nothing": re.compile(r"~|null|Null|NULL|None|[ \t]*"),
    "a boolean": re.compile(
        r"yes|Yes|YES|no|No|NO|true|True|TRUE|false|False|FALSE|on|On|ON|off|Off|OFF",
    ),
    "a number": re.compile(
        r"[-+]?(?:0b[01_]+|0x[0-9A-Fa-f_]+|0o[0-7_]+)"
        r"|[-+]?[0-9][0-9_]*(?:\.[0-9_]*)?(?:[eE][-+]?[0-9]+)?"
        r"|[-+]?\.[0-9][0-9_]*(?:[eE][-+]?[0-9]+)?"
        r"|[-+]?[0-9][0-9_]*(?::[0-5]?[0-9])+(?:\.[0-9_]*)?"
        r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
    ),
    "a date": re.compile(rf"[0-9]{{4}}-[0-9]{{2}}-[0-9]{{2}}|[0-9]{{4}}-[0-9][0-9]?-[0-9][0-9]?{_TIME}"),
}
"""What a text becomes -> the texts, by YAML 1.1 (PyYAML), YAML 1.2, or Salt's command line (`None`)."""

_LISTS: Final = frozenset({"soft_list", "ssh_keys"})
_LABELS: Final = "labels"
_NO_WORDS: Final = frozenset({
    "cpu_count", "mem_size", "run_agent", "generation", "attempt", "params", "origin", "protected",
})  # fmt: skip
"""The parameters of a VM and of a command that are numbers, booleans or more than one value."""

_MOST_SHOWN: Final = 1 << 64


def yaml_reading(text: str) -> str:
    """Return what YAML makes of a text without quotes, such as `a number`; "" for what stays a text.

    A text with YAML's punctuation (`[`, `: `, `#`) is not looked into: no name has any.
    """
    return next((kind for kind, pattern in _READINGS.items() if pattern.fullmatch(text)), "")


def refusal_of_name(name: str) -> str:
    """Return why a new VM cannot have this name, or "". Unquoted, it would name another VM or none."""
    if not (kind := yaml_reading(name)):
        return ""
    return (
        f"The name {name!r} reads as {kind}. {HOW} A new VM cannot have such a name: choose another one, such as "
        f"'vm-{name}'."
    )


def refusal(parameter: str, value: object) -> str:
    """Return why this value of a parameter that should be a word is none, or ""."""
    return "" if isinstance(value, str) else f"{parameter} is {_described(value)}, not a word. {HOW}"


def refusal_of_any(parameters: Mapping[Any, object]) -> str:
    """Return why one of these parameters of a VM or a command is not the word that it should be, or ""."""
    return next((why for parameter, value in _words(parameters) if (why := refusal(parameter, value))), "")


def _words(parameters: Mapping[Any, object]) -> Iterator[tuple[str, object]]:
    for parameter, value in parameters.items():
        if not isinstance(parameter, str):
            yield "The name of a parameter", parameter
        elif parameter in _LISTS and isinstance(value, list | tuple):
            yield from ((f"An entry of {parameter}", each) for each in value)
        elif parameter == _LABELS and isinstance(value, Mapping):
            for label, text in value.items():
                yield "The name of a label", label
                yield f"The label {label}", text
        elif value is not None and parameter not in _NO_WORDS:
            yield parameter, value


def _described(value: object) -> str:
    """Return what a value is, in YAML's words."""
    match value:
        case None:
            return "nothing"
        case bool():
            return f"the boolean {str(value).lower()}"
        case int() | float():
            # Python refuses to write much longer ones.
            return "a number" if abs(value) >= _MOST_SHOWN else f"the number {value}"
        case list() | tuple():
            return "a list"
        case Mapping():
            return "a mapping"
        case _:
            return f"a {type(value).__name__}"
