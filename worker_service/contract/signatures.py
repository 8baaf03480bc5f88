"""The signature under what a worker says through Salt.

Every minion can write to Salt's bus in the name of another one. So a worker signs its replies and events with its own
key, and a master believes only what an enrolled key has signed. The signature is one more field of the signed object,
which readers that do not need it ignore.

This module has the form and the bytes that are signed. Each service brings the cryptography (Ed25519, RFC 8032).
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any, Final

import msgspec

FIELD: Final = "signature"
KEY_PREFIX: Final = "ed25519:"
_KEY_BYTES: Final = 32
_DOMAIN: Final = b"saltern message 1\n"
"""Begins the signed bytes, so that a signature for another purpose is never one of these."""


class Signature(msgspec.Struct, frozen=True, kw_only=True):
    """The field `signature` of a reply or an event.

    `counter` is the number of the event among all events of its worker. In a reply it is the number of the last event
    before the reply was made. `value` is the signature, as base64.
    """

    worker: str
    counter: int
    value: str


def signed_bytes(data: Mapping[str, Any], subject: str, worker: str, counter: int) -> bytes:
    """Return the bytes that a worker signs. `subject`: the tag of an event, or the nonce of the request.

    They are JSON with sorted keys, so they do not depend on the way that `data` took. Raises ValueError, TypeError or
    RecursionError for data that is not plain.
    """
    body = {key: value for key, value in data.items() if key != FIELD}
    return _DOMAIN + msgspec.json.encode([worker, subject, counter, body], order="deterministic")


def key_text(public: bytes) -> str:
    """Return a public key as people compare it: 32 bytes need no shorter fingerprint."""
    return KEY_PREFIX + base64.urlsafe_b64encode(public).decode().rstrip("=")


def key_bytes(text: str) -> bytes:
    """Return the public key of such a text. Raises ValueError."""
    encoded = text.removeprefix(KEY_PREFIX)
    try:
        public = base64.b64decode(f"{encoded}=", altchars=b"-_", validate=True)
    except ValueError:
        public = b""
    if len(public) != _KEY_BYTES or key_text(public) != text:
        raise ValueError(f"a worker's key is {KEY_PREFIX} and 43 letters, digits, - and _, as `saltern-worker` prints")
    return public
