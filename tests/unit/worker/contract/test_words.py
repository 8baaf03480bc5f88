"""Names are words: every text that YAML reads as something else is known, and no other value passes for a word."""

import datetime as dt
import itertools
import math
import re

import pytest
import yaml

from worker_service.contract import NAME, Spec
from worker_service.contract.words import HOW, refusal, refusal_of_any, refusal_of_name, yaml_reading


def words_of(text):
    return text.split()


NUMBERS = words_of("""
    0 7 42 0042 0007042 0008 00 -1 +1 1_000 1__0 0x2a 0X2A 0x2A 0x_ 0b101 0b_ 0o17 1.10 1. 0.5 1.0.0 .5 1e3 1E3 1e+3
    1e-3 1.5e3 1.5e+3 1_0.5 12:30:00 12:30 1:30.5 -12:30 190:20:30 .inf -.inf +.Inf .INF .nan .NaN 1.2.3 2147483648
    99999999999999999999 20260101000000000000
""")
BOOLEANS = words_of("""
    on On ON off Off OFF yes Yes YES no No NO true True TRUE false False FALSE
""")
NOTHING = ["null", "Null", "NULL", "~", "None", "", " "]
DATES = ["2024-01-01", "2024-13-45", "2001-12-14t21:59:43.10-05:00", "2001-12-14 21:59:43"]
WORDS = words_of("""
    web01 a 7z v1.10 1.2.3 10.0.0.1 1.10-2 0042-db 2024-01-01-db 2024-1-1 y n Y N e3 1e 1e3x 0xgg 0x 0b 0b12 0o 0o8
    12ab inf nan Inf NaN infinity none NONE nullable oN oFF tRue yEs online no-1 on.1 null0 1-2 1-2-3 _ a_1 0.0.0
    1.e.3 true1
""")
IN_NO_YAML = {"0X2A", "1.0.0", "1.2.3"}
"""Texts of the list of numbers that look like one and are a word."""

SHORT_TEXTS = {
    "".join(each)
    for alphabet, size in (("017abxon.-_eEN", 1), ("017abxon.-_eEN", 2), ("08abxon.-_eE", 3), ("0x.e-_", 4))
    for each in itertools.product(alphabet, repeat=size)
}
"""All short texts of characters that matter to YAML."""


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        *((text, "" if text in IN_NO_YAML else "a number") for text in NUMBERS),
        *((text, "a boolean") for text in BOOLEANS),
        *((text, "nothing") for text in NOTHING),
        *((text, "a date") for text in DATES),
        *((text, "") for text in WORDS),
    ],
)
def test_every_reading_of_a_text(text, kind):
    assert yaml_reading(text) == kind


def is_word_in_yaml(text):
    try:
        return yaml.load(text, yaml.CSafeLoader) == text
    except ValueError:  # `0b_` and the 45th of a month: YAML reads them as what they cannot be
        return False


def test_what_yaml_reads_as_a_word_stays_one():
    names = {text for text in SHORT_TEXTS | {*NUMBERS, *BOOLEANS, *NOTHING, *DATES, *WORDS} if NAME.fullmatch(text)}
    assert len(names) > 2_000
    wrong = [name for name in names if not yaml_reading(name) and not is_word_in_yaml(name)]
    assert wrong == []


def test_only_numbers_of_newer_yaml_are_refused_beyond():
    """PyYAML reads YAML 1.1. Version 1.2 has more numbers, and Salt's command line has `None`."""
    beyond = {name for name in SHORT_TEXTS if NAME.fullmatch(name) and yaml_reading(name) and is_word_in_yaml(name)}
    newer = re.compile(r"[0-9][0-9_]*(\.[0-9_]*)?([eE]-?[0-9]+)?|0o[0-7_]+")
    assert [name for name in beyond if not newer.fullmatch(name)] == []
    assert is_word_in_yaml("None")


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (7042, "the number 7042"),
        (1.1, "the number 1.1"),
        (math.nan, "the number nan"),
        (math.inf, "a number"),
        (1 << 64, "a number"),
        (True, "the boolean true"),
        (None, "nothing"),
        (dt.date(2024, 1, 1), "a date"),
        (b"x", "a bytes"),
        (["a"], "a list"),
        (("a",), "a list"),
        ({"a": "http://user:hush@host"}, "a mapping"),
    ],
)
def test_value_that_is_no_word_is_refused(value, said):
    assert refusal("name", value) == f"name is {said}, not a word. {HOW}"
    assert """'"0042"'""" in HOW


def test_word_is_accepted():
    assert [refusal("name", text) for text in ("0042", "", "on")] == ["", "", ""]


@pytest.mark.parametrize(
    ("parameters", "said"),
    [
        ({}, ""),
        ({"name": "a", "cpu_count": 2, "mem_size": 512, "run_agent": True, "generation": 3, "attempt": 1}, ""),
        ({"name": "a", "protected": False}, ""),
        ({"hda_save_to": None, "soft_list": ["nginx"], "ssh_keys": (), "labels": {"role": "web"}}, ""),
        ({"params": {"timeout_s": 1}}, ""),
        ({"uuid": 10**31}, "uuid is a number"),
        ({"owner": True}, "owner is the boolean true"),
        ({"hda_image": 1.5}, "hda_image is the number 1.5"),
        ({"network": False}, "network is the boolean false"),
        ({"soft_list": 5}, "soft_list is the number 5"),
        ({"soft_list": ["a", 1.22]}, "An entry of soft_list is the number 1.22"),
        ({"ssh_keys": [None]}, "An entry of ssh_keys is nothing"),
        ({"labels": {"tier": 3}}, "The label tier is the number 3"),
        ({"labels": {True: "x"}}, "The name of a label is the boolean true"),
        ({"labels": ["tier"]}, "labels is a list"),
        ({"name": ["a"]}, "name is a list"),
        ({True: "x"}, "The name of a parameter is the boolean true"),
    ],
)
def test_first_parameter_that_is_no_word_is_named(parameters, said):
    assert refusal_of_any(parameters) == (f"{said}, not a word. {HOW}" if said else "")


def test_every_text_of_a_spec_is_a_word():
    texts = {name for name, kind in Spec.__annotations__.items() if "int" not in kind and "bool" not in kind}
    for name in texts:
        assert refusal_of_any({name: 42}) != "", name
    assert [refusal_of_any({name: 42}) for name in {*Spec.__struct_fields__} - texts] == ["", "", ""]


def test_name_that_reads_as_something_else_is_refused():
    assert refusal_of_name("web01") == ""
    why = refusal_of_name("0042")
    assert why.startswith("The name '0042' reads as a number. ")
    assert HOW in why
    assert why.endswith("choose another one, such as 'vm-0042'.")
