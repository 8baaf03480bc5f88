"""Sign requests to S3. Source: AWS Signature Version 4 in its variant for S3 (the path is encoded once)."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping
from datetime import datetime
from typing import Final

import msgspec

UNSIGNED: Final = "UNSIGNED-PAYLOAD"
EMPTY: Final = hashlib.sha256(b"").hexdigest()
_ALGORITHM: Final = "AWS4-HMAC-SHA256"


class Key(msgspec.Struct, frozen=True):
    """The key that signs, and its region."""

    access_key_id: str
    secret: str
    region: str

    def __repr__(self) -> str:
        """Return the key without its secret."""
        return f"Key({self.access_key_id})"


class Request(msgspec.Struct, frozen=True):
    """The signed parts of a request. `path` and `query` as they are sent: percent-encoded, the query sorted by name.

    `payload` is the sha256 of the body in hex.
    """

    method: str
    host: str
    path: str
    query: str = ""
    payload: str = EMPTY


def signed(request: Request, key: Key, now: datetime, extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the headers that authorize a request. `extra`: other `x-amz-` headers, which must be signed too."""
    stamp, day = now.strftime("%Y%m%dT%H%M%SZ"), now.strftime("%Y%m%d")
    headers = {"x-amz-content-sha256": request.payload, "x-amz-date": stamp, **(extra or {})}
    covered = dict(sorted({"host": request.host, **headers}.items()))
    names = ";".join(covered)
    lines = "".join(f"{name}:{' '.join(value.split())}\n" for name, value in covered.items())
    canonical = f"{request.method}\n{request.path}\n{request.query}\n{lines}\n{names}\n{request.payload}"
    scope = f"{day}/{key.region}/s3/aws4_request"
    to_sign = "\n".join((_ALGORITHM, stamp, scope, hashlib.sha256(canonical.encode()).hexdigest()))
    signer = f"AWS4{key.secret}".encode()
    for part in (day, key.region, "s3", "aws4_request"):
        signer = hmac.digest(signer, part.encode(), "sha256")
    signature = hmac.digest(signer, to_sign.encode(), "sha256").hex()
    credential = f"{key.access_key_id}/{scope}"
    return {
        **headers,
        "Authorization": f"{_ALGORITHM} Credential={credential}, SignedHeaders={names}, Signature={signature}",
    }
