"""Reads one file from Salt's file server and writes it to its standard output: a process of its own, since Salt is big.

    python -m worker_service.transfer.salt_reader MINION_CONFIG PATH SALTENV OFFSET

The first line is JSON, `salt.Found`; OFFSET `-` ends it there. The bytes follow, piece by piece as the master serves
them, never as a file in the minion's cache. Exit codes: 0 whole, 3 changed while it was read, 1 anything else.
"""

from __future__ import annotations

import logging
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import suppress
from typing import Any, Final

import msgspec

from worker_service.transfer.salt import Found

CHANGED: Final = 3
_CONNECT_S: Final = 10
_ST_SIZE, _ST_MTIME, _ST_CTIME, _ST_INO = 6, 8, 9, 1


def client(config: str) -> Any:
    """The minion's own file client; for a minion with a master, one that talks to the first master that answers."""
    import salt.config  # noqa: PLC0415 - half a second
    import salt.exceptions  # noqa: PLC0415
    import salt.fileclient  # noqa: PLC0415

    opts = salt.config.minion_config(config)
    if opts.get("file_client") == "local":
        return salt.fileclient.get_file_client(opts)
    import salt.minion  # noqa: PLC0415 - much, and not needed for local files

    masters = opts["master"] if isinstance(opts["master"], list) else [opts["master"]]
    # A name that is not known now is no reason to wait for ever, as a minion does: another try is the helper's.
    opts["retry_dns"] = 0
    for master in masters[:-1]:
        with suppress(OSError, salt.exceptions.SaltClientError):
            return _talking(salt, {**opts, "master": master})
    return _talking(salt, {**opts, "master": masters[-1]})


def _talking(salt: Any, opts: dict[str, Any]) -> Any:
    opts.update(salt.minion.resolve_dns(opts, fallback=False))
    # Salt's own client connects when it is first used, and then waits for minutes for a master that is away.
    host, _, port = opts["master_uri"].removeprefix("tcp://").rpartition(":")
    socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_S).close()
    return salt.fileclient.get_file_client(opts)


def found(files: Any, path: str, saltenv: str) -> Found | None:
    """What the file server says of a file. Its hash is asked for only where it tells no times: it reads all of it."""
    answer = files.channel.send({"cmd": "_file_find", "path": path, "saltenv": saltenv})
    if not isinstance(answer, dict) or not answer.get("path"):
        return None
    if stat := answer.get("stat"):
        changed = max(stat[_ST_MTIME], stat[_ST_CTIME])
        return Found(stat[_ST_SIZE], f"{stat[_ST_INO]}-{stat[_ST_SIZE]}-{stat[_ST_MTIME]}-{stat[_ST_CTIME]}", changed)
    digest = files.hash_file(f"salt://{path}", saltenv)
    return Found(None, f"{digest['hash_type']}:{digest['hsum']}", 0)


def pieces(files: Any, path: str, saltenv: str, offset: int) -> Iterator[bytes]:
    """The bytes from an offset on."""
    from salt.fileclient import decode_dict_keys_to_str  # noqa: PLC0415 - see above

    while True:
        load = {"cmd": "_serve_file", "path": path, "saltenv": saltenv, "loc": offset}
        data = decode_dict_keys_to_str(files.channel.send(load, raw=True))["data"]
        if not data:
            return
        offset += len(data)
        yield data.encode() if isinstance(data, str) else data


def main(config: str, path: str, saltenv: str, offset: str) -> int:
    """Serve what the command line asks for."""
    logging.basicConfig(level=logging.ERROR)
    out = os.dup(1)
    os.dup2(2, 1)  # whatever Salt prints is not the file
    with os.fdopen(out, "wb", buffering=0) as pipe, client(config) as files:
        seen = found(files, path, saltenv)
        pipe.write(msgspec.json.encode(seen) + b"\n")
        if seen is None or offset == "-":
            return 0
        for piece in pieces(files, path, saltenv, int(offset)):
            left = memoryview(piece)
            while left:
                left = left[pipe.write(left) :]
        return 0 if found(files, path, saltenv) == seen else CHANGED


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
