"""The identity of a worker: the key with which it signs what it says, and the numbers of its events.

The key is made at its first use and stays in the data root. A worker with another data root is another worker, which an
administrator has to enroll again.
"""

from __future__ import annotations

import base64
import time
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec

from worker_service.contract.signatures import FIELD, Signature, key_text, signed_bytes
from worker_service.core.errors import BadRequest
from worker_service.fs import atomic_files, locks

# cryptography is imported where it is used: helpers and short commands do without it.
if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

_RUN_BITS: Final = 32
"""The upper bits of a number count the starts of the watcher, the lower ones its events."""


class Identity:
    """The identity in a data root."""

    def __init__(self, root: Path) -> None:
        self._key_path = root / "identity.pem"
        self._counter_path = root / "events.counter"

    @property
    def fingerprint(self) -> str:
        """Return the public key, as administrators compare it."""
        return key_text(self._key.public_key().public_bytes_raw())

    def sign(self, data: Mapping[str, Any], subject: str, worker: str, counter: int) -> dict[str, Any]:
        """Return the data with its signature. For `subject` see `signed_bytes`; `worker` is the minion id."""
        value = base64.b64encode(self._key.sign(signed_bytes(data, subject, worker, counter))).decode()
        signature = Signature(worker=worker, counter=counter, value=value)
        return {**data, FIELD: msgspec.to_builtins(signature)}

    def last_event(self) -> int:
        """Return the number of the last event."""
        with locks.locked(self._counter_path):
            return int(self._counter_path.read_bytes() or b"0")

    def first_event(self) -> int:
        """Return the number before the first event of a watcher that starts. All later ones are greater.

        The time is part of it, so that numbers grow even if the file is lost.
        """
        run = max(self.last_event() >> _RUN_BITS, int(time.time())) + 1
        atomic_files.write(self._counter_path, b"%d" % (run << _RUN_BITS))
        return run << _RUN_BITS

    def next_event(self) -> int:
        """Return the number of the next event. Only the watcher calls this."""
        with locks.locked(self._counter_path):
            number = int(self._counter_path.read_bytes() or b"0") + 1
            with self._counter_path.open("r+b") as file:  # not fsynced: after a crash of the host a new run begins
                file.write(b"%d" % number)
        return number

    @cached_property
    def _key(self) -> Ed25519PrivateKey:
        from cryptography.hazmat.primitives import serialization  # noqa: PLC0415
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey  # noqa: PLC0415

        with locks.locked(self._key_path.with_suffix(".lock")):
            try:
                pem = self._key_path.read_bytes()
            except FileNotFoundError:
                pem = _new_key()
                atomic_files.write(self._key_path, pem)
        try:
            key = serialization.load_pem_private_key(pem, None)
        except ValueError:
            key = None
        if not isinstance(key, Ed25519PrivateKey):
            raise BadRequest(
                f"{self._key_path} is no Ed25519 key. Restore it, or remove it and enroll this worker again "
                "(on the master: saltern workers enroll)."
            )
        return key


def _new_key() -> bytes:
    from cryptography.hazmat.primitives import serialization  # noqa: PLC0415
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey  # noqa: PLC0415

    return Ed25519PrivateKey.generate().private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
