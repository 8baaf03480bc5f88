"""The spool of audit events: acts through interfaces that no Salt master sees, on their way to the master's audit.

The worker's API and `salt-call` append to one file. The watcher takes the lines and fires them as events. No call waits
for the spool or fails with it. If no watcher runs for long, the file fills up and further events are lost.
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
from worker_service.contract.uri_secrets import shown
from worker_service.fs import locks

log = logging.getLogger("saltern.audit")
_MAX_BYTES: Final = 256 << 10
_MAX_CHARACTERS: Final = 255


class AuditSpool:
    """The file of the events that were not fired yet."""

    def __init__(self, root: Path) -> None:
        self._path = root / "audit.jsonl"
        self._old_path = root / "deeds.jsonl"
        """Events of version 0.1 that were not fired, with other field names."""

    def append(self, event: AuditEvent) -> None:
        """Append an event. An error is only logged, because the act has happened."""
        try:
            with locks.locked(self._path), self._path.open("ab") as file:
                if file.tell() > _MAX_BYTES:
                    log.warning("%s is full: no watcher has read it. An event is lost for the audit.", self._path)
                    return
                file.write(msgspec.json.encode(event) + b"\n")
        except OSError as err:
            log.warning("an audit event could not be written to %s: %s", self._path, err.strerror)

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
    """Return the audit event of a call, or None for a verb that changes nothing.

    It has only the parameters that name the VM, and no message of the reply, because URIs may hold passwords.
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
    """Return the user of this process in Salt's form: `sudo_alice` for a user that became root."""
    if sudoer := os.environ.get("SUDO_USER"):
        return f"sudo_{sudoer}"
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return str(os.getuid())


def _word(value: object) -> str:
    # Where a name belongs, a user may have given a URI with a secret in it.
    return shown(str(value or "").encode(errors="replace").decode())[:_MAX_CHARACTERS]
