"""What the agent in a guest reports, one JSON line for each event, and what follows from all of them.

The lines come from inside the guest: whoever owns it can write anything here. So everything is bounded, nothing is
believed beyond one VM's own software, and what people will read is made harmless.

    {"event": "up"}                                              the guest runs; with a `soft_list`, work begins
    {"event": "installing", "name": "nginx"}                     `name` is the entry, word for word
    {"event": "working", "beat": 3}                              its package manager said new things again
    {"event": "installed", "name": "nginx", "version": "1.22.1-9"}
    {"event": "failed", "name": "nginx", "tail": "E: …"}         without a name: it cannot install anything
    {"event": "done"}                                            nothing is left to do
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
"""Bytes of a log that are read. The agent's own, with all entries failing, stays far below."""

MAX_LINE: Final = 8192
_MAX_TAIL: Final = 4000
_TAIL_LINES: Final = 20
_MAX_VERSION: Final = 100
_MAX_BEAT: Final = 1 << 31
_MAX_NAME: Final = 200
_TOLD_LINES: Final = 200
_HARMFUL: Final = re.compile(r"[^\x20-\x7e\n]")
"""All but printable ASCII: no escape sequence for a terminal, no character that turns a line around."""


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """One line of the log. Unknown fields are passed over: a newer agent may say more."""

    event: Literal["up", "installing", "working", "installed", "failed", "done"]
    name: str = ""
    version: str = ""
    tail: str = ""
    beat: Annotated[int, msgspec.Meta(ge=0, le=_MAX_BEAT)] = 0


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """What all lines together say."""

    up: bool = False
    done: bool = False
    software: tuple[Software, ...] = ()
    failure: str = ""
    """Why nothing can be installed at all: of no entry in particular."""
    beat: int = 0
    """The highest number of a `working` since an entry moved on: a guest in a loop does not come beyond it."""

    @property
    def installed(self) -> int:
        """How many entries are installed."""
        return sum(entry.state is SoftwareState.INSTALLED for entry in self.software)

    @property
    def failed(self) -> Software | None:
        """The first entry that failed."""
        return next((entry for entry in self.software if entry.state is SoftwareState.FAILED), None)

    @property
    def current(self) -> Software | None:
        """The entry that is being installed."""
        return next((entry for entry in self.software if entry.state is SoftwareState.INSTALLING), None)


def parse(log: bytes) -> Iterator[Event]:
    """The events in a log. Lines that are none, too long, or not finished yet are passed over."""
    decoder = msgspec.json.Decoder(Event)
    whole, _, _partial = log[:MAX_LOG].rpartition(b"\n")
    for line in whole.split(b"\n"):
        if 0 < len(line) <= MAX_LINE:
            try:
                yield decoder.decode(line)
            except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
                continue


def fold(soft_list: Sequence[str], events: Iterable[Event]) -> Report:
    """What the events say of a `soft_list`. Entries only move on: installed and failed are final."""
    entries = {name: Software(name=name) for name in soft_list}
    up = done = False
    failure, beat = "", 0
    for event in events:
        up = True
        if event.event == "done":
            done = True
        elif event.event == "failed" and not event.name:
            failure = failure or harmless(event.tail) or "the agent did not say why"
        elif event.event == "working":
            beat = max(beat, event.beat)
        elif event.name in entries and (moved := _moved(entries[event.name], event)) != entries[event.name]:
            entries[event.name], beat = moved, 0
    return Report(up=up, done=done, software=tuple(entries.values()), failure=failure, beat=beat)


def _moved(entry: Software, event: Event) -> Software:
    if entry.state in (SoftwareState.INSTALLED, SoftwareState.FAILED):
        return entry
    match event.event:
        case "installing":
            return Software(name=entry.name, state=SoftwareState.INSTALLING)
        case "installed":
            version = _word(event.version, _MAX_VERSION)
            return Software(name=entry.name, state=SoftwareState.INSTALLED, version=version)
        case "failed":
            return Software(name=entry.name, state=SoftwareState.FAILED, tail=harmless(event.tail))
        case _:
            return entry


def told(events: Iterable[Event]) -> list[str]:
    """The events as lines for people, the latest last. Entries that nobody asked for are told like the others."""
    lines: deque[str] = deque(maxlen=_TOLD_LINES)
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
                lines.append(f"{name} could not be installed:" if name else "Nothing can be installed:")
                lines += [f"    {line}" for line in harmless(event.tail).split("\n")]
            case "done":
                lines.append("All is done.")
    return list(lines)


def _word(text: str, limit: int) -> str:
    return harmless(text).replace("\n", " ")[:limit]


def harmless(text: str) -> str:
    """A guest's words for people's eyes: printable, the last lines only."""
    lines = _HARMFUL.sub("?", text.replace("\r", "\n").replace("\t", " ")).strip().split("\n")
    return "\n".join(lines[-_TAIL_LINES:])[-_MAX_TAIL:]


def read(path: Path) -> tuple[bytes, float]:
    """A log and when it was last written to, in seconds since the epoch. Empty and 0 where there is none."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        return b"", 0.0
    with os.fdopen(fd, "rb") as file:
        return file.read(MAX_LOG), os.fstat(fd).st_mtime
