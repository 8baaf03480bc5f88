"""The report of the agent in a guest: one JSON line for each event.

The lines come from inside the guest, so its owner can write anything here. Sizes are limited, a line affects only the
VM's own `soft_list`, and texts for users are sanitized.

    {"event": "up"}                                              the guest runs; it starts on its `soft_list`
    {"event": "installing", "name": "nginx"}                     `name` is the entry, word for word
    {"event": "working", "beat": 3}                              its package manager printed new lines
    {"event": "installed", "name": "nginx", "version": "1.22.1-9"}
    {"event": "failed", "name": "nginx", "tail": "E: …"}         without a name: the agent cannot install anything
    {"event": "done"}                                            the agent has finished
"""

from __future__ import annotations

import os
import re
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Final, Literal

import msgspec

from worker_service.contract import Software, SoftwareState

LOG: Final = "agent.log"
"""Name of the log in a VM's folder."""

MAX_LOG: Final = 1 << 20
"""Bytes of a log that are read. An honest log stays far below, even if all entries fail."""

MAX_LINE: Final = 8192
_MAX_TAIL: Final = 4000
_TAIL_LINES: Final = 20
_MAX_VERSION: Final = 100
_MAX_BEAT: Final = 1 << 31
_MAX_NAME: Final = 200
_SHOWN_LINES: Final = 200
_UNSAFE: Final = re.compile(r"[^\x20-\x7e\n]")
"""All but printable ASCII: no escape sequences for a terminal, no characters that reverse a line."""


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """One line of the log. Unknown fields are ignored: a newer agent may send more."""

    event: Literal["up", "installing", "working", "installed", "failed", "done"]
    name: str = ""
    version: str = ""
    tail: str = ""
    beat: Annotated[int, msgspec.Meta(ge=0, le=_MAX_BEAT)] = 0


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """The result of all lines."""

    up: bool = False
    done: bool = False
    software: tuple[Software, ...] = ()
    failure: str = ""
    """Why the agent cannot install anything, whatever the entry."""
    beat: int = 0
    """The highest number of a `working` event since an entry changed. A guest in a loop cannot exceed it."""

    @property
    def installed(self) -> int:
        """Return how many entries are installed."""
        return sum(entry.state is SoftwareState.INSTALLED for entry in self.software)

    @property
    def failed(self) -> Software | None:
        """Return the first entry that failed."""
        return next((entry for entry in self.software if entry.state is SoftwareState.FAILED), None)

    @property
    def current(self) -> Software | None:
        """Return the entry that is being installed."""
        return next((entry for entry in self.software if entry.state is SoftwareState.INSTALLING), None)


def parse(log: bytes) -> Iterator[Event]:
    """Yield the events in a log. Lines that are invalid, too long, or unfinished are ignored."""
    decoder = msgspec.json.Decoder(Event)
    whole, _, _partial = log[:MAX_LOG].rpartition(b"\n")
    for line in whole.split(b"\n"):
        if 0 < len(line) <= MAX_LINE:
            try:
                yield decoder.decode(line)
            except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
                continue


def fold(soft_list: Sequence[str], events: Iterable[Event]) -> Report:
    """Apply the events to a `soft_list`. An entry that is installed or failed does not change any more."""
    entries = {name: Software(name=name) for name in soft_list}
    up = done = False
    failure, beat = "", 0
    for event in events:
        up = True
        if event.event == "done":
            done = True
        elif event.event == "failed" and not event.name:
            failure = failure or sanitize(event.tail) or "the agent gave no reason"
        elif event.event == "working":
            beat = max(beat, event.beat)
        elif event.name in entries and (changed := _apply(entries[event.name], event)) != entries[event.name]:
            entries[event.name], beat = changed, 0
    return Report(up=up, done=done, software=tuple(entries.values()), failure=failure, beat=beat)


def _apply(entry: Software, event: Event) -> Software:
    if entry.state in (SoftwareState.INSTALLED, SoftwareState.FAILED):
        return entry
    match event.event:
        case "installing":
            return Software(name=entry.name, state=SoftwareState.INSTALLING)
        case "installed":
            version = _word(event.version, _MAX_VERSION)
            return Software(name=entry.name, state=SoftwareState.INSTALLED, version=version)
        case "failed":
            return Software(name=entry.name, state=SoftwareState.FAILED, tail=sanitize(event.tail))
        case _:
            return entry


def describe(events: Iterable[Event]) -> list[str]:
    """Return the events as lines for users, the latest last. Entries outside the `soft_list` are shown too."""
    lines: deque[str] = deque(maxlen=_SHOWN_LINES)
    for event in events:
        name, version = _word(event.name, _MAX_NAME), _word(event.version, _MAX_VERSION)
        match event.event:
            case "up":
                lines.append("The guest is up.")
            case "installing":
                lines.append(f"Installing {name}.")
            case "installed":
                lines.append(f"{name} is installed{f', version {version}' if version else ''}.")
            case "failed":
                lines.append(f"{name} could not be installed:" if name else "The agent cannot install anything:")
                lines += [f"    {line}" for line in sanitize(event.tail).split("\n")]
            case "done":
                lines.append("The agent has finished.")
    return list(lines)


def _word(text: str, limit: int) -> str:
    return sanitize(text).replace("\n", " ")[:limit]


def sanitize(text: str) -> str:
    """Make a text from a guest safe to show: printable characters, the last lines only."""
    lines = _UNSAFE.sub("?", text.replace("\r", "\n").replace("\t", " ")).strip().split("\n")
    return "\n".join(lines[-_TAIL_LINES:])[-_MAX_TAIL:]


def read(path: Path) -> tuple[bytes, float]:
    """Return a log and the time of its last write in seconds since the epoch. Empty and 0 if it is missing."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        return b"", 0.0
    with os.fdopen(fd, "rb") as file:
        return file.read(MAX_LOG), os.fstat(fd).st_mtime
