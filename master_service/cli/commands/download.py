"""`saltern download`: a saved disk of a VM as a file here, verified by its digest."""

from __future__ import annotations

import base64
import hashlib
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Annotated, Final

import httpx2
import typer

from master_service.cli.common import output, terminal
from master_service.cli.common.client import Client, Failure
from master_service.cli.common.options import Id, client_of, vm_path

_TRIES: Final = 5
"""Tries in a row that bring nothing more."""
_PAUSE_S: Final = 2.0


class _Part:
    """The unfinished file beside the destination, with the digest of its bytes so far."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.restart()

    def restart(self) -> None:
        """Forget all bytes."""
        self._file.seek(0)
        self._file.truncate()
        self.digest = hashlib.sha256()
        self.size = 0

    def add(self, chunk: bytes) -> None:
        """Write the next bytes."""
        self._file.write(chunk)
        self.digest.update(chunk)
        self.size += len(chunk)

    def finish(self) -> None:
        """Make the bytes durable."""
        self._file.flush()
        os.fsync(self._file.fileno())

    @property
    def repr_digest(self) -> str:
        """The digest as the header `Repr-Digest` has it."""
        return f"sha-256=:{base64.b64encode(self.digest.digest()).decode()}:"


def download(
    context: typer.Context,
    vm: Id,
    *,
    file: Annotated[Path, typer.Option("-o", "--output", help="The file to write.", show_default=False)],
    disk: Annotated[str, typer.Option(help="hda or hdb.")] = "hda",
    force: Annotated[bool, typer.Option("--force", help="Replace the file if it exists.")] = False,
) -> None:
    """Download a saved disk of a halted VM to a file.

    The file appears when it is whole and has the digest that its worker noted when it saved the disk. After a break the
    download goes on by itself.
    """
    if file.is_dir():
        raise Failure(f"{file} is a folder. Give the name of a file.")
    if not force and (file.exists() or file.is_symlink()):
        raise Failure(f"{file} exists already. Give another name, or --force. Nothing was downloaded.")
    client = client_of(context)
    with _part_beside(file) as (path, part):
        _fetch(client, vm_path(vm, f"disks/{disk}"), part)
        part.finish()
        _put(path, file, force=force)
    terminal.say(f"{disk} of {vm} is in {file} ({output.mib(part.size)}, sha256 {part.digest.hexdigest()}).")


@contextmanager
def _part_beside(file: Path) -> Iterator[tuple[Path, _Part]]:
    """Make an unfinished file in the folder of another one; it is removed at the end, whatever happens."""
    path = file.with_name(f".{file.name}.{os.getpid()}.part")
    try:
        # Only for its owner: a disk has the secrets of its guest.
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    except OSError as err:
        raise Failure(f"Cannot write {path}: {err.strerror}.") from err
    try:
        with os.fdopen(descriptor, "r+b") as opened:
            yield path, _Part(opened)
    except OSError as err:
        raise Failure(f"Cannot write {file}: {err.strerror}. Nothing was kept.") from err
    finally:
        with suppress(OSError):
            path.unlink(missing_ok=True)


def _fetch(client: Client, path: str, part: _Part) -> None:
    """Read the whole disk into the part, and go on after a break. Raises Failure."""
    etag, tries, before = "", 0, 0
    while True:
        headers = {"Range": f"bytes={part.size}-", "If-Range": etag} if part.size and etag else {}
        try:
            with client.stream(path, {**headers, "Accept-Encoding": "identity"}) as response:
                if response.status_code != httpx2.codes.PARTIAL_CONTENT:
                    part.restart()
                    before = 0
                etag, digest = response.headers.get("ETag", ""), response.headers.get("Repr-Digest", "")
                _read(response, part)
                break
        except Failure as failure:
            tries = 1 if part.size > before else tries + 1
            before = part.size
            if not (isinstance(failure.__cause__, httpx2.TransportError) and part.size) or tries >= _TRIES:
                raise
            terminal.warn(f"{failure} Going on after {output.mib(part.size)}.")
            time.sleep(_PAUSE_S)
    if digest != part.repr_digest:
        raise Failure(
            "The downloaded disk does not have the digest that its worker noted: the saved file was changed, or the "
            "download was. Nothing was kept. `saltern show` says where the disk lies."
        )


def _read(response: httpx2.Response, part: _Part) -> None:
    total, shown = part.size + int(response.headers.get("Content-Length", 0)), -1
    for chunk in response.iter_raw():  # as they come: what has arrived before a break counts
        part.add(chunk)
        if (percent := 100 * part.size // max(total, 1)) != shown:
            terminal.percent(percent)
            shown = percent


def _put(path: Path, file: Path, *, force: bool) -> None:
    """Give the whole part its name. Raises Failure if another file got the name meanwhile."""
    if force:
        path.replace(file)
        return
    try:
        file.hardlink_to(path)  # unlike a rename, it replaces nothing
    except FileExistsError as err:
        raise Failure(f"{file} exists meanwhile. Give another name, or --force. Nothing was kept.") from err
    except OSError:  # a filesystem without links
        path.rename(file)


def register(app: typer.Typer) -> None:
    """Add this command."""
    app.command()(download)
