"""`sftp:` images, `sftp://host/absolute/path`, on servers in the settings whose keys are in their known_hosts.

The connection goes to the address that was checked. A disk is written beside its target, fsynced, read back and then
renamed. The plain rename of SFTP never replaces a file, and is used for free names. To replace a file takes
`posix-rename@openssh.com`. Where a server lacks it, the old file is moved aside first.
"""

from __future__ import annotations

import errno
import hashlib
import socket
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import Any, Final
from urllib.parse import urlsplit

import paramiko

from worker_service.contract import Code
from worker_service.contract.public_address import CONNECT_S
from worker_service.core.errors import Refused, TransferFailed
from worker_service.core.failpoints import failpoint
from worker_service.core.settings import ImagePolicy, SftpStore
from worker_service.transfer import credentials
from worker_service.transfer.address_policy import Connector
from worker_service.transfer.file import CHUNK
from worker_service.transfer.registry import MANIFEST_BYTES, Head, Report
from worker_service.transfer.stall_guard import watching
from worker_service.transfer.uri import MANIFEST_SUFFIX, Uri, beside, parse, place

_PORT: Final = 22
_AHEAD: Final = 2 << 20
"""Bytes requested ahead. They hide the latency of the network, and bound the use of memory."""
_WINDOW: Final = 4 << 20
_SETTLED_S: Final = 60.0
"""SFTP has times in seconds, so a time identifies only a file that has not changed for longer (RFC 9110, 8.8.2.2)."""
_REPLACED: Final = ".old"
_ROOM: Final = 1 << 20
"""Free bytes below which a server's disk is full."""
_CMD_EXTENDED: Final = 200
_RSA: Final = ("rsa-sha2-512", "rsa-sha2-256")
_SILENT: Final = (paramiko.SSHException, EOFError, OSError)


