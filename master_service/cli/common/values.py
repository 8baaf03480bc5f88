"""What people write for a value of an option: a path for a URI, `1G` for memory, a file of keys."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

import typer

from worker_service.contract import KEEP, guest_entries

_SIZE: Final = re.compile(r"(?P<number>[0-9]{1,9}(?:\.[0-9]{1,6})?)(?: ?(?P<unit>[mMgGtT])(?:i[bB])?)?")
_MIB: Final = {"": 1, "M": 1, "G": 1024, "T": 1024 * 1024}
_AGE: Final = re.compile(r"(?P<number>[0-9]{1,6}) ?(?P<unit>[smhd])")
_AGES: Final = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}
_SCHEME: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.-]{0,31}")
_OPTIONS: Final = re.compile(r"(?:\?(?:format|compress)=[^#]{0,99})?(?:#sha256=.{0,99})?", re.DOTALL)
"""The end of a URI that also a path may have: the form of a saved disk, the digest of an image."""
_BEGINNINGS: Final = ("/", "./", "../", "~")
_LARGEST: Final = 1 << 20
"""Bytes of a file with keys."""


def memory_mib(text: str) -> int:
    """Return the MiB of `512`, `512M`, `1G` or `1.5GiB`. Raises BadParameter."""
    found = _SIZE.fullmatch(str(text).strip())
    amount = float(found["number"]) * _MIB[(found["unit"] or "").upper()] if found else 0
    if not found or amount != int(amount):
        raise typer.BadParameter(f"{text!r} is no size of memory. Give MiB, as 512 or 512M, or GiB, as 1G or 1.5G.")
    return int(amount)


def moment(text: str) -> str:
    """Return a time for the master: an age such as `2h` before now, or a time with its zone. Raises BadParameter."""
    try:
        if found := _AGE.fullmatch(text.strip()):
            return (datetime.now(UTC) - timedelta(**{_AGES[found["unit"]]: int(found["number"])})).isoformat()
        at = datetime.fromisoformat(text.strip())
        return (at if at.tzinfo else at.astimezone()).isoformat()
    except (ValueError, OverflowError) as err:
        message = f"{text!r} is no time. Give an age as 30m, 2h or 3d, or a time as 2026-01-31T08:00Z."
        raise typer.BadParameter(message) from err


def as_uri(text: str) -> str:
    """Return the `file:` URI of a path, relative to this folder or with `~`; any other text unchanged."""
    if text == KEEP or not _is_path(text):
        return text
    path = next(text[:at] for at in range(len(text) + 1) if _OPTIONS.fullmatch(text, at))
    absolute = Path(os.path.abspath(Path(path).expanduser()))  # noqa: PTH100 - resolve() would follow links, too
    return absolute.as_uri() + ("/" if path.endswith("/") else "") + text[len(path) :]


def _is_path(text: str) -> bool:
    if text.startswith(_BEGINNINGS):
        return True
    if text in ("", KEEP) or (":" in text and _SCHEME.fullmatch(text.partition(":")[0])):
        return False
    return Path(text).is_file() or ("/" in text and Path(text).parent.is_dir())


def keys(given: Sequence[str]) -> list[str]:
    """Return public keys: those given, and those of the files that are named instead. Raises BadParameter."""
    return [key for text in given for key in (_keys_of(text) if _is_file(text) else guest_entries("ssh_keys", text))]


def _is_file(text: str) -> bool:
    return text.startswith(_BEGINNINGS) or (" " not in text and Path(text).is_file())


def _keys_of(name: str) -> list[str]:
    try:
        with Path(name).expanduser().open(encoding="utf-8") as file:
            text = file.read(_LARGEST)
    except (OSError, ValueError) as err:
        why = getattr(err, "strerror", None) or "it is no text"
        raise typer.BadParameter(f"Cannot read public keys from {name}: {why}.") from err
    if "PRIVATE KEY" in text:
        raise typer.BadParameter(f"{name} is a private key, which must stay with you. Give the public one: {name}.pub")
    lines = [line.strip() for line in text.splitlines()]
    found = [key for line in lines if line and not line.startswith("#") for key in guest_entries("ssh_keys", line)]
    if not found:
        raise typer.BadParameter(f"{name} has no public key.")
    return found
