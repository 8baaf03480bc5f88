"""The files of a Debian guest that is off, read and written without mounting anything."""

from __future__ import annotations

import tempfile
from pathlib import Path

from devstack.guests.debian import ROOT_START
from devstack.guests.tools import convert, run


class DebianRoot:
    """The root partition of the Debian guest's image: a copy of it in the file `raw`."""

    def __init__(self, image: Path, fmt: str, raw: Path) -> None:
        convert(image, fmt, raw, "raw")
        self.raw = raw
        self._partition = f"{raw}?offset={ROOT_START}"

    def read(self, path: str) -> bytes:
        """Return a file's content; empty if it is missing."""
        return run(["debugfs", "-R", f"cat {path}", self._partition])

    def copy(self, folder: str, target: Path) -> None:
        """Copy a folder with its content, owners and modes into the folder `target`."""
        run(["debugfs", "-R", f"rdump {folder} {target}", self._partition])

    def write(self, path: str, content: bytes = b"", mode: int = 0o644) -> None:
        """Write a new file that belongs to root."""
        folder, _, name = path.rpartition("/")
        with tempfile.TemporaryDirectory() as place:
            source, requests = Path(place) / "source", Path(place) / "requests"
            source.write_bytes(content)
            source.chmod(mode)
            requests.write_text(f"cd {folder}\nwrite {source} {name}\n")
            run(["debugfs", "-w", "-f", requests, self._partition])

    def link(self, path: str, target: str) -> None:
        """Make a symbolic link."""
        run(["debugfs", "-w", "-R", f"symlink {path} {target}", self._partition])