class Sftp:
    """Source and target for `sftp:` URIs."""

    def __init__(self, policy: ImagePolicy) -> None:
        self._policy = policy
        self._connector = Connector(policy)

    def check(self, uri: Uri, *, write: bool = False) -> None:
        """Refuse servers that the settings do not know, and paths that are not plain."""
        credentials.refuse_secrets(uri)
        store, _folder = self._store(uri)
        if not uri.path.strip("/") or ".." in PurePosixPath(uri.path).parts or uri.path.endswith("/") or uri.query:
            raise Refused(f"{uri} is not a plain path. Write it like sftp://host/srv/a.qcow2.", code=Code.BAD_REQUEST)
        if write and not store.save:
            raise credentials.not_saved_to(uri)

    def _store(self, uri: Uri) -> tuple[SftpStore, str]:
        """Return the settings of a URI's store, and the folder below which it is used."""
        store, folder = credentials.store_and_folder(self._policy, uri, SftpStore)
        if folder is None:
            name = credentials.origin(uri)
            raise Refused(
                f"{uri} is on a server whose entry names no folder, so the worker reads and writes nothing there. "
                f'Change [images.stores."{name}"] in its settings to [images.stores."{name}/srv/disks"], with the '
                f'folder of the images and disks. For a server that confines its user by itself, write "{name}/".',
                code=Code.POLICY,
            )
        return store, folder

    # Source

    def head(self, uri: Uri) -> Head:
        """Return size and time. A file that has just changed may change again within the same second."""
        with self._session(uri) as sftp:
            found = sftp.stat(uri.path)
        settled = found.st_mtime is not None and time.time() - found.st_mtime > _SETTLED_S
        return Head(found.st_size, _validator(found), resumable=settled)

    def read(self, uri: Uri, offset: int, head: Head) -> Iterator[bytes]:
        """Yield the bytes of the file that `head` described."""
        with self._session(uri) as sftp, sftp.open(uri.path, "rb") as file:
            if _validator(file.stat()) != head.validator:
                raise TransferFailed(f"{uri} changed while it was read. The worker tries again.")
            yield from _bytes(file, offset, head.size or 0)

    # Target

    def observe(self, uri: Uri) -> str | None:
        """Return a validator of the file at the target, or None. Raises Refused if something else is there."""
        with self._session(uri) as sftp:
            there = _stat(sftp, uri.path)
        if there is not None and not _is_file(there):
            raise Refused(f"{uri} is a folder or a device, and no disk replaces one. Name a file.", code=Code.POLICY)
        return None if there is None else _validator(there)

    def stage(self, uri: Uri, source: Path, sha256: str, key: str, report: Report) -> str:
        """Write beside the target, fsync at the server, and read back."""
        uri = place(uri)
        self.check(uri, write=True)
        part, size = _part(uri, key), source.stat().st_size
        with self._session(uri) as sftp:
            try:
                with sftp.open(part, "wb") as file:
                    sftp.chmod(part, 0o600)
                    file.set_pipelined(True)
                    _write(file, source, size, report)
                    _sync(sftp, file)
                failpoint("save.part_written")
                with sftp.open(part, "rb") as file:
                    found = _digest(_bytes(file, 0, size))
                if found != sha256 or sftp.stat(part).st_size != size:
                    raise TransferFailed(f"{uri} reads back as sha256 {found}, not {sha256}. Check that server.")
            except BaseException as err:
                with suppress(*_SILENT):
                    free = _free_bytes(sftp, part) if _is_answer(err) else None
                    sftp.remove(part)
                    if free is not None and free < _ROOM:
                        raise TransferFailed(f"{uri}: the disk of its server is full. Free space there.") from err
                raise
        return part

    def commit(self, uri: Uri, token: str, sha256: str, observed: str | None, key: str, report: Report) -> str:  # noqa: PLR0913, PLR0917
        """Rename into place. A target that has changed since the VM started stays, and a free name is used."""
        uri = place(uri)
        with self._session(uri) as sftp:
            there = _stat(sftp, uri.path)
            if there is None or (_is_file(there) and _validator(there) == observed):
                _rename_over(sftp, token, uri.path)
            elif _is_file(there) and self._is(sftp, uri.path, token, sha256):
                # After a crash between the rename and the note in the record.
                with suppress(FileNotFoundError):
                    sftp.remove(token)
            else:
                return self.commit(beside(uri, key, sha256), token, sha256, None, key, report)
            failpoint("save.renamed")
        return uri.text

    def manifest(self, uri: Uri) -> bytes | None:
        """Return the file that has the name of the manifest, or None. A link or a folder counts as an empty file."""
        path = uri.path + MANIFEST_SUFFIX
        with self._session(uri) as sftp, suppress(FileNotFoundError):
            if not _is_file(sftp.lstat(path)):
                return b""
            with sftp.open(path) as file:
                return bytes(file.read(MANIFEST_BYTES))
        return None

    def note(self, saved: str, manifest: bytes) -> None:
        """Write `<name>.manifest.json` beside a saved image."""
        uri = parse(saved)
        part = _part(uri, "manifest")
        with self._session(uri) as sftp:
            with sftp.open(part, "wb") as file:
                file.write(manifest)
                _sync(sftp, file)
            _rename_over(sftp, part, uri.path + MANIFEST_SUFFIX)

    def discard(self, uri: Uri, source: Path, key: str) -> None:  # noqa: ARG002
        """Remove the part of an unfinished try, and put back what it has moved aside."""
        uri = place(uri)
        part = _part(uri, key)
        with self._session(uri) as sftp:
            if _stat(sftp, uri.path) is None:
                with suppress(OSError):
                    sftp.rename(part + _REPLACED, uri.path)
            with suppress(FileNotFoundError):
                sftp.remove(part)

    @staticmethod
    def _is(sftp: Any, path: str, token: str, sha256: str) -> bool:
        size = sftp.stat(path).st_size
        with suppress(FileNotFoundError):
            if sftp.stat(token).st_size != size:
                return False
        with sftp.open(path, "rb") as file:
            return _digest(_bytes(file, 0, size)) == sha256

    # Connections

    @contextmanager
    def _session(self, uri: Uri) -> Iterator[Any]:
        """Yield an authenticated session at the server of a URI, whose key was checked."""
        self.check(place(uri))
        (store, folder), parts = self._store(uri), urlsplit(f"sftp://{uri.netloc}")
        host, port = parts.hostname or "", parts.port or _PORT
        key = _own_key(store)
        password = credentials.secret(store.password_file) if key is None and store.password_file else ""
        known = _known_keys(store, host if port == _PORT else f"[{host}]:{port}", uri)
        limit_s = min(CONNECT_S, self._policy.timeout_s)

        def dial(address: str) -> socket.socket:
            return socket.create_connection((address, port), timeout=limit_s)

        try:
            with (
                watching(self._policy) as watch,
                self._connector.connect(uri, host, port, dial, (OSError,)) as connection,
            ):
                connection.settimeout(self._policy.timeout_s)
                watch.begin(connection)
                transport = paramiko.Transport(connection, default_window_size=_WINDOW)
                try:
                    self._greet(transport, known, uri)
                    _authenticate(transport, store.user, key, password, uri)
                    sftp = paramiko.SFTPClient.from_transport(transport)
                    sftp.get_channel().settimeout(self._policy.timeout_s)
                    _require_inside(sftp, folder, uri)
                    yield sftp
                finally:
                    transport.close()
        except FileNotFoundError as err:
            raise TransferFailed(f"{uri} or its folder does not exist. Check the path.", retry=False) from err
        except PermissionError as err:
            raise TransferFailed(f"{uri} may not be opened by {store.user}. Check its owner.", retry=False) from err
        except _SILENT as err:
            if _is_answer(err):
                raise TransferFailed(f"The server of {uri} refused a step: {err}. Its log says why.") from err
            reason = str(err) or type(err).__name__
            broken = TransferFailed(f"{uri} broke off: {reason}. Check the server and the network.")
            raise watch.verdict(uri) or broken from err

    def _greet(self, transport: Any, known: dict[str, Any], uri: Uri) -> None:
        """Authenticate the server by its known key. Raises Refused for another key."""
        options = transport.get_security_options()
        accepted = {name for kind in known for name in (_RSA if kind == "ssh-rsa" else (kind,))}
        options.key_types = tuple(kind for kind in options.key_types if kind in accepted) or options.key_types
        # Ciphers that also authenticate come first: a separate MAC would be computed in Python.
        options.ciphers = tuple(sorted(options.ciphers, key=lambda name: "-gcm@" not in name))
        transport.start_client(timeout=self._policy.timeout_s)
        shown = transport.get_remote_server_key()
        if known.get(shown.get_name()) != shown:
            raise Refused(
                f"The server of {uri} shows a {shown.get_name()} key that is not the known one ({shown.fingerprint}). "
                "Find out which server answers there, then correct known_hosts.",
                code=Code.POLICY,
            )


