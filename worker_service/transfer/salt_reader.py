"""Read one file from Salt's file server and write it to standard output, as a separate process because Salt is big.

    python -m worker_service.transfer.salt_reader MINION_CONFIG PATH SALTENV OFFSET

The first line is JSON, `salt.Found`, and with OFFSET `-` the only one. The bytes follow in the pieces that the master
sends; no file is made in the minion's cache. Exit codes: 0 complete, 3 changed while it was read, 1 any other error.
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
    """Return the minion's file client. With several masters it uses the first one that answers."""
    import salt.config  # noqa: PLC0415 - takes half a second
    import salt.exceptions  # noqa: PLC0415
    import salt.fileclient  # noqa: PLC0415

    opts = salt.config.minion_config(config)
    if opts.get("file_client") == "local":
        return salt.fileclient.get_file_client(opts)
    import salt.minion  # noqa: PLC0415 - slow, and not needed for local files

    masters = opts["master"] if isinstance(opts["master"], list) else [opts["master"]]
    # A minion retries an unknown name for ever. Here the helper makes the next try.
    opts["retry_dns"] = 0
    for master in masters[:-1]:
        with suppress(OSError, salt.exceptions.SaltClientError):
            return _connected(salt, {**opts, "master": master})
    return _connected(salt, {**opts, "master": masters[-1]})


def _connected(salt: Any, opts: dict[str, Any]) -> Any:
    opts.update(salt.minion.resolve_dns(opts, fallback=False))
    # Salt's own client connects at its first use, and then waits minutes for a master that is away.
    host, _, port = opts["master_uri"].removeprefix("tcp://").rpartition(":")
    socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_S).close()
    return salt.fileclient.get_file_client(opts)


def found(files: Any, path: str, saltenv: str) -> Found | None:
    """Return the file server's answer about a file. The slow hash is requested only if the answer has no times."""
    answer = files.channel.send({"cmd": "_file_find", "path": path, "saltenv": saltenv})
    if not isinstance(answer, dict) or not answer.get("path"):
        return None
    if stat := answer.get("stat"):
        changed = max(stat[_ST_MTIME], stat[_ST_CTIME])
        return Found(stat[_ST_SIZE], f"{stat[_ST_INO]}-{stat[_ST_SIZE]}-{stat[_ST_MTIME]}-{stat[_ST_CTIME]}", changed)
    digest = files.hash_file(f"salt://{path}", saltenv)
    return Found(None, f"{digest['hash_type']}:{digest['hsum']}", 0)


def pieces(files: Any, path: str, saltenv: str, offset: int) -> Iterator[bytes]:
    """Yield the bytes from an offset on."""
    from salt.fileclient import decode_dict_keys_to_str  # noqa: PLC0415 - see above

    while True:
        load = {"cmd": "_serve_file", "path": path, "saltenv": saltenv, "loc": offset}
        data = decode_dict_keys_to_str(files.channel.send(load, raw=True))["data"]
        if not data:
            return
        offset += len(data)
        yield data.encode() if isinstance(data, str) else data


def main(config: str, path: str, saltenv: str, offset: str) -> int:
    """Write the file that the command line names. Returns the exit code."""
    logging.basicConfig(level=logging.ERROR)
    out = os.dup(1)
    os.dup2(2, 1)  # Salt may print, and that must not get into the file
    with os.fdopen(out, "wb", buffering=0) as pipe, client(config) as files:
        before = found(files, path, saltenv)
        pipe.write(msgspec.json.encode(before) + b"\n")
        if before is None or offset == "-":
            return 0
        for piece in pieces(files, path, saltenv, int(offset)):
            left = memoryview(piece)
            while left:
                left = left[pipe.write(left) :]
        return 0 if found(files, path, saltenv) == before else CHANGED


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
