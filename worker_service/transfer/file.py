"""`file:` images: regular files below the configured roots, reached without any symbolic link."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import RawIOBase
from pathlib import Path, PurePosixPath
from typing import Final
from urllib.parse import quote

from worker_service.contract import Code
from worker_service.core.errors import Refused, TransferFailed
from worker_service.core.failpoints import failpoint
from worker_service.core.settings import ImagePolicy
from worker_service.fs import atomic_files, verify
from worker_service.fs.advice import explained
from worker_service.transfer import access
from worker_service.transfer.registry import MANIFEST_BYTES, Head, Report
from worker_service.transfer.uri import MANIFEST_SUFFIX, Uri, beside, parse

CHUNK: Final = 1 << 20
_SENDFILE_CHUNK: Final = 16 << 20


class Files:
    """Source and target for `file:` URIs on the worker."""

    def __init__(self, policy: ImagePolicy) -> None:
        self._policy = policy

    def check(self, uri: Uri, *, write: bool = False) -> None:
        """Refuse paths outside the roots. Symbolic links in the path are refused when the file is opened."""
        self._root(uri, write=write)

    # Source

    def head(self, uri: Uri) -> Head:
        """Return the size, and a validator made of the inode, its size and its times."""
        with self._folder(uri, write=False) as (folder, name):
            found = os.stat(name, dir_fd=folder, follow_symlinks=False)
        _check_regular(uri, found)
        return Head(found.st_size, _validator(found), resumable=True)

    @contextmanager
    def opened(self, uri: Uri) -> Iterator[RawIOBase]:
        """Open an image where it lies. Raises Refused for all but a regular file."""
        with self._folder(uri, write=False) as (folder, name):
            fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK, dir_fd=folder)
        with os.fdopen(fd, "rb", buffering=0) as file:
            _check_regular(uri, os.fstat(fd))
            yield file

    def read(self, uri: Uri, offset: int, head: Head) -> Iterator[bytes]:
        """Yield the bytes of the file that `head` described."""
        with self.opened(uri) as file:
            if _validator(os.fstat(file.fileno())) != head.validator:
                raise TransferFailed(f"{uri} changed while it was read. The worker tries again.")
            file.seek(offset)
            while chunk := file.read(CHUNK):
                yield chunk

    # Target

    def observe(self, uri: Uri) -> str | None:
        """Return a validator of the file at the target, or None. Raises Refused if something else is there."""
        with self._folder(uri, write=True) as (folder, name):
            there = _stat(folder, name)
        if there is None:
            return None
        if not stat.S_ISREG(there.st_mode):
            what = (
                "symbolic link"
                if stat.S_ISLNK(there.st_mode)
                else "folder"
                if stat.S_ISDIR(there.st_mode)
                else "device"
            )
            raise Refused(f"{uri} is a {what}, and a disk never replaces one. Name a file.", code=Code.POLICY)
        return _validator(there)

    def stage(self, uri: Uri, source: Path, sha256: str, key: str, report: Report) -> str:
        """Put the flattened disk beside the target, and read it back from the storage.

        On the filesystem of the source this is a hard link: a flattened disk never changes, and this process may have
        read it back already. On another filesystem it is a copy, which is fsynced.
        """
        with self._folder(uri, write=True) as (folder, name):
            part = _part(name, key)
            with suppress(FileNotFoundError):
                os.unlink(part, dir_fd=folder)
            try:
                if not _linked(source, folder, part):
                    _copy(source, folder, part, report)
                failpoint("save.part_written")
                if (found := _digest_of(folder, part, sha256)) != sha256:
                    raise TransferFailed(f"{uri} reads back as sha256 {found}, not {sha256}: check that disk.")
            except BaseException:
                with suppress(FileNotFoundError):
                    os.unlink(part, dir_fd=folder)
                raise
        return part

    def commit(self, uri: Uri, token: str, sha256: str, observed: str | None, key: str, report: Report) -> str:  # noqa: PLR0913, PLR0917
        """Rename into place. A target that has changed since the VM started stays, and a free name is used."""
        with self._folder(uri, write=True) as (folder, name):
            there, path = _stat(folder, name), Path(f"/proc/self/fd/{folder}")
            is_file = there is not None and stat.S_ISREG(there.st_mode)
            if there is None or atomic_files.is_mark(path / name, path / token):
                atomic_files.rename_new(path / token, path / name)
            elif is_file and _validator(there) == observed:
                os.rename(token, name, src_dir_fd=folder, dst_dir_fd=folder)
            elif is_file and _digest_of(folder, name, sha256) == sha256:
                # After a crash between the rename and the note in the record.
                with suppress(FileNotFoundError):
                    os.unlink(token, dir_fd=folder)
            else:
                return self.commit(beside(uri, key, sha256), token, sha256, None, key, report)
            failpoint("save.renamed")
            os.fsync(folder)
        return _uri_of(PurePosixPath(uri.path))

    def manifest(self, uri: Uri) -> bytes | None:
        """Return the file that has the name of the manifest, or None. A link or a folder counts as an empty file."""
        with self._folder(uri, write=True) as (folder, name):
            there = _stat(folder, f"{name}{MANIFEST_SUFFIX}")
            if there is None or not stat.S_ISREG(there.st_mode):
                return None if there is None else b""
            flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
            with os.fdopen(os.open(f"{name}{MANIFEST_SUFFIX}", flags, dir_fd=folder), "rb") as file:
                return file.read(MANIFEST_BYTES)

    def note(self, saved: str, manifest: bytes) -> None:
        """Write `<name>.manifest.json` beside a saved image."""
        with self._folder(parse(saved), write=True) as (folder, name):
            atomic_files.write(Path(f"/proc/self/fd/{folder}/{name}{MANIFEST_SUFFIX}"), manifest)

    def discard(self, uri: Uri, source: Path, key: str) -> None:  # noqa: ARG002
        """Remove the part of an unfinished try."""
        with self._folder(uri, write=True) as (folder, name), suppress(FileNotFoundError):
            os.unlink(_part(name, key), dir_fd=folder)

    # Roots

    def _root(self, uri: Uri, *, write: bool) -> tuple[Path, PurePosixPath]:
        """Return the root that contains a path, and the path below it."""
        roots = self._policy.write_roots if write else self._policy.read_roots
        path = PurePosixPath(uri.path)
        if uri.netloc not in ("", "localhost"):
            raise Refused(f"{uri} names the host {uri.netloc!r}. Write file:///path for a file here.", code=Code.POLICY)
        if not path.is_absolute() or ".." in path.parts or "\0" in uri.path:
            raise Refused(f"{uri} is not a plain absolute path. Write it without `..`.", code=Code.POLICY)
        root = access.file_root(self._policy, uri.path, write=write)
        if root is not None and path.is_relative_to(root):
            return root, path.relative_to(root)
        what, setting = ("saved into", "write_roots") if write else ("read from", "read_roots")
        allowed = ", ".join(access.reachable(map(str, roots), self._policy.owner)) or "none yet"
        raise Refused(
            f"{uri} lies outside the folders that images are {what} ({allowed}). "
            f"Choose another place, or add its folder to images.{setting} in the worker's settings.",
            code=Code.POLICY,
        )

    @contextmanager
    def _folder(self, uri: Uri, *, write: bool) -> Iterator[tuple[int, str]]:
        """Open the folder of a file step by step from its root, refusing links (openat2 is not in Python)."""
        root, rest = self._root(uri, write=write)
        fd = -1
        try:
            # The administrator configured the root, so it may contain links. It is not made here: that could be on the
            # disk below a share that is not mounted.
            fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            for part in rest.parts[:-1]:
                below = os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=fd)
                os.close(fd)
                fd = below
            yield fd, rest.parts[-1]
        except OSError as err:
            if fd < 0 and err.errno == errno.ENOENT:
                text = f"{uri} cannot be opened: the folder {root} is missing. Make it on the worker."
                raise TransferFailed(text, retry=False) from err
            raise _failed(uri, err) from err
        finally:
            if fd >= 0:
                os.close(fd)


def _failed(uri: Uri, err: OSError) -> TransferFailed | Refused:
    if err.errno in (errno.ELOOP, errno.ENOTDIR):
        return Refused(f"{uri} leads through a symbolic link, or through a file. Name the real path.", code=Code.POLICY)
    if err.errno in (errno.ENOENT, errno.EACCES, errno.EISDIR, errno.ENAMETOOLONG):
        return TransferFailed(f"{uri} cannot be opened: {explained(err)}", retry=False)
    return TransferFailed(f"{uri} failed: {explained(err)}")


def _check_regular(uri: Uri, found: os.stat_result) -> None:
    if not stat.S_ISREG(found.st_mode):
        raise Refused(f"{uri} is not a regular file. Name a disk image.", code=Code.POLICY)


def _validator(found: os.stat_result) -> str:
    return f"{found.st_dev:x}-{found.st_ino:x}-{found.st_size:x}-{found.st_mtime_ns:x}"


def _stat(folder: int, name: str) -> os.stat_result | None:
    try:
        return os.stat(name, dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        return None


def _part(name: str, key: str) -> str:
    return f".{name}.part-{key}"


def _uri_of(path: PurePosixPath) -> str:
    return "file://" + quote(str(path))


def _linked(source: Path, folder: int, part: str) -> bool:
    """Give the source this name too; False where that cannot be: another filesystem, or one without links."""
    try:
        os.link(source, part, dst_dir_fd=folder, follow_symlinks=False)
    except OSError as err:
        if err.errno in atomic_files.NO_LINKS:
            return False
        raise
    os.chmod(part, 0o600, dir_fd=folder)
    return True


def _copy(source: Path, folder: int, part: str, report: Report) -> None:
    """Copy a file with its holes, and make it durable."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    fd = os.open(part, flags, 0o600, dir_fd=folder)
    try:
        with source.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            for done, end in data_of(file.fileno(), size):
                os.lseek(fd, done, os.SEEK_SET)
                while done < end:
                    report(done, size)
                    sent = os.sendfile(fd, file.fileno(), done, min(_SENDFILE_CHUNK, end - done))
                    if not sent:
                        raise OSError(errno.EIO, "It became shorter while it was read", str(source))
                    done += sent  # noqa: PLW2901 - the place in the file
            os.ftruncate(fd, size)
            report(size, size)
        os.fsync(fd)
    finally:
        os.close(fd)


def data_of(fd: int, size: int) -> Iterator[tuple[int, int]]:
    """Yield the parts of a file that are no holes. Source: lseek(2)."""
    end = 0
    while end < size:
        try:
            start = os.lseek(fd, end, os.SEEK_DATA)
        except OSError as err:
            if err.errno != errno.ENXIO:
                raise
            return  # only a hole is left
        end = min(os.lseek(fd, start, os.SEEK_HOLE), size)
        yield start, end


def _digest_of(folder: int, name: str, expected: str) -> str:
    fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
    try:
        return verify.digest_on_disk(fd, expected)
    finally:
        os.close(fd)
