"""JSON over HTTP to the parts of a stack, with the standard library only."""

from __future__ import annotations

import http.client
import json
import socket
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

_DIRECT: Final = urllib.request.build_opener(urllib.request.ProxyHandler({}))
"""Ignores proxies in the environment, because every part listens on loopback."""


@dataclass(frozen=True)
class Reply:
    """An answer with any status. `body` is the decoded JSON, or the text if it is not JSON."""

    status: int
    body: Any

    @property
    def ok(self) -> bool:
        """Return whether the status means success."""
        return self.status < 400


def call(
    method: str,
    url: str,
    *,
    body: object = None,
    headers: Mapping[str, str] | None = None,
    timeout_s: float = 10.0,
) -> Reply:
    """Send one request with `body` as JSON. Raises OSError if no answer comes in time."""
    sent = {"Accept": "application/json", **(headers or {})}
    data = None
    if body is not None:
        data = json.dumps(body).encode()
        sent["Content-Type"] = "application/json"
    request = urllib.request.Request(url, data=data, headers=sent, method=method)  # noqa: S310  -- loopback only
    try:
        with _DIRECT.open(request, timeout=timeout_s) as answer:
            return Reply(answer.status, _decode(answer.read()))
    except urllib.error.HTTPError as refusal:
        with refusal:
            return Reply(refusal.code, _decode(refusal.read()))


def call_unix(path: Path, method: str, target: str, *, body: object = None, timeout_s: float = 10.0) -> Reply:
    """Send one request to a program that listens on a unix socket. Raises OSError if no answer comes in time."""
    connection = http.client.HTTPConnection("localhost", timeout=timeout_s)
    connection.sock = socket.socket(socket.AF_UNIX)
    connection.sock.settimeout(timeout_s)
    try:
        connection.sock.connect(str(path))
        connection.request(method, target, None if body is None else json.dumps(body))
        answer = connection.getresponse()
        return Reply(answer.status, _decode(answer.read()))
    except http.client.HTTPException as err:
        raise OSError(f"no answer: {err!r}") from err
    finally:
        connection.close()


def bearer(token: Path) -> dict[str, str]:
    """Return the header with the token in a file."""
    return {"Authorization": f"Bearer {token.read_text().strip()}"}


def _decode(raw: bytes) -> Any:
    try:
        return json.loads(raw)
    except ValueError:
        return raw.decode(errors="replace")
