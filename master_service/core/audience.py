"""Sentences with two forms: one for those who may see the workers, and one for all others. Pure.

The room that is left on a worker tells what others run there. A sentence with such numbers is made once, by
`two_forms`, and kept as one text with both forms. Each way out of the master picks one: HTTP
(`api.protocol.audience`), logs, notices.
"""

from __future__ import annotations

import re
from typing import Final

NO_ROOM: Final = "no worker has room for it"
"""The form for others of a sentence about room."""

_OPEN, _BETWEEN, _CLOSE = "\ue000", "\ue001", "\ue002"
"""Private characters of Unicode, which no checked text of a user has. A text that was cut has no `_CLOSE`."""
_MARKS: Final = re.compile(f"[{_OPEN}{_BETWEEN}{_CLOSE}]")
_BEGIN: Final = f"{_OPEN}([^{_BETWEEN}{_CLOSE}]*)"
_IN_TEXT: Final = re.compile(f"{_BEGIN}(?:{_BETWEEN}([^{_CLOSE}]*))?{_CLOSE}?")
_IN_JSON: Final = re.compile(rf'{_OPEN}([^{_BETWEEN}{_CLOSE}"]*)(?:{_BETWEEN}((?:[^{_CLOSE}"\\]|\\.)*))?{_CLOSE}?')
_ESCAPES: Final = re.compile(rb"\\(?:u(e00[012])|.)", re.DOTALL)
"""Each escape of JSON from left to right, so that an escaped backslash before `ue000` begins none."""


def two_forms(full: str, public: str = NO_ROOM) -> str:
    """Return a text that reads `full` for those who may see the workers, and `public` for all others."""
    return f"{_OPEN}{without_marks(public)}{_BETWEEN}{without_marks(full)}{_CLOSE}"


def without_marks(text: str) -> str:
    """Return a text from outside as one that has no second form."""
    return _MARKS.sub("", text)


def full_text(text: str) -> str:
    """Return a text for those who may see the workers."""
    return _IN_TEXT.sub(_full, text)


def public_text(text: str) -> str:
    """Return a text for all others."""
    return _IN_TEXT.sub(r"\1", text)


def pick_in_json(body: bytes, *, sees_workers: bool) -> bytes:
    """Return JSON with the form of each text for one audience."""
    if b"\\ue00" in body:  # some writers of JSON escape what is not ASCII
        body = _ESCAPES.sub(lambda found: chr(int(found[1], 16)).encode() if found[1] else found[0], body)
    if _OPEN.encode() not in body:
        return body
    return _IN_JSON.sub(_full if sees_workers else r"\1", body.decode()).encode()


def _full(found: re.Match[str]) -> str:
    return found[1] if found[2] is None else found[2]
