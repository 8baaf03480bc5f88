"""noVNC, by which the worker's page shows screens: fetched from npm, held against a pinned digest, never committed.

It is another project's code under its own licences (MPL-2.0 and others), which lie beside it in `novnc/docs`.
A wheel that is built in a clone where it was fetched carries it along.
"""

from __future__ import annotations

import hashlib
import shutil
import tarfile
import tempfile
from pathlib import Path
from typing import Final

from devstack import bootstrap
from devstack.console import Trouble, tell
from devstack.layout import REPO, Layout

PACKAGE: Final = "@novnc/novnc@1.7.0"
SHA512: Final = (
    "b9c1093b1e13d9abc844295ea1d93b6286d98f93b619ad8078b7d0ebd03fca31"
    "bd1c76dadbe3c38304a437716db6b986fbbd191b1db5b0494d168b8ad77473c8"
)
FOLDER: Final = REPO / "web_assets/novnc"
_STAMP: Final = "sha512"
_WANTED: Final = ("package/core/", "package/vendor/", "package/docs/LICENSE", "package/AUTHORS", "package/VERSION")


def fetch(layout: Layout) -> bool:
    """Put noVNC where the facade and the master serve it from; whether it is there. Only screens need it."""
    stamp = FOLDER / _STAMP
    if stamp.exists() and stamp.read_text() == SHA512:
        return True
    with tempfile.TemporaryDirectory() as folder:
        try:
            npm = _npm(layout, Path(folder, "npm"))
            pack = [*npm, "pack", "--silent", "--pack-destination", folder, PACKAGE]
            bootstrap.run(pack, what="npm pack", log=layout.log("npm"))
        except Trouble as err:
            tell(f"noVNC: pages show no screens, for {PACKAGE} could not be fetched. {err}")
            return False
        archive = next(Path(folder).glob("*.tgz"))
        if hashlib.sha512(archive.read_bytes()).hexdigest() != SHA512:
            tell(f"noVNC: {PACKAGE} is not what it was: its SHA-512 differs from the one pinned here. It is not used.")
            return False
        unpack(archive, FOLDER)
    stamp.write_text(SHA512)
    return True


def _npm(layout: Layout, folder: Path) -> tuple[str, ...]:
    """How to call npm: the machine's own, or one that is installed into the folder. Raises Trouble."""
    return ("npm",) if shutil.which("npm") else bootstrap.install_npm(layout, folder)


def unpack(archive: Path, folder: Path) -> None:
    """Unpack what a browser needs, and the licences, into a folder that is made anew."""
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".novnc-") as part, tarfile.open(archive) as tar:
        for member in tar.getmembers():
            # File by file: Debian's Python 3.11.2 has no extraction filters yet.
            if not (member.isfile() and member.name.startswith(_WANTED)) or ".." in Path(member.name).parts:
                continue
            target = Path(part, member.name)
            target.parent.mkdir(parents=True, exist_ok=True)
            if (content := tar.extractfile(member)) is not None:
                target.write_bytes(content.read())
        shutil.rmtree(folder, ignore_errors=True)
        (Path(part) / "package").rename(folder)
