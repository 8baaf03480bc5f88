"""Which folders the VMs of an owner reach, on the worker and in stores. Pure.

The entries of the settings name folders. In an entry, `{owner}` stands for the name of the owner of a VM. The deepest
entry that contains a place decides; of two equally deep ones, the one without a template. A template is closed to all
other owners, and to VMs without an owner, even where a wider entry contains it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Final, Generic, NamedTuple, TypeVar
from urllib.parse import unquote, urlsplit

import msgspec

from worker_service.core.settings import EVERYBODY, ImagePolicy, StoreCredentials

PLACEHOLDER: Final = "{owner}"
_DEFAULT_PORTS: Final = {"http": ":80", "https": ":443", "sftp": ":22"}
_WEB: Final = ("http", "https")

Folder = tuple[str, ...]
"""The segments of a path. In a store, the first one is the origin: `scheme://host:port`."""
T = TypeVar("T")


class Decision(NamedTuple, Generic[T]):
    """The entry that decides about a place: its folder, and its value, or None if it is closed to this owner."""

    folder: Folder
    value: T | None


def segments(path: str) -> Folder:
    """Return the segments of a path, without empty ones."""
    return tuple(part for part in path.split("/") if part)


def is_plain(place: Folder) -> bool:
    """Return whether no segment leads upward, also for servers that decode twice or cut at a semicolon."""
    return not any(unquote(part).partition(";")[0].strip() in (".", "..") or "/" in unquote(part) for part in place)


def decide(entries: Iterable[tuple[Folder, T | None]], place: Folder, owner: str) -> Decision[T] | None:
    """Return what the entries say about a place below one of them, or None if none contains it."""
    found = [
        ((len(folder), not is_template, is_own), Decision(folder, value if is_own or not is_template else None))
        for folder, value in entries
        if len(folder) < len(place) and all(map(_matches, folder, place))
        for is_template in (any(PLACEHOLDER in part for part in folder),)
        for is_own in (bool(owner) and filled_folder(folder, owner) == place[: len(folder)],)
    ]
    return max(found, key=lambda pair: pair[0])[1] if found else None


def filled(text: str, owner: str) -> str:
    """Return a template with the owner's name in it."""
    return text.replace(PLACEHOLDER, owner)


def filled_folder(folder: Folder, owner: str) -> Folder:
    """Return a folder with the owner's name in it."""
    return tuple(filled(part, owner) for part in folder)


def reachable(texts: Iterable[str], owner: str) -> list[str]:
    """Return the folders that an owner reaches, for messages."""
    return [filled(text, owner) for text in texts if owner or PLACEHOLDER not in text]


def names(globs: Iterable[str], owner: str) -> bool:
    """Return whether a list of owners names this one. The site itself is the empty name."""
    return any(fnmatchcase(owner, glob) for glob in globs)


def file_root(policy: ImagePolicy, path: str, *, write: bool) -> Path | None:
    """Return the root through which the owner reaches a file on the worker, or None.

    A template of one kind is closed for the other kind as well: others do not read what an owner saves.
    """
    roots, others = policy.read_roots, policy.write_roots
    if write:
        roots, others = others, roots
    open_here: list[tuple[Folder, Path | None]] = [(segments(str(root)), root) for root in roots]
    closed = [(segments(str(root)), None) for root in others if root not in roots and PLACEHOLDER in str(root)]
    found = decide([*open_here, *closed], segments(path), policy.owner)
    return Path(filled(str(found.value), policy.owner)) if found and found.value else None


def is_in_salt_roots(policy: ImagePolicy, path: str) -> bool:
    """Return whether the owner reaches a file on Salt's file server."""
    found = decide(((segments(root), root) for root in policy.salt_roots), segments(path), policy.owner)
    return found is not None and found.value is not None


class StoreMatch(NamedTuple):
    """The settings of the store of a place. `store` is None if the place is closed to the owner.

    `folder` is the path that the entry names, or None if it names only a host or a bucket.
    """

    store: StoreCredentials | None
    folder: str | None = None


def store_at(policy: ImagePolicy, scheme: str, netloc: str, path: str) -> StoreMatch | None:
    """Return the settings of the store of a place (`path` decoded), or None if the settings do not name it."""
    place = (origin(scheme, netloc), *segments(path))
    found = decide(_store_entries(policy), place, policy.owner)
    if found is None:
        whole = policy.stores.get(f"{scheme}://*")
        if whole is None:
            return None
        found = Decision((), (f"{scheme}://*", whole) if names(whole.owners, policy.owner) else None)
    if found.value is None or not is_plain(place[1:]):
        return StoreMatch(None)
    key, store = found.value
    folder = "/" + "/".join(place[1 : len(found.folder)])
    return StoreMatch(_filled_store(store, policy.owner), folder if urlsplit(key).path else None)


def origin(scheme: str, netloc: str) -> str:
    """Return the name of a store, `scheme://host:port`, without a user and without the default port."""
    host = netloc.rpartition("@")[2].lower().removesuffix(_DEFAULT_PORTS.get(scheme, "\n"))
    return f"{scheme}://{host.rstrip('.')}"


def _store_entries(policy: ImagePolicy) -> list[tuple[Folder, tuple[str, StoreCredentials] | None]]:
    """Return the entries of all stores. A web server of which the settings divide a part is closed elsewhere."""
    entries: list[tuple[Folder, tuple[str, StoreCredentials] | None]] = []
    divided: set[Folder] = set()
    for key, store in policy.stores.items():
        parts = urlsplit(key)
        folder = (origin(parts.scheme, parts.netloc), *segments(unquote(parts.path)))
        entries.append((folder, (key, store) if names(store.owners, policy.owner) else None))
        if parts.scheme in _WEB and (len(folder) > 1 or store.owners != EVERYBODY):
            divided |= {(origin(scheme, parts.netloc),) for scheme in _WEB}
    whole = {folder for folder, _store in entries}
    return [*entries, *((folder, None) for folder in divided - whole)]


def _filled_store(store: StoreCredentials, owner: str) -> StoreCredentials:
    """Return a store with the owner's name in its texts and paths, so that each owner can have credentials."""
    fields: dict[str, Any] = {
        name: type(value)(filled(str(value), owner))
        for name in store.__struct_fields__
        if isinstance(value := getattr(store, name), str | Path) and PLACEHOLDER in str(value)
    }
    return msgspec.structs.replace(store, **fields) if fields else store


def _matches(pattern: str, part: str) -> bool:
    """Return whether a segment is that of an entry, with any name for the owner."""
    return pattern == part or (
        PLACEHOLDER in pattern and bool(re.fullmatch(".+".join(map(re.escape, pattern.split(PLACEHOLDER))), part))
    )
