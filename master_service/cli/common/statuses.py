"""The statuses of VMs in both vocabularies, the master's and the workers', and which of them may still come.

The master resolves `list --status` itself. The tables here are for `wait` and for help; a test compares them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

import typer

STATUSES: Final = (
    "pending",
    "preparing",
    "installing",
    "running",
    "paused",
    "saving",
    "halted",
    "failed",
    "destroying",
    "destroyed",
)
"""The master's words, in the order of a life."""

OF_WORKERS: Final[Mapping[str, str]] = {
    "starting": "preparing",
    "installing": "installing",
    "running": "running",
    "suspended": "paused",
    "saving": "saving",
    "halted": "halted",
    "failed to start": "failed",
    "failed to save": "failed",
}
"""A worker's word -> the master's."""

_AHEAD: Final[Mapping[str, frozenset[str]]] = {
    "running": frozenset({"pending", "preparing", "installing", "running", "saving", "halted", "failed"}),
    "paused": frozenset({"pending", "preparing", "installing", "running", "paused", "saving", "halted", "failed"}),
    "halted": frozenset({"saving", "halted", "failed"}),
    "destroyed": frozenset({"destroying", "destroyed"}),
}
"""A desired state -> the statuses on the way to it, or out of it without a user."""

_LEADS_TO: Final[Mapping[str, str]] = {
    "running": "start",
    "paused": "suspend",
    "halted": "shutdown",
    "destroyed": "destroy",
}
"""A status -> the command that leads to it."""


def word_of(text: str) -> str:
    """Return a status in either vocabulary; `failed_to_save` is `failed to save`. Raises BadParameter for others."""
    word = text.strip().lower().replace("_", " ").replace("-", " ")
    if word in STATUSES or word in OF_WORKERS:
        return word
    raise typer.BadParameter(
        f"{text!r} is no status. The statuses are {', '.join(STATUSES)}; "
        f"the workers' words are {', '.join(word for word in OF_WORKERS if word not in STATUSES)}."
    )


def complete(incomplete: str) -> list[str]:
    """Complete a status in the shell, in both vocabularies."""
    words = dict.fromkeys([*STATUSES, *(word.replace(" ", "_") for word in OF_WORKERS)])
    return [word for word in words if word.startswith(incomplete)]


def is_one_of(vm: Mapping[str, Any], words: Iterable[str]) -> bool:
    """Return whether a VM has one of these statuses. A worker's own word also needs the worker's report."""
    status, real = vm["status"], vm["real"]
    return any(word == status or (word == real and OF_WORKERS.get(word) == status) for word in words)


def why_not(vm: Mapping[str, Any], words: Iterable[str]) -> str:
    """Return why a VM will have none of these statuses unless a user asks for it, or "" if it may."""
    sought = [OF_WORKERS.get(word, word) for word in words]
    name, status, desired = vm["name"], vm["status"], vm["desired"]
    if desired not in _AHEAD:  # of a newer master
        return ""
    ahead = {status} if status == desired and desired != "running" else _AHEAD[desired]
    if any(word in ahead for word in sought):
        return ""
    verb = next((_LEADS_TO[word] for word in sought if word in _LEADS_TO), "")
    if desired == "destroyed":
        verb = ""
    elif verb == "start" and status == "paused":
        verb = "resume"
    hint = f" `saltern {verb} {name}` changes that." if verb else ""
    return f"{name} will not be {' or '.join(sought)}: it is {status}, and its desired state is {desired}.{hint}"


def explanation() -> str:
    """Return the table of both vocabularies, for help."""
    rows = [(status, [word for word, shown in OF_WORKERS.items() if shown == status]) for status in STATUSES]
    lines = [f"  {status:<11} {', '.join(words) or '-'}" for status, words in rows]
    return "\n".join(("\b", "Statuses, and the words of workers and Salt for them:", *lines))
