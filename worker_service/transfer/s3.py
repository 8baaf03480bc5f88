"""`s3:` images, `s3://bucket/key`: any store that speaks S3. The settings have the endpoint and the credentials.

S3 is HTTP with signatures, so connections, address checks and resume are those of `http`. A client library would
resolve the endpoint and connect to it by itself, without the check of the address.

A disk is staged as the parts of a multipart upload, which are invisible under the name until the upload is completed.
Each part is sent with its sha256 and confirmed by the store's own digest. Completing is conditional. A note beside the
flattened disk names the upload, so that the next try after a crash aborts it.

A store answers 403 for a missing key to whoever may not list its bucket, and for each key to whoever may only write. A
place that does not say what it holds is saved to under the condition that nothing is there.
"""

from __future__ import annotations

import hashlib
import html
import logging
import re
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Final
from urllib.parse import quote, urlencode

import httpx2
import msgspec

from worker_service.contract import Code
from worker_service.core.errors import Refused, TransferFailed
from worker_service.core.failpoints import failpoint
from worker_service.core.settings import ImagePolicy, S3Store
from worker_service.fs import atomic_files
from worker_service.transfer import credentials, sigv4
from worker_service.transfer.file import CHUNK
from worker_service.transfer.http import Changed, require_success
from worker_service.transfer.http_put import Put
from worker_service.transfer.registry import CannotResume, Head, Report
from worker_service.transfer.uri import Uri, beside, manifest_place, parse, place

log = logging.getLogger("saltern.transfer")

_BUCKET: Final = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
_PART: Final = 32 << 20
_PARTS: Final = 10_000  # the limit of S3
_DIGEST: Final = "x-amz-meta-sha256"
_NO_ANSWER: Final = frozenset({"", "AccessDenied"})
"""Codes of a 403 that do not say what is wrong. The answer to a HEAD has none."""

_ERROR: Final = re.compile(rb"<Error>.*?<Code>([A-Za-z0-9.]{1,80})</Code>", re.DOTALL)


class _Denied(TransferFailed):
    """The store does not say whether there is an object."""

    retry = False


class _Upload(msgspec.Struct, frozen=True):
    """An unfinished multipart upload, as the note beside the flattened disk has it."""

    uri: str
    id: str


class _Staged(msgspec.Struct, frozen=True):
    """The token of `stage`: the upload, the ETags of its parts, and whether the store confirmed all of them."""

    source: str
    upload: _Upload | None = None
    etags: tuple[str, ...] = ()
    confirmed: bool = True


