"""Changes of machines. VirtualBox sends none, so a thread looks once a second while a machine is on."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Final

from worker_service.core.errors import HypervisorError

log = logging.getLogger("saltern.watcher")

_LOOK_S: Final = 1.0
_PROCESSES: Final = frozenset({"VBoxHeadless\n", "VirtualBoxVM\n", "VBoxSDL\n"})


def any_process() -> bool:
    """Return whether some machine may be on, by the names of the host's processes."""
    for comm in Path("/proc").glob("[0-9]*/comm"):
        try:
            if comm.read_text() in _PROCESSES:
                return True
        except OSError:
            continue
    return False


class VboxEvents:
    """A thread that compares the machines that are on with those of a second ago.

    Args:
        running: returns the uuids of the machines that are on; raises HypervisorError.
        changed: called from the thread with the uuid of a machine that went on or off.
        look_at: called from the thread with the uuids of all that are on.
        on_host: returns cheaply whether any machine may be on.
        look_s: seconds between two looks.
    """

    def __init__(
        self,
        running: Callable[[], Collection[str]],
        changed: Callable[[str], None],
        look_at: Callable[[Collection[str]], None],
        on_host: Callable[[], bool] | None = None,
        look_s: float = _LOOK_S,
    ) -> None:
        self._running = running
        self._changed = changed
        self._look_at = look_at
        self._on_host = on_host or any_process
        self._look_s = look_s
        self._known: frozenset[str] = frozenset()
        self._thread: threading.Thread | None = None

    def ensure(self) -> bool:
        """Start the thread if there is none."""
        if self._thread is not None and self._thread.is_alive():
            return False
        self._thread = threading.Thread(target=self._run, name="vbox-events", daemon=True)
        self._thread.start()
        return True

    def _run(self) -> None:
        pause = threading.Event()
        while not pause.wait(self._look_s):
            try:
                self.look()
            except HypervisorError as err:
                log.warning("VirtualBox does not answer: %s", err)
            except Exception:  # the thread is the only one that looks
                log.exception("A look at VirtualBox failed.")

    def look(self) -> None:
        """Compare once."""
        if not self._known and not self._on_host():
            return
        running = frozenset(self._running())
        self._look_at(running)
        changed, self._known = self._known ^ running, running
        for uuid in sorted(changed):
            self._changed(uuid)
