"""`http:` and `https:` targets: a plain PUT, which is then read back.

HTTP has no rename (MOVE belongs to WebDAV), so `stage` writes nothing and `commit` sends the bytes under the final
name. Each PUT states its Content-Length, its digest (RFC 9530), and a condition on the file that it may replace
(RFC 9110, 13). A server must not keep a body that is shorter than its Content-Length (RFC 9112, 8). The disk counts as
saved only when its bytes have come back with the right digest; until then it stays on the worker. If a server does
keep a half, the worker removes it: a file that equals the beginning of this disk belongs to no other VM.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

import httpx2

from worker_service.contract import Code
from worker_service.core.errors import Refused, SalternError, TransferFailed
from worker_service.transfer import credentials
from worker_service.transfer.file import CHUNK
from worker_service.transfer.http import Changed, Http, Missing
from worker_service.transfer.registry import MANIFEST_BYTES, Head, Report
from worker_service.transfer.uri import Uri, beside, manifest_place, parse, place

_UNKNOWN: Final = "unknown"
"""The validator of a file for which the server sends none."""

_MAY_BE_OTHERS: Final = "The file there now may belong to another user, and was left."


class Put(Http):
    """Target for `http:` and `https:` URIs. Addresses are checked and pinned as for fetching."""

    def check(self, uri: Uri, *, write: bool = False) -> None:
        """Refuse hosts that the site does not save to. Refuse passwords, because the URI is shown to users."""
        super().check(uri)
        if not write:
            return
        url = self._url(uri)
        found = self._store(url)
        if found and found.store and (found.store.save or found.folder is not None):
            if not found.store.save:
                raise credentials.not_saved_to(uri)
        elif not {url.host, url.netloc.decode()} & set(self._policy.save_hosts):
            allowed = ", ".join(self._policy.save_hosts) or "none yet"
            raise Refused(
                f"{uri} is on a host that disks are not saved to ({allowed}). "
                "Choose another place, or add its host to images.save_hosts in the worker's settings.",
                code=Code.POLICY,
            )

    def observe(self, uri: Uri) -> str | None:
        """Return the ETag, or date and size, of the file at the target, or None."""
        there = self._there(place(uri))
        return None if there is None else there.validator or _UNKNOWN

    def stage(self, uri: Uri, source: Path, sha256: str, key: str, report: Report) -> str:  # noqa: ARG002
        """Check that the server answers. `commit` sends the bytes."""
        self.check(place(uri), write=True)
        self.observe(uri)
        report(0, source.stat().st_size)
        return str(source)

    def commit(self, uri: Uri, token: str, sha256: str, observed: str | None, key: str, report: Report) -> str:  # noqa: PLR0913, PLR0917
        """Send and read back. A target that has changed since the VM started stays, and a free name is used."""
        uri, source = place(uri), Path(token)
        there = self._there(uri)
        if there is not None and there.size in (None, source.stat().st_size) and self._digest(uri, there) == sha256:
            return uri.text  # after a crash between the PUT and the note in the record
        condition = {"If-None-Match": "*"}
        if there is not None:
            known = there.validator is not None and there.validator == observed
            if not (known or self._is_half(uri, source, there)):
                return self.commit(beside(uri, key, sha256), token, sha256, None, key, report)
            condition = _unchanged(there)
        digest = base64.b64encode(bytes.fromhex(sha256)).decode()
        headers = {
            "Content-Type": "application/octet-stream",
            "Content-Length": str(source.stat().st_size),
            "Repr-Digest": f"sha-256=:{digest}:",
            **condition,
        }
        try:
            etag = self._put(uri, headers, _sent(source, report))
        except SalternError as err:
            raise _with(err, self._clear(uri, source)) from err
        self._verify(uri, sha256, etag, source)
        return uri.text

    def manifest(self, uri: Uri) -> bytes | None:
        """Return the file that has the name of the manifest, or None."""
        data = b""
        try:
            for chunk in self.read(manifest_place(uri), 0, Head(None, None)):
                data += chunk
                if len(data) >= MANIFEST_BYTES:
                    break
        except Missing:
            return None
        return data[:MANIFEST_BYTES]

    def note(self, saved: str, manifest: bytes) -> None:
        """PUT `<name>.manifest.json` beside a saved image."""
        uri = manifest_place(parse(saved))
        headers = {"Content-Type": "application/json", "Content-Length": str(len(manifest))}
        self._put(uri, headers, iter((manifest,)))

    def discard(self, uri: Uri, source: Path, key: str) -> None:  # noqa: ARG002
        """Remove the half that a server kept of an unfinished PUT. An empty file stays: it may be from another user."""
        uri = place(uri)
        if source.exists() and (there := self._there(uri)) and there.size and self._is_half(uri, source, there):
            self._send("DELETE", uri, _unchanged(there), None)

    def _there(self, uri: Uri) -> Head | None:
        try:
            return self.head(uri)
        except Missing:
            return None

    def _put(self, uri: Uri, headers: dict[str, str], body: Iterator[bytes]) -> str | None:
        """Send a file, and return its ETag if the server states one."""
        answer = self._send("PUT", uri, headers, body)
        if answer.is_redirect:
            raise Refused(
                f"{uri} redirects, and a PUT follows no redirect. Name its last address.",
                code=Code.POLICY,
            )
        if answer.status_code == httpx2.codes.PRECONDITION_FAILED:
            raise Changed(f"{uri} changed during the upload. The worker tries again.")
        self._require_success(uri, answer)
        return answer.headers.get("etag")

    def _verify(self, uri: Uri, sha256: str, etag: str | None, source: Path) -> None:
        """Read back. Wrong bytes are removed if they are surely from this PUT: the next try can use the name."""
        found = self._digest(uri, Head(None, None))
        if found == sha256:
            return
        err = TransferFailed(f"{uri} reads back as sha256 {found}, not {sha256}. Check that server.")
        if etag and not etag.startswith("W/"):
            raise _with(err, self._delete(uri, Head(None, etag, resumable=True)))
        raise _with(err, self._clear(uri, source) or _MAY_BE_OTHERS)

    def _clear(self, uri: Uri, source: Path) -> str | None:
        """Remove the half of a disk that a PUT left; return what happened to it, or None if there is no half."""
        with suppress(SalternError):  # the server may be away; the next try and `discard` look again
            there = self._there(uri)
            if there and self._is_half(uri, source, there):
                return self._delete(uri, there)
        return None

    def _delete(self, uri: Uri, there: Head) -> str:
        try:
            answer = self._send("DELETE", uri, _unchanged(there), None)
        except SalternError as err:
            return f"It could not be removed ({err})."
        if answer.status_code == httpx2.codes.PRECONDITION_FAILED:
            return _MAY_BE_OTHERS
        gone = answer.is_success or answer.status_code in (httpx2.codes.NOT_FOUND, httpx2.codes.GONE)
        return "It was removed." if gone else f"The server did not remove it ({answer.status_code}). Remove it by hand."

    def _is_half(self, uri: Uri, source: Path, there: Head) -> bool:
        """Return whether the file there is an incomplete beginning of this disk."""
        size, done = source.stat().st_size, 0
        if there.size is not None and there.size >= size:
            return False
        with source.open("rb") as disk:
            for chunk in self.read(uri, 0, there):
                if disk.read(len(chunk)) != chunk:
                    return False
                done += len(chunk)
        return done < size

    def _digest(self, uri: Uri, head: Head) -> str:
        digest = hashlib.sha256()
        for chunk in self.read(uri, 0, head):
            digest.update(chunk)
        return digest.hexdigest()


def _unchanged(there: Head) -> dict[str, str]:
    """Return the condition that the file is unchanged. A date or a weak ETag cannot express it."""
    return {"If-Match": there.validator} if there.resumable and there.validator else {}


def _with(err: SalternError, more: str | None) -> SalternError:
    return type(err)(f"{err} {more}", code=err.code, retry=err.retry, wait_s=err.wait_s) if more else err


def _sent(source: Path, report: Report) -> Iterator[bytes]:
    size, done = source.stat().st_size, 0
    with source.open("rb") as file:
        while chunk := file.read(CHUNK):
            yield chunk
            done += len(chunk)
            report(done, size)