def _require_inside(sftp: Any, folder: str, uri: Uri) -> None:
    """Refuse a file that links on the server lead out of the folder of its store."""
    path = PurePosixPath(uri.path)
    real = PurePosixPath(sftp.normalize(str(path.parent)))
    with suppress(FileNotFoundError):
        if stat.S_ISLNK(sftp.lstat(str(path)).st_mode or 0):
            raise Refused(f"{uri} is a symbolic link. Name the real path.", code=Code.POLICY)
    if not real.is_relative_to(sftp.normalize(folder)):
        raise Refused(f"{uri} leads out of {folder} through a symbolic link. Name the real path.", code=Code.POLICY)


def _own_key(store: SftpStore) -> Any:
    if store.key_file is None:
        return None
    credentials.check_private(store.key_file)
    try:
        return paramiko.PKey.from_path(store.key_file)
    except (paramiko.SSHException, ValueError, TypeError) as err:
        raise Refused(
            f"{store.key_file} is no private key that can be used ({type(err).__name__}). It must have no passphrase.",
            code=Code.POLICY,
        ) from None


def _known_keys(store: SftpStore, name: str, uri: Uri) -> dict[str, Any]:
    try:
        found = paramiko.HostKeys(str(store.known_hosts)).lookup(name)
    except OSError as err:
        raise Refused(f"{store.known_hosts} cannot be read: {err.strerror}. Correct it.", code=Code.POLICY) from err
    if not found:
        raise Refused(
            f"The key of {name}, the server of {uri}, is not in {store.known_hosts}. Unknown keys are not accepted. "
            "Add it: ssh-keyscan shows it, and its owner can confirm it.",
            code=Code.POLICY,
        )
    return dict(found)


