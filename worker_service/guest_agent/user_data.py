"""The user's document for cloud-init: its type, by its first line, and its place in the seed. Pure.

cloud-init reads the type of each part of a seed from its MIME header and not from its first line, so a part needs its
own type. Source: cloud-init's "User data formats", and `INCLUSION_TYPES_MAP` in its `handlers`.
"""

from __future__ import annotations

import email
import email.encoders
from collections.abc import Mapping
from email.message import Message
from email.mime.base import MIMEBase
from typing import Final

from worker_service.core.errors import Refused

_TYPES: Final[Mapping[str, str]] = {
    "#cloud-config-archive": "cloud-config-archive",
    "#cloud-config": "cloud-config",
    "#cloud-boothook": "cloud-boothook",
    "#include-once": "x-include-once-url",
    "#include": "x-include-url",
    "#part-handler": "part-handler",
    "## template: jinja": "jinja2",
    "#!": "x-shellscript",
}
"""Beginning of a document -> its type, below `text`. The first one that fits counts."""
_LONGEST: Final = max(map(len, _TYPES))
_MIME: Final = "mime"
_MIME_SIGN: Final = b"mime-version:"
_MIME_BYTES: Final = 4096
_ROOTS: Final[Mapping[str, str]] = {"cloud-config": "mapping", "cloud-config-archive": "sequence"}
"""What a YAML document of a type has to be: the ids of PyYAML's nodes."""


def check(data: bytes, name: str) -> None:
    """Raise Refused, which begins with `name`, for a document that cloud-init would ignore."""
    kind = _kind(data)
    if kind is None:
        known = ", ".join(_TYPES)
        raise Refused(f"{name} is no document for cloud-init: it begins with none of {known}, and is no MIME message.")
    if kind == _MIME and _message(data) is None:
        raise Refused(
            f"{name} is no MIME message: its headers name no parts. Make it with `cloud-init devel make-mime`."
        )
    if kind in _ROOTS:
        _check_yaml(data, name, _ROOTS[kind])


def part(data: bytes) -> Message:
    """Return a checked document as a part of a MIME message, under its own type."""
    kind = _kind(data) or "plain"
    message = _message(data) if kind == _MIME else None
    return message if message is not None else text_part(data, kind)


def text_part(content: bytes, kind: str) -> MIMEBase:
    """Return a part of the type `text/<kind>`."""
    made = MIMEBase("text", kind)
    made.set_payload(content)
    email.encoders.encode_base64(made)
    return made


def _kind(data: bytes) -> str | None:
    begins = data.lstrip()[:_LONGEST].decode("ascii", "replace").lower()
    found = next((kind for first, kind in _TYPES.items() if begins.startswith(first)), None)
    return found or (_MIME if _MIME_SIGN in data[:_MIME_BYTES].lower() else None)


def _message(data: bytes) -> Message | None:
    try:
        message = email.message_from_bytes(data)
    except RecursionError:
        return None
    return message if message.is_multipart() or "Content-Type" in message else None


def _check_yaml(data: bytes, name: str, expected: str) -> None:
    import yaml  # noqa: PLC0415 - most VMs have no document

    try:
        # Composed and not constructed: a construction may copy merged keys again and again, until the memory is full.
        root = yaml.compose(data, Loader=yaml.SafeLoader)
    except (yaml.YAMLError, ValueError, RecursionError) as err:
        what = getattr(err, "problem", None) or getattr(err, "reason", None) or "it is nested too deeply"
        mark = getattr(err, "problem_mark", None)
        where = f" in line {mark.line + 1}" if mark else ""
        raise Refused(f"{name} is not YAML: {what}{where}. Correct the document.") from err
    if root is not None and root.id != expected:
        raise Refused(f"{name} is no YAML {expected}, as its first line says. Correct the document.")
