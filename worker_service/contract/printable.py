"""Text of others on a terminal, in a mail, in a log: only characters that are seen and do nothing else.

Not printable are control characters (C0, DEL and C1, which begin escape sequences), and Unicode's invisible formats,
such as those that reverse a line. `str.isprintable` is the rule for what is accepted, this module for what is shown.
"""

from __future__ import annotations

from typing import Final

_BLANKS: Final = str.maketrans(dict.fromkeys("\t\n\v\f\r\x85\u2028\u2029", " "))


def printable(text: str) -> str:
    """Return a text as one printable line: line ends become blanks, other characters their escapes in Python."""
    return text if text.isprintable() else "".join(map(_shown, text.translate(_BLANKS)))


def printable_lines(text: str) -> str:
    """Return a text with its lines, each of them printable."""
    return "\n".join(printable(line) for line in text.split("\n"))


def _shown(character: str) -> str:
    return character if character.isprintable() else character.encode("unicode_escape").decode()