class S3(Put):
    """Source and target for `s3:` URIs."""

    _hops = 0

    def __init__(self, policy: ImagePolicy) -> None:
        super().__init__(policy)
        self._unreadable: set[str] = set()
        """Manifests that the store did not show."""

    def check(self, uri: Uri, *, write: bool = False) -> None:
        """Refuse buckets that the settings do not know, and keys that are no plain path."""
        credentials.refuse_secrets(uri)
        bucket = credentials.store(self._policy, uri, S3Store)
        key = uri.path.removeprefix("/")
        if not _BUCKET.fullmatch(uri.netloc) or not key or {"", ".", ".."} & set(key.split("/")) or uri.query:
            raise Refused(
                f"{uri} is not an object. Write it like s3://bucket/images/debian.qcow2.", code=Code.BAD_REQUEST
            )
        if write and not bucket.save:
            raise credentials.not_saved_to(uri)

    def observe(self, uri: Uri) -> str | None:
        """Return the validator of the object at the target, or None if the store does not show one."""
        with suppress(_Denied):
            return super().observe(uri)
        return None

    def stage(self, uri: Uri, source: Path, sha256: str, key: str, report: Report) -> str:
        """Upload the parts. The store confirms the digest of each one."""
        uri = place(uri)
        self.check(uri, write=True)
        self.discard(uri, source, key)
        # The object exists after a crash between the end of the upload and its note in the record.
        done = self._holds(uri, sha256)
        staged = _Staged(str(source)) if done else self._upload(uri, source, sha256, report)
        return msgspec.json.encode(staged).decode()

    def commit(self, uri: Uri, token: str, sha256: str, observed: str | None, key: str, report: Report) -> str:  # noqa: PLR0913, PLR0917
        """Complete the upload. A target that has changed since the VM started stays, and a free name is used."""
        uri, staged = place(uri), msgspec.json.decode(token, type=_Staged)
        source, there = Path(staged.source), self._holds(uri, sha256)
        if there:
            self.discard(uri, source, key)
            return uri.text
        now = self.observe(uri)
        free = beside(uri, key, sha256)
        again = msgspec.json.encode(_Staged(staged.source)).decode()
        if now is not None and now != observed:
            self.discard(uri, source, key)
            return self.commit(free, again, sha256, None, key, report)
        if staged.upload is None:
            self.discard(uri, source, key)
            staged = self._upload(uri, source, sha256, report)
        condition = {"If-Match": now} if now is not None and now == observed else {"If-None-Match": "*"}
        try:
            self._complete(uri, staged, condition)
        except Changed:
            if there is not None:
                raise
            self.discard(uri, source, key)
            if not _is_free_name(uri, key, sha256):
                return self.commit(free, again, sha256, None, key, report)
            if not staged.confirmed:
                raise _unconfirmed(uri) from None
            return uri.text  # only a try for these bytes uses this name
        failpoint("save.renamed")
        self._require_saved(uri, staged, sha256)
        _note(source).unlink(missing_ok=True)
        return uri.text

    def _require_saved(self, uri: Uri, staged: _Staged, sha256: str) -> None:
        """Raise TransferFailed unless the completed object is right, by its store's word or read back."""
        there = self._holds(uri, sha256)
        if there is False:
            raise TransferFailed(f"{uri} is not there after it was uploaded. Check that store.")
        if there is None and not staged.confirmed:
            raise _unconfirmed(uri)
        if not staged.confirmed:
            self._verify(uri, sha256, self.observe(uri), Path(staged.source))

    def manifest(self, uri: Uri) -> bytes | None:
        """Return the object that has the name of the manifest, or None if the store does not show one."""
        with suppress(_Denied):
            return super().manifest(uri)
        self._unreadable.add(manifest_place(uri).text)
        return None

    def note(self, saved: str, manifest: bytes) -> None:
        """Write `<name>.manifest.json` beside a saved image. An object that the store did not show is not replaced."""
        uri, digest = manifest_place(parse(saved)), hashlib.sha256(manifest).hexdigest()
        headers = {"Content-Type": "application/json", "Content-Length": str(len(manifest))}
        headers["x-amz-content-sha256"] = digest
        condition = {"If-None-Match": "*"} if uri.text in self._unreadable else {}
        try:
            self._put(uri, {**headers, **condition}, iter((manifest,)))
        except Changed:
            self._put(beside(uri, digest, digest), headers, iter((manifest,)))

    def discard(self, uri: Uri, source: Path, key: str) -> None:  # noqa: ARG002
        """Abort the upload of an unfinished try."""
        note = _note(source)
        try:
            old = msgspec.json.decode(note.read_bytes(), type=_Upload)
        except (FileNotFoundError, msgspec.MsgspecError):
            return
        there = parse(old.uri)
        answer = self._send("DELETE", _with_query(there, uploadId=old.id), {}, None)
        if answer.status_code != httpx2.codes.NOT_FOUND:
            try:
                self._require_success(there, answer)
            except _Denied as err:  # otherwise no later try could do better
                log.warning("an unfinished upload stays in the store: %s", err)
        note.unlink(missing_ok=True)

    # Requests

    def _require_reach(self, url: httpx2.URL, uri: Uri) -> None:
        """The object decides, and not the endpoint: see `_url`."""

    def _url(self, uri: Uri) -> httpx2.URL:
        bucket = credentials.store(self._policy, uri, S3Store)
        query = f"?{uri.query}" if uri.query else ""
        return httpx2.URL(f"{bucket.endpoint.rstrip('/')}/{uri.netloc}{quote(uri.path, safe='/-_.~')}{query}")

    def _conditions(self, offset: int, head: Head) -> dict[str, str]:
        # `http` uses If-Range here, which S3 does not know.
        condition = {"If-Match": head.validator} if head.resumable and head.validator else {}
        return {**condition, "Range": f"bytes={offset}-"} if offset else condition

    def _credentials(self, request: tuple[str, httpx2.URL], uri: Uri, headers: dict[str, str]) -> dict[str, str]:
        bucket, (method, url) = credentials.store(self._policy, uri, S3Store), request
        signer = sigv4.Key(bucket.access_key_id, credentials.secret(bucket.secret_key_file), bucket.region)
        path, _, query = url.raw_path.decode().partition("?")
        extra = {name: value for name, value in headers.items() if name.startswith("x-amz-")}
        payload = extra.pop("x-amz-content-sha256", sigv4.EMPTY)
        signed_request = sigv4.Request(method, headers["Host"], path, query, payload)
        return sigv4.signed(signed_request, signer, datetime.now(UTC), extra)

    def _require_success(self, uri: Uri, answer: httpx2.Response) -> None:
        if answer.status_code == httpx2.codes.PRECONDITION_FAILED:
            if answer.request.method == "GET":  # the rest of another version
                raise CannotResume(f"{uri} changed. The worker fetches it from the beginning.")
            raise Changed(f"{uri} changed during the upload. The worker tries again.")
        if answer.is_redirect:
            raise TransferFailed(
                f"{uri} is at another endpoint. Correct the endpoint or the region of its store.", retry=False
            )
        if answer.is_success:
            return
        # The store's own code tells a wrong key from a wrong clock or a wrong bucket; 403 alone does not.
        with suppress(httpx2.HTTPError):
            answer.read()
        found = _ERROR.search(answer.content) if answer.is_closed else None
        code = found[1].decode() if found else ""
        if answer.status_code == httpx2.codes.FORBIDDEN and code in _NO_ANSWER:
            raise _Denied(
                f"{uri} answered 403 {code or 'Forbidden'}: the key is missing, or the worker may not do that there. "
                "Check the URI and the permissions of its access key."
            )
        require_success(uri, answer, code)

    def _upload(self, uri: Uri, source: Path, sha256: str, report: Report) -> _Staged:
        answer = self._send("POST", _with_query(uri, uploads=""), {_DIGEST: sha256, "Content-Length": "0"}, None)
        self._require_success(uri, answer)
        upload = _Upload(uri.text, _element(uri, answer, "UploadId"))
        atomic_files.write(_note(source), msgspec.json.encode(upload))
        size = source.stat().st_size
        length = max(_PART, -(-size // _PARTS))
        etags: list[str] = []
        confirmed = True
        for offset in range(0, size, length):
            part = _Part(source, offset, min(length, size - offset))
            there = _with_query(uri, partNumber=str(len(etags) + 1), uploadId=upload.id)
            headers = {"Content-Length": str(part.length), "x-amz-content-sha256": part.sha256}
            answer = self._send("PUT", there, headers, part.sent(report, size))
            self._require_success(uri, answer)
            etags.append(answer.headers.get("etag", ""))
            confirmed = _confirms(uri, answer, part.md5) and confirmed
            failpoint("save.part_written")
        return _Staged(str(source), upload, tuple(etags), confirmed)

    def _complete(self, uri: Uri, staged: _Staged, condition: dict[str, str]) -> None:
        assert staged.upload is not None  # noqa: S101 - the caller has checked it
        rows = (
            f"<Part><PartNumber>{number}</PartNumber><ETag>{html.escape(etag)}</ETag></Part>"
            for number, etag in enumerate(staged.etags, 1)
        )
        body = f"<CompleteMultipartUpload>{''.join(rows)}</CompleteMultipartUpload>".encode()
        headers = {
            "Content-Length": str(len(body)),
            "Content-Type": "application/xml",
            "x-amz-content-sha256": hashlib.sha256(body).hexdigest(),
            **condition,
        }
        answer = self._send("POST", _with_query(uri, uploadId=staged.upload.id), headers, iter((body,)))
        self._require_success(uri, answer)
        # S3 answers 200 before it has joined the parts, and reports an error in the body.
        if found := _ERROR.search(answer.content):
            raise TransferFailed(f"{uri} could not be completed ({found[1].decode()}). The worker tries again.")

    def _holds(self, uri: Uri, sha256: str) -> bool | None:
        """Return whether this image is there, by the digest that its upload stated. None: the store hides it."""
        answer = self._send("HEAD", uri, {}, None)
        if answer.status_code == httpx2.codes.NOT_FOUND:
            return False
        try:
            self._require_success(uri, answer)
        except _Denied:
            return None
        return bool(answer.headers.get(_DIGEST) == sha256)


class _Part:
    """A part of the flattened disk. It is read twice, because its digest must be sent before its bytes."""

    def __init__(self, source: Path, offset: int, length: int) -> None:
        self._source, self._offset, self.length = source, offset, length
        sha256, md5 = hashlib.sha256(), hashlib.md5(usedforsecurity=False)
        for chunk in self._chunks():
            sha256.update(chunk)
            md5.update(chunk)
        self.sha256, self.md5 = sha256.hexdigest(), md5.hexdigest()

    def sent(self, report: Report, size: int) -> Iterator[bytes]:
        done = self._offset
        for chunk in self._chunks():
            yield chunk
            done += len(chunk)
            report(done, size)

    def _chunks(self) -> Iterator[bytes]:
        left = self.length
        with self._source.open("rb") as file:
            file.seek(self._offset)
            while left and (chunk := file.read(min(CHUNK, left))):
                left -= len(chunk)
                yield chunk


def _note(source: Path) -> Path:
    return source.with_name(f"{source.name}.upload")


def _unconfirmed(uri: Uri) -> TransferFailed:
    """Return the error for a disk that cannot be verified. It stays on the worker."""
    return TransferFailed(
        f"{uri} cannot be read, and its store does not confirm the bytes that it got. "
        "Let the worker read there (s3:GetObject), or save to a bucket whose ETags are digests.",
        retry=False,
    )


def _is_free_name(uri: Uri, key: str, sha256: str) -> bool:
    """Return whether a place is the conflict name of these bytes."""
    return f".conflict-{key[:8]}-{sha256[:12]}" in uri.path.rpartition("/")[2]


def _with_query(uri: Uri, **query: str) -> Uri:
    """Return an object's URI with a query, in the order in which it is signed."""
    return msgspec.structs.replace(uri, query=urlencode(sorted(query.items()), quote_via=quote, safe="-_.~"))


def _confirms(uri: Uri, answer: httpx2.Response, md5: str) -> bool:
    """Return whether the store confirms a part. Encrypted parts have an ETag that confirms nothing."""
    etag = answer.headers.get("etag", "").strip('"')
    is_md5 = re.fullmatch("[0-9a-f]{32}", etag) and "kms" not in answer.headers.get("x-amz-server-side-encryption", "")
    if is_md5 and etag != md5:
        raise TransferFailed(f"{uri}: the store got other bytes (md5 {etag}, not {md5}). Check the network.")
    return bool(is_md5)


def _element(uri: Uri, answer: httpx2.Response, name: str) -> str:
    found = re.search(rf"<{name}>([^<]+)</{name}>", answer.text)
    if found is None:
        raise TransferFailed(f"{uri}: the store's answer has no {name}. Check that its endpoint speaks S3.")
    return html.unescape(found[1])
