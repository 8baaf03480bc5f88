"""Deeds: what was done through doors that no Salt master sees, on its way to the audit of the master service.

The facade and `salt-call` append to one file, the watcher takes what is there and fires it as events. A hint like any
other: nobody waits for it, nothing fails with it, and where no watcher runs for long, what does not fit is lost.
"""

from __future__ import annotations

import logging
import os
import pwd
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import msgspec

from worker_service.contract import READ_ONLY_VERBS, AuditEvent, WorkerInterface, decode_audit_event
from worker_service.fs import locks

log = logging.getLogger("saltern.deeds")
_MOST_BYTES: Final = 256 << 10
_WORD: Final = 255


class AuditSpool:
    """The file of those that no master was told of yet."""

    def __init__(self, root: Path) -> None:
        self._path = root / "audit.jsonl"
        self._old_path = root / "deeds.jsonl"
        """What version 0.1 left unpublished, in fields of other names."""

    def note(self, deed: AuditEvent) -> None:
        """Keep a deed until somebody takes it. Raises nothing: what was done is done."""
        try:
            with locks.locked(self._path), self._path.open("ab") as file:
                if file.tell() > _MOST_BYTES:
                    log.warning("%s is full: no watcher has read it. A deed is lost for the audit.", self._path)
                    return
                file.write(msgspec.json.encode(deed) + b"\n")
        except OSError as err:
            log.warning("a deed could not be noted in %s: %s", self._path, err.strerror)

    def take(self) -> list[AuditEvent]:
        """Return the events recorded since the last call, and forget them."""
        lines = [*_take_lines(self._old_path), *_take_lines(self._path)]
        with suppress(OSError):
            self._old_path.unlink()
        taken = []
        for line in lines:
            try:
                taken.append(decode_audit_event(msgspec.json.decode(line)))
            except msgspec.MsgspecError:
                log.warning("a line of %s is not an audit event, and is left out", self._path)
        return taken


def _take_lines(path: Path) -> list[bytes]:
    try:
        if not path.stat().st_size:
            return []
        with locks.locked(path):
            lines = path.read_bytes().splitlines()
            os.truncate(path, 0)
    except OSError:  # usually the file does not exist yet
        return []
    return lines


def audit_event(  # noqa: PLR0913 - one parameter per field
    interface: WorkerInterface,
    actor: str,
    verb: str,
    given: Mapping[str, Any],
    reply: Mapping[str, Any],
    *,
    address: str = "",
) -> AuditEvent | None:
    """A call as a deed, None where it changed nothing whatever came of it.

    Of its parameters only what names the VM, and of the reply no sentence: a URI in them may hold a password.
    """
    if verb in READ_ONLY_VERBS:
        return None
    return AuditEvent(
        at=datetime.now(UTC).isoformat(timespec="seconds"),
        interface=interface,
        actor=_word(actor),
        verb=verb,
        name=_word(reply.get("name") or given.get("name")),
        uuid=_word(reply.get("uuid") or given.get("uuid")),
        address=address,
        success=bool(reply["success"]),
        code=_word(reply.get("code")),
    )


def local_user() -> str:
    """Whoever runs this process, in Salt's words: `sudo_alice` for a user that has become root."""
    if sudoer := os.environ.get("SUDO_USER"):
        return f"sudo_{sudoer}"
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return str(os.getuid())


def _word(value: object) -> str:
    return str(value or "").encode(errors="replace").decode()[:_WORD]
