"""`salt:` images, `salt://path?saltenv=base`: files of the Salt master's file server, as the minion gets them.

Salt's own client writes a whole file into the minion's cache before a caller can read it. This source streams the file
and knows its size first. Salt runs in a separate process, and only while it reads, because it would make a helper
three times as big.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import PurePosixPath
from typing import IO, Final
from urllib.parse import parse_qs, unquote

import msgspec

from worker_service.contract import Code
from worker_service.core.errors import BadRequest, Refused, TransferFailed
from worker_service.core.settings import ImagePolicy
from worker_service.transfer import access
from worker_service.transfer.file import CHUNK
from worker_service.transfer.registry import Head
from worker_service.transfer.uri import Uri

_SETTLED_S: Final = 60.0
_CHANGED: Final = 3
_LINE: Final = 4096


class Found(msgspec.Struct, frozen=True):
    """The file server's answer about a file. `changed` in seconds since the epoch."""

    size: int | None
    validator: str
    changed: int


class Salt:
    """Source for `salt:` URIs."""

    def __init__(self, policy: ImagePolicy) -> None:
        self._policy = policy

    def check(self, uri: Uri) -> None:
        """Refuse files outside the folders for images, such as states and pillars."""
        path, _saltenv = _path_and_env(uri)
        if access.is_in_salt_roots(self._policy, str(path)):
            return
        allowed = ", ".join(access.reachable(self._policy.salt_roots, self._policy.owner)) or "none yet"
        raise Refused(
            f"{uri} lies outside the folders of Salt's file server that images are read from ({allowed}). "
            "Choose another place, or add its folder to images.salt_roots in the worker's settings.",
            code=Code.POLICY,
        )

    def head(self, uri: Uri) -> Head:
        """Return size and times, or Salt's digest if its file server does not give them."""
        with self._reader(uri, "-") as (found, _pipe):
            # Times are in seconds: a file that has just changed may change again within the same second.
            return Head(found.size, found.validator, resumable=time.time() - found.changed > _SETTLED_S)

    def read(self, uri: Uri, offset: int, head: Head) -> Iterator[bytes]:
        """Yield the bytes of the file that `head` described."""
        with self._reader(uri, str(offset)) as (found, pipe):
            if found.validator != head.validator:
                raise TransferFailed(f"{uri} changed between two requests. The worker fetches it again.")
            while chunk := pipe.read(CHUNK):
                yield chunk

    @contextmanager
    def _reader(self, uri: Uri, offset: str) -> Iterator[tuple[Found, IO[bytes]]]:
        self.check(uri)
        path, saltenv = _path_and_env(uri)
        module = "worker_service.transfer.salt_reader"
        argv = [sys.executable, "-m", module, str(self._policy.minion_config), str(path), saltenv, offset]
        with (
            tempfile.TemporaryFile() as errors,
            subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors) as process,
        ):
            assert process.stdout is not None  # noqa: S101 - PIPE was asked for
            try:
                first = process.stdout.readline(_LINE)
                if first.strip() == b"null":
                    raise TransferFailed(f"{uri} is not on Salt's file server. Check path and saltenv.", retry=False)
                if first:
                    yield msgspec.json.decode(first, type=Found), process.stdout
                process.communicate()
            except BaseException:
                process.kill()
                raise
            errors.seek(0)
            lines = errors.read().decode(errors="replace").strip().splitlines() or ["no message"]
        if process.returncode == _CHANGED:
            raise TransferFailed(f"{uri} changed while it was read. The worker tries again.")
        if process.returncode != 0 or not first:
            raise TransferFailed(
                f"{uri} broke off: {lines[-1][:500]}. Check the Salt master and the minion's settings."
            )


def _path_and_env(uri: Uri) -> tuple[PurePosixPath, str]:
    """Return the path on the file server, and its environment."""
    path = PurePosixPath(unquote(uri.netloc) + uri.path)
    options = parse_qs(uri.query, keep_blank_values=True)
    saltenv = options.pop("saltenv", ["base"])
    if options or len(saltenv) != 1 or not saltenv[0] or path.is_absolute() or {"..", ""} & set(path.parts):
        raise BadRequest(f"{uri} is not understood. Write it like salt://images/debian.qcow2?saltenv=base.")
    return path, saltenv[0]
