"""Changes of machines. VirtualBox sends none, so a thread looks once a second while a machine is on.

The end of a machine's process wakes it at once.
"""

from __future__ import annotations

import logging
import os
import re
import select
import threading
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

from worker_service.core.errors import HypervisorError

log = logging.getLogger("saltern.watcher")

SETTLED_S: Final = 5.0
"""VirtualBox's daemon may learn a bit later what a machine has written to its log, so an answer counts from then on."""
_LOOK_S: Final = 1.0
_PROCESSES: Final = frozenset({"VBoxHeadless\n", "VirtualBoxVM\n", "VBoxSDL\n"})
_UUID: Final = re.compile(rb"--startvm\0([0-9a-f-]{36})\0")


def processes() -> Iterator[int]:
    """Yield the pids of machines, by the names of the host's processes."""
    for comm in Path("/proc").glob("[0-9]*/comm"):
        with suppress(OSError):
            if comm.read_text() in _PROCESSES:
                yield int(comm.parent.name)


def any_process() -> bool:
    """Return whether some machine may be on."""
    return next(processes(), None) is not None


def by_machine() -> dict[str, int]:
    """Return the pids of machines by their uuids."""
    found = {}
    for pid in processes():
        with suppress(OSError):
            for uuid in _UUID.findall(Path(f"/proc/{pid}/cmdline").read_bytes()):
                found[uuid.decode()] = pid
    return found


class Ends:
    """Waits for the ends of processes of machines."""

    def __init__(self) -> None:
        self._watched: dict[int, tuple[int, str]] = {}
        """Descriptor of a process -> its pid and the uuid of its machine."""

    def watch(self) -> None:
        """Watch all processes of machines that are there now."""
        known = {pid for pid, _uuid in self._watched.values()}
        for uuid, pid in by_machine().items():
            if pid not in known:
                with suppress(OSError):
                    self._watched[os.pidfd_open(pid)] = pid, uuid

    def wait(self, limit_s: float) -> list[str]:
        """Wait until a process ends; return the uuids of those that have, none after the time limit."""
        poll = select.poll()
        for descriptor in self._watched:
            poll.register(descriptor, select.POLLIN)
        ended = [descriptor for descriptor, _event in poll.poll(limit_s * 1000)]
        found = [self._watched.pop(descriptor)[1] for descriptor in ended]
        for descriptor in ended:
            os.close(descriptor)
        return found


class VboxEvents:
    """A thread that compares the machines that are on with those of a second ago.

    Args:
        running: returns the uuids of the machines that are on; raises HypervisorError.
        changed: called from the thread with the uuid of a machine that went on or off.
        look_at: called from the thread with the uuids of all that are on.
        on_host: returns cheaply whether any machine may be on.
        traces: returns cheaply something that changes whenever a machine that is on may have changed.
        look_s: seconds between two looks.
    """

    def __init__(  # noqa: PLR0913 - each is a function, which tests replace
        self,
        running: Callable[[], Collection[str]],
        changed: Callable[[str], None],
        look_at: Callable[[Collection[str]], None],
        on_host: Callable[[], bool] | None = None,
        *,
        traces: Callable[[], object] = object,
        look_s: float = _LOOK_S,
    ) -> None:
        self._running = running
        self._changed = changed
        self._look_at = look_at
        self._on_host = on_host or any_process
        self._traces = traces
        self._last: object = None
        self._last_changed = float("-inf")
        self._look_s = look_s
        self._known: frozenset[str] = frozenset()
        self._ends = Ends()
        self._thread: threading.Thread | None = None

    def ensure(self) -> bool:
        """Start the thread if there is none."""
        if self._thread is not None and self._thread.is_alive():
            return False
        self._thread = threading.Thread(target=self._run, name="vbox-events", daemon=True)
        self._thread.start()
        return True

    def _run(self) -> None:
        while True:
            try:
                for uuid in self._ends.wait(self._look_s):
                    self._changed(uuid)
                self.look()
            except HypervisorError as err:
                log.warning("VirtualBox does not answer: %s", err)
            except Exception:  # the thread is the only one that looks
                log.exception("A look at VirtualBox failed.")

    def look(self) -> None:
        """Compare once."""
        if not self._known and not self._on_host():
            return
        running = self._known if self._settled() else frozenset(self._running())
        self._look_at(running)
        changed, self._known = self._known ^ running, running
        if changed:
            self._ends.watch()
        for uuid in sorted(changed):
            self._changed(uuid)

    def _settled(self) -> bool:
        """Return whether no machine that is on has left a trace for some seconds."""
        traces = self._traces()
        if traces != self._last:
            self._last, self._last_changed = traces, time.monotonic()
        return time.monotonic() - self._last_changed > SETTLED_S
