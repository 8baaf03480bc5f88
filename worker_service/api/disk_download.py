"""Saved disks over HTTP, to the holder of a ticket that came through Salt: a master, for one of its users."""

from __future__ import annotations

import asyncio
import base64
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from typing import Final

from fastapi import Request
from fastapi.responses import Response

from http_bounds.stream import LengthStream
from worker_service.api.access import Audit
from worker_service.api.responses import failure
from worker_service.console.tickets import INVALID
from worker_service.contract import Code
from worker_service.core.errors import Refused, SalternError
from worker_service.operations import saved_disk, screen
from worker_service.operations.saved_disk import SavedDisk
from worker_service.state.context import WorkerContext

_MOST: Final = 8
"""Downloads at the same time: each one takes a thread while it reads."""
_SCHEME: Final = "Ticket "
_RANGE: Final = re.compile(r"bytes=([0-9]{1,18})-")


class DiskDownloads:
    """The downloads of one worker's saved disks."""

    def __init__(self, worker: WorkerContext) -> None:
        self._worker = worker
        self._open = 0

    async def serve(self, request: Request, uuid: str, disk: str) -> Response:
        """Answer `GET /vmachines/<uuid>/disks/<disk>`: the bytes of the disk, or those behind an offset."""
        audit = Audit(request, "download")
        audit.vm = uuid
        self._open += 1
        try:
            audit.by, found = await asyncio.to_thread(self._admit, request.headers.get("authorization", ""), uuid, disk)
            begins = _offset(request, found)
            chunks = await asyncio.to_thread(_Chunks, found.read(begins))
        except SalternError as err:
            self._open -= 1
            audit.write(err.http_status, err.code)
            return failure(str(err), err.code)
        except BaseException:
            self._open -= 1
            raise
        status = 206 if begins else 200
        audit.write(status, None)
        digest = base64.b64encode(bytes.fromhex(found.sha256)).decode()
        headers = {"ETag": f'"{found.sha256}"', "Repr-Digest": f"sha-256=:{digest}:"}
        if begins:
            headers["Content-Range"] = f"bytes {begins}-{found.size - 1}/{found.size}"
        return LengthStream(chunks.each(), found.size - begins, status_code=status, headers=headers, at_end=self._end)

    def _admit(self, authorization: str, uuid: str, disk: str) -> tuple[str, SavedDisk]:
        if self._open > _MOST:
            raise Refused(f"{_MOST} disks are being downloaded, which is the limit. Try again.", code=Code.TOO_MANY)
        if not authorization.startswith(_SCHEME) or not disk:
            raise Refused(INVALID, code=Code.POLICY)
        ticket = screen.tickets(self._worker).redeem(authorization.removeprefix(_SCHEME), uuid, disk)
        return ticket.user, saved_disk.find(self._worker, self._worker.store.read(uuid), disk)

    async def _end(self) -> None:
        self._open -= 1


def _offset(request: Request, found: SavedDisk) -> int:
    """Return where the answer begins: behind what the caller has of the same bytes, if the source can do that."""
    given = _RANGE.fullmatch(request.headers.get("range", ""))
    same = request.headers.get("if-range") == f'"{found.sha256}"'
    offset = int(given[1]) if given and same and found.resumable else 0
    return offset if offset < found.size else 0


class _Chunks:
    """The bytes of a disk, read in threads. The first ones are read at once, so that a refusal is an answer."""

    def __init__(self, source: Iterator[bytes]) -> None:
        self._source = source
        self._first = next(source, b"")

    async def each(self) -> AsyncIterator[bytes]:
        chunk = self._first
        try:
            while chunk:
                yield chunk
                chunk = await asyncio.to_thread(next, self._source, b"")
        finally:
            close = getattr(self._source, "close", None)
            with suppress(ValueError):  # a thread of a caller that is gone still reads: it ends by itself
                await asyncio.to_thread(close or int)
