"""Printable text: which characters are escaped, and that lines stay lines."""

import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker_service.contract.printable import printable, printable_lines


@pytest.mark.parametrize("text", ["", "web01", "Straße 東京 🙂 é", "a b", r"C:\x1b", "-> … ━"])
def test_readable_text_stays(text):
    assert printable(text) == text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[2J", r"\x1b[2J"),
        ("\x9b2J", r"\x9b2J"),
        ("\x7f", r"\x7f"),
        ("\x00\x07\x08", r"\x00\x07\x08"),
        ("a\r\nb\tc\x0bd\x0ce", "a  b c d e"),
        ("\x85\u2028\u2029", "   "),
        ("\u202e\u2066\u200f\u200b\ufeff\xad\u061c", r"\u202e\u2066\u200f\u200b\ufeff\xad\u061c"),
        ("\U000e0041", r"\U000e0041"),
        ("\ud800", r"\ud800"),
        ("\x1c\x1d\x1e", r"\x1c\x1d\x1e"),
    ],
)
def test_other_characters_are_escaped(text, shown):
    assert printable(text) == shown


def test_every_character_becomes_printable():
    everything = "".join(map(chr, range(sys.maxunicode + 1)))
    assert printable(everything).isprintable()


@given(st.text())
def test_lines_stay_lines(text):
    assert all(line.isprintable() for line in printable_lines(text).split("\n"))
    assert printable_lines(text).count("\n") == text.count("\n")
