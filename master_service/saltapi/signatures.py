"""Checks the signature of a worker under a reply or an event. Pure.

Source of the form: `worker_service.contract.signatures`. A signature shows who said something. Whether it is fresh is
decided by its subject (the nonce of our request) or by its counter (`runtime.worker_trust`).
"""

from __future__ import annotations

import base64
import binascii
from enum import StrEnum

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from worker_service.contract.signatures import FIELD, Signature, key_bytes, signed_bytes


class Doubt(StrEnum):
    """Why a message is not believed. The words follow "a message in the name of WORKER"."""

    UNSIGNED = "has no signature"
    NOT_ENROLLED = "comes from a worker that is not enrolled"
    FORGED = "is not signed by the key of that worker"
    REPLAYED = "was said before, or is older than what was said before"
    EARLY = "came before the first answer of that worker"
    OTHER_SENDER = "was sent by another minion"


class NotBelieved(Exception):
    """A message that shows nothing about its worker."""

    def __init__(self, doubt: Doubt) -> None:
        super().__init__(doubt.value)
        self.doubt = doubt


def verify(data: object, subject: str, worker: str, key: str) -> Signature:
    """Return the signature of `worker` under these data. Raises NotBelieved.

    `key`: the key of the worker as text, or "" if it is not enrolled. `subject`: see `signed_bytes`.
    """
    if not isinstance(data, dict) or FIELD not in data:
        raise NotBelieved(Doubt.UNSIGNED)
    if not key:
        raise NotBelieved(Doubt.NOT_ENROLLED)
    try:
        signature = msgspec.convert(data[FIELD], Signature)
        message = signed_bytes(data, subject, worker, signature.counter)
        value = base64.b64decode(signature.value, validate=True)
        Ed25519PublicKey.from_public_bytes(key_bytes(key)).verify(value, message)
    except (
        msgspec.MsgspecError, binascii.Error, InvalidSignature, ValueError, TypeError, RecursionError, OverflowError
    ) as err:  # fmt: skip
        raise NotBelieved(Doubt.FORGED) from err
    if signature.worker != worker or signature.counter < 0:
        raise NotBelieved(Doubt.FORGED)
    return signature
