"""A small image store over HTTP on 127.0.0.1: `python3 -m devstack.file_server PORT IMAGES SAVED`.

`GET /images/NAME` and `GET /saved/NAME` read two folders. `PUT /saved/NAME` writes: a file appears whole or not at all,
and only if the request's condition on the file that it replaces still holds (RFC 9110, 13). For workers that do not
share a file system with the stack.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
import sys
import threading
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Final
from urllib.parse import unquote, urlsplit

_NAME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._~-]{0,200}")
_CHUNK: Final = 1 << 20


def etag_of(path: Path) -> str | None:
    """Return what identifies the present content of a file, or None if there is no file."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return f'"{found.st_ino:x}-{found.st_mtime_ns:x}-{found.st_size:x}"'


def condition_holds(if_match: str | None, if_none_match: str | None, etag: str | None) -> bool:
    """Return whether the conditions of a PUT hold for the file that has this ETag, or for none."""
    if if_none_match == "*" and etag is not None:
        return False
    return if_match is None or (etag is not None and if_match in {"*", etag})


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    folders: Final[dict[str, Path]] = {}
    replacing: Final = threading.Lock()

    def do_GET(self) -> None:
        path = self._path()
        if path is None or not path.is_file():
            self._answer(HTTPStatus.OK if self.path == "/" else HTTPStatus.NOT_FOUND)
            return
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            self._answer(HTTPStatus.OK, size, etag_of(path))
            shutil.copyfileobj(file, self.wfile, _CHUNK)

    def do_PUT(self) -> None:
        path, length = self._path(), self.headers.get("Content-Length", "")
        if path is None or path.parent != self.folders["saved"]:
            self._refuse(HTTPStatus.FORBIDDEN)
        elif not length.isdigit():
            self._refuse(HTTPStatus.LENGTH_REQUIRED)
        elif not self._holds(path):
            self._refuse(HTTPStatus.PRECONDITION_FAILED)
        else:
            self._store(path, int(length))

    def _store(self, path: Path, length: int) -> None:
        part = path.with_name(f".{secrets.token_hex(8)}.part")
        try:
            with part.open("wb") as file:
                while length and (data := self.rfile.read(min(length, _CHUNK))):
                    file.write(data)
                    length -= len(data)
                file.flush()
                os.fsync(file.fileno())
            if length:
                self.close_connection = True  # the sender has gone
                return
            with self.replacing:
                holds = self._holds(path)
                if holds:
                    part.replace(path)
        finally:
            part.unlink(missing_ok=True)
        self._answer(HTTPStatus.CREATED if holds else HTTPStatus.PRECONDITION_FAILED, etag=etag_of(path))

    def _holds(self, path: Path) -> bool:
        return condition_holds(self.headers.get("If-Match"), self.headers.get("If-None-Match"), etag_of(path))

    def _path(self) -> Path | None:
        _, folder, name, *more = [*unquote(urlsplit(self.path).path).split("/"), "", ""]
        known = folder in self.folders and _NAME.fullmatch(name) and not any(more)
        return self.folders[folder] / name if known else None

    def _refuse(self, status: HTTPStatus) -> None:
        self.close_connection = True  # the body was not read
        self._answer(status)

    def _answer(self, status: HTTPStatus, size: int = 0, etag: str | None = None) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(size))
        if etag:
            self.send_header("ETag", etag)
        self.end_headers()


def serve(port: int, images: Path, saved: Path) -> ThreadingHTTPServer:
    """Return the server; it listens, and its caller runs it."""
    _Handler.folders.update(images=images, saved=saved)
    return ThreadingHTTPServer(("127.0.0.1", port), _Handler)


if __name__ == "__main__":
    serve(int(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3])).serve_forever()
