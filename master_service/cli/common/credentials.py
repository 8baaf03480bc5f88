"""Which token goes to which master: a token is sent only to the master that it belongs to.

A token that the user names (`--token`, `--token-file`, or their variables) goes to any URL: that is the user's choice.
The token of a login goes to the URL of that login. The administrator's token in a default file goes to the master of
this host: to a loopback address whose listening process belongs to root or to the owner of the token.
"""

from __future__ import annotations

import ipaddress
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import quote

import httpx2

from master_service.cli.common.client import Failure
from worker_service.contract.public_address import is_loopback

DEFAULT_FILES: Final = (Path("var/admin.token"), Path("/etc/saltern/admin.token"))
"""Files with the token of this host's master: of a development stack in this folder, then of an installed one."""
_SOCKETS: Final = Path("/proc/net")
_LISTENING: Final = "0A"
"""The state of a socket in `tcp` and `tcp6` of proc(5)."""
_PORTS: Final = {"http": 80, "https": 443}


@dataclass(frozen=True, kw_only=True, slots=True)
class Credential:
    """The token for a master, or an empty one and why a token that was found is not sent there."""

    token: str = ""
    withheld: str = ""


def session_file(url: str) -> Path:
    """Return the path of the token that `saltern login` stores for this master."""
    home = os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config"
    return Path(home) / "saltern" / f"{quote(url.rstrip('/'), safe='')}.token"


def find_token(token: str | None, token_file: Path | None, url: str) -> Credential:
    """Return the token that the user names, or the one of a login at this URL, or that of this host's master.

    Raises Failure if a named file cannot be read.
    """
    if token:
        return Credential(token=token.strip())
    try:
        if token_file is not None:
            return Credential(token=token_file.read_text().strip())
    except OSError as err:
        raise Failure(f"Cannot read the token from {token_file}: {err.strerror}. Check --token-file.") from err
    try:
        return Credential(token=session_file(url).read_text().strip())
    except OSError:
        pass
    withheld = ""
    for path in DEFAULT_FILES:
        if (owner := _owner(path)) is None:
            continue
        if why := foreign(url, owner):
            withheld = f"The token in {path} was not sent: it is for the master of this host, and {why}."
            continue
        try:
            return Credential(token=path.read_text().strip())
        except OSError:
            continue
    return Credential(withheld=withheld)


def foreign(url: str, owner: int) -> str:
    """Return why the master at a URL is not the one of this host whose token belongs to `owner` (uid), or "".

    Any user of this host may listen on a port of loopback where no master runs.
    """
    try:
        parts = httpx2.URL(url)  # as the client reads it
    except httpx2.InvalidURL:
        return "this is no URL"
    if not is_loopback(parts.host.strip("[]")):
        return f"{parts.host or url} is another host"
    port = parts.port or _PORTS.get(parts.scheme, 0)
    uids = set(listeners(port))
    if not uids:
        return f"no process of this host listens on port {port}"
    others = uids - {0, owner}
    return f"the process on port {port} belongs to the user with uid {min(others)}" if others else ""


def listeners(port: int) -> Iterator[int]:
    """Yield the uid of each socket that accepts connections from this host on a port. Source: proc(5)."""
    for name in ("tcp", "tcp6"):
        try:
            lines = (_SOCKETS / name).read_text().splitlines()[1:]
        except OSError:
            continue
        for fields in map(str.split, lines):
            address, _, in_hex = fields[1].partition(":")
            if fields[3] == _LISTENING and int(in_hex, 16) == port and _is_reached_from_here(address):
                yield int(fields[7])


def _is_reached_from_here(in_hex: str) -> bool:
    """Return whether a socket with this address (words of 32 bits in the host's order) accepts from loopback."""
    words = [int(in_hex[start : start + 8], 16) for start in range(0, len(in_hex), 8)]
    packed = b"".join(word.to_bytes(4, "little") for word in words)
    address = ipaddress.ip_address(packed)
    if isinstance(address, ipaddress.IPv6Address):
        address = address.ipv4_mapped or address
    return address.is_loopback or address.is_unspecified


def _owner(path: Path) -> int | None:
    """Return the owner (uid) of a default file, or None if it is none, or lies in a folder of somebody else."""
    try:
        found = path.stat()
    except OSError:
        return None
    # In the current folder, any user may have put a file, and its token would choose who the caller is.
    own = path.is_absolute() or found.st_uid in (0, os.geteuid())
    return found.st_uid if own and stat.S_ISREG(found.st_mode) else None