def _authenticate(transport: Any, user: str, key: Any, password: str, uri: Uri) -> None:
    try:
        if key is not None:
            transport.auth_publickey(user, key)
        else:
            transport.auth_password(user, password)
    except paramiko.AuthenticationException as err:
        if not transport.is_active():  # the connection broke; the server did not refuse
            raise EOFError(str(err)) from err
        raise TransferFailed(f"The server of {uri} does not let {user} in. Check its key.", retry=False) from err


def _bytes(file: Any, offset: int, size: int) -> Iterator[bytes]:
    """Yield the bytes of a file up to `size`, requested ahead. The caller checks their number."""
    while offset < size:
        end = min(offset + _AHEAD, size)
        file.seek(offset)
        file.prefetch(end)
        while offset < end:
            if not (chunk := file.read(min(CHUNK, end - offset))):
                return
            offset += len(chunk)
            yield chunk


def _digest(chunks: Iterator[bytes]) -> str:
    digest = hashlib.sha256()
    for chunk in chunks:
        digest.update(chunk)
    return digest.hexdigest()


def _write(file: Any, source: Path, size: int, report: Report) -> None:
    done = 0
    with source.open("rb") as disk:
        while chunk := disk.read(CHUNK):
            report(done, size)
            file.write(chunk)
            done += len(chunk)
    report(done, size)


def _sync(sftp: Any, file: Any) -> None:
    """Make a file durable at a server that can (OpenSSH). Paramiko has no function for it."""
    file.flush()
    with suppress(OSError):
        sftp._request(_CMD_EXTENDED, "fsync@openssh.com", file.handle)  # noqa: SLF001


def _rename_over(sftp: Any, source: str, target: str) -> None:
    """Rename a file, and replace another one.

    Without `posix-rename@openssh.com` the old file is moved aside, and removed when the new one is in its place.
    """
    if _stat(sftp, target) is None:
        sftp.rename(source, target)
    else:
        try:
            sftp.posix_rename(source, target)
        except OSError as err:
            if not _is_answer(err):
                raise
            with suppress(FileNotFoundError):
                sftp.remove(source + _REPLACED)
            sftp.rename(target, source + _REPLACED)
            try:
                sftp.rename(source, target)
            except OSError:
                with suppress(OSError):
                    sftp.rename(source + _REPLACED, target)
                raise
    with suppress(FileNotFoundError):  # of this try, or of one that was interrupted
        sftp.remove(source + _REPLACED)


def _is_answer(err: BaseException) -> bool:
    """Return whether an error is a server's answer, of which paramiko knows one by number, and no broken connection."""
    is_plain = type(err) in (OSError, PermissionError) and str(err) != "Socket is closed"
    return is_plain and getattr(err, "errno", None) in (None, errno.EACCES)


def _free_bytes(sftp: Any, path: str) -> int | None:
    """Return the free bytes at a server that tells them (OpenSSH), whose answer to a full disk is only `Failure`."""
    with suppress(OSError):
        _kind, answer = sftp._request(_CMD_EXTENDED, "statvfs@openssh.com", path)  # noqa: SLF001
        _block, fragment, _blocks, _free, available = (answer.get_int64() for _field in range(5))
        return int(fragment * available)
    return None


def _stat(sftp: Any, path: str) -> Any:
    try:
        return sftp.lstat(path)
    except FileNotFoundError:
        return None


def _is_file(found: Any) -> bool:
    """Return whether a path is a plain file. A server that has no modes has no links."""
    return found.st_mode is None or stat.S_ISREG(found.st_mode)


def _validator(found: Any) -> str:
    return f"{found.st_size}-{found.st_mtime}"


def _part(uri: Uri, key: str) -> str:
    path = PurePosixPath(uri.path)
    return str(path.with_name(f".{path.name}.part-{key}"))
