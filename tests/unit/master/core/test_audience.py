"""Texts with two forms: who may see the workers reads one, all others the other, also in JSON and after a cut."""

import json

import pytest

from master_service.core.audience import full_text, pick_in_json, public_text, two_forms, without_marks

FULL, PUBLIC = 'w1 has 5 of 8 MiB, "a" \\ is needed', "no room"
TEXT = f"start: {two_forms(FULL, PUBLIC)}; try 2"


def test_each_audience_reads_its_form():
    assert full_text(TEXT) == f"start: {FULL}; try 2"
    assert public_text(TEXT) == "start: no room; try 2"
    assert full_text("plain") == public_text("plain") == "plain"
    twice = two_forms("1", "one") + two_forms("2", "two")
    assert (full_text(twice), public_text(twice)) == ("12", "onetwo")


@pytest.mark.parametrize("ascii_only", [True, False])
@pytest.mark.parametrize("value", [TEXT, {"a": [TEXT, "b"], "c": TEXT}, [TEXT, TEXT]])
def test_json_has_the_form_of_its_reader(value, ascii_only):
    body = json.dumps(value, ensure_ascii=ascii_only).encode()
    for sees, form in ((True, FULL), (False, PUBLIC)):
        picked = json.loads(pick_in_json(body, sees_workers=sees))
        expected = f"start: {form}; try 2"
        assert picked == json.loads(json.dumps(value).replace(json.dumps(TEXT)[1:-1], json.dumps(expected)[1:-1]))


@pytest.mark.parametrize("most", range(len(TEXT)))
def test_cut_text_never_shows_the_other_form(most):
    cut = TEXT[:most]
    assert "MiB" not in public_text(cut)
    for ascii_only in (True, False):
        body = json.dumps({"a": cut, "b": "end"}, ensure_ascii=ascii_only).encode()
        public = json.loads(pick_in_json(body, sees_workers=False))
        assert (public, public["a"]) == ({"a": public_text(cut), "b": "end"}, public_text(cut))
        assert json.loads(pick_in_json(body, sees_workers=True)) == {"a": full_text(cut), "b": "end"}


@pytest.mark.parametrize("typed", ["\\ue000", "\\\\ue000", "\\ue000a\\ue001b\\ue002", "a\\", 'x"\\ue001'])
def test_typed_escapes_stay_as_they_were_typed(typed):
    for ascii_only in (True, False):
        body = json.dumps({"label": typed, "reason": TEXT}, ensure_ascii=ascii_only).encode()
        assert json.loads(pick_in_json(body, sees_workers=False))["label"] == typed


def test_marks_from_outside_are_removed():
    assert without_marks(two_forms("a", "b")) == "ba"
    assert public_text(two_forms(two_forms("full", "hidden"), "public")) == "public"
