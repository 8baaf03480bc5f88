"""JavaScript of other projects for the pages of both services: fetched from npm, checked against a pinned digest.

git ignores it. Its licences lie beside it, in the folders of `web_assets/`. A wheel that is built afterwards contains
it.
"""

from __future__ import annotations

import hashlib
import shutil
import tarfile
import tempfile
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Final

from devstack import bootstrap
from devstack.console import Trouble, progress
from devstack.layout import REPO, Layout


@dataclass(frozen=True)
class NpmPackage:
    """One package of npm, at one version, and the part of it that is used."""

    name: str
    version: str
    sha512: str
    """Of the archive, in hex. `npm view NAME@VERSION dist.integrity` prints the same in base64."""
    folder: str
    """Where it is unpacked in `web_assets/`."""
    files: tuple[str, ...]
    """Patterns of the files that a browser needs, and of the licences."""
    loss: str
    """What does not work without it, as a sentence."""

    @property
    def spec(self) -> str:
        """The package as npm's command line names it."""
        return f"{self.name}@{self.version}"


PACKAGES: Final = (
    NpmPackage(
        name="@novnc/novnc",
        version="1.7.0",
        sha512=(
            "b9c1093b1e13d9abc844295ea1d93b6286d98f93b619ad8078b7d0ebd03fca31"
            "bd1c76dadbe3c38304a437716db6b986fbbd191b1db5b0494d168b8ad77473c8"
        ),
        folder="novnc",
        files=("core/*", "vendor/*", "docs/LICENSE*", "AUTHORS"),
        loss="The pages show no consoles",
    ),
    NpmPackage(
        name="swagger-ui-dist",
        version="5.35.0",
        sha512=(
            "534eaba4cb56f55dd73c638179a993512af4674f63317e0826e00da44fc465b0"
            "21c341bc0a0c2bcd4e18997927fe1d3008336c5dd19aad334d1c2dec53cc9551"
        ),
        folder="swagger_ui",
        files=("swagger-ui-bundle.js", "swagger-ui.css", "swagger-ui-bundle.js.LICENSE.txt", "LICENSE", "NOTICE"),
        loss="The pages /docs show no API",
    ),
)
FOLDER: Final = REPO / "web_assets"
_STAMP: Final = "sha512"


def fetch(layout: Layout) -> bool:
    """Fetch each package that is missing; return whether all are there. The services also run without them."""
    missing = [package for package in PACKAGES if not _is_there(package)]
    if not missing:
        return True
    with tempfile.TemporaryDirectory() as folder:
        try:
            npm = _npm(layout, Path(folder, "npm"))
        except Trouble as err:
            for package in missing:
                progress(f"{package.loss}: {package.spec} could not be fetched. {err}")
            return False
        fetched = [_fetch_one(package, npm, Path(folder, package.folder), layout) for package in missing]
    return all(fetched)


def _is_there(package: NpmPackage) -> bool:
    stamp = FOLDER / package.folder / _STAMP
    return stamp.exists() and stamp.read_text() == package.sha512


def _npm(layout: Layout, folder: Path) -> tuple[str, ...]:
    """Return how to call npm: the machine's own, or one that is installed into the folder. Raises Trouble."""
    return ("npm",) if shutil.which("npm") else bootstrap.install_npm(layout, folder)


def _fetch_one(package: NpmPackage, npm: tuple[str, ...], folder: Path, layout: Layout) -> bool:
    folder.mkdir()
    try:
        pack = [*npm, "pack", "--silent", "--pack-destination", str(folder), package.spec]
        bootstrap.run(pack, what=f"npm pack {package.spec}", log=layout.log("npm"))
    except Trouble as err:
        progress(f"{package.loss}: {package.spec} could not be fetched. {err}")
        return False
    archive = next(folder.glob("*.tgz"))
    if hashlib.sha512(archive.read_bytes()).hexdigest() != package.sha512:
        progress(f"{package.loss}: {package.spec} is not used, because its SHA-512 differs from the pinned one.")
        return False
    unpack(archive, package)
    return True


def unpack(archive: Path, package: NpmPackage) -> None:
    """Unpack the package's files, and replace the folder with them."""
    with tempfile.TemporaryDirectory(dir=FOLDER, prefix=f".{package.folder}-") as part, tarfile.open(archive) as tar:
        for member in tar.getmembers():
            # File by file: Debian's Python 3.11.2 has no extraction filters yet.
            name = member.name.removeprefix("package/")
            used = member.isfile() and any(fnmatch(name, pattern) for pattern in package.files)
            if not used or ".." in Path(name).parts:
                continue
            target = Path(part, "package", name)
            target.parent.mkdir(parents=True, exist_ok=True)
            if (content := tar.extractfile(member)) is not None:
                target.write_bytes(content.read())
        Path(part, "package", _STAMP).write_text(package.sha512)
        shutil.rmtree(FOLDER / package.folder, ignore_errors=True)
        Path(part, "package").rename(FOLDER / package.folder)
