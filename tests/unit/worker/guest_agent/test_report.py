"""The untrusted report of a guest: entries move forward only, and time may run out."""

import json
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker_service.contract import Software, SoftwareState
from worker_service.guest_agent.progress import changed_at
from worker_service.guest_agent.readiness import State, judge
from worker_service.guest_agent.report import MAX_LINE, MAX_LOG, Event, Report, describe, fold, parse, read

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
PENDING, INSTALLING, INSTALLED, FAILED = SoftwareState


def log(*events):
    return "".join(f"{json.dumps(event)}\n" for event in events).encode()


def said(event, name="", **more):
    return {"event": event, "name": name, **more}


UP, DONE = said("up"), said("done")
A, A_DONE = said("installing", "a"), said("installed", "a", version="1.2-3")
B, B_DONE = said("installing", "b=2*"), said("installed", "b=2*", version="2.0")


def states(report):
    return [entry.state for entry in report.software]


def folded(*events, soft_list=("a", "b=2*")):
    return fold(soft_list, parse(log(*events)))


@pytest.mark.parametrize(
    ("events", "expected", "up", "done"),
    [
        ([], [PENDING, PENDING], False, False),
        ([UP], [PENDING, PENDING], True, False),
        ([UP, A], [INSTALLING, PENDING], True, False),
        ([UP, A, A_DONE], [INSTALLED, PENDING], True, False),
        ([UP, A, A_DONE, A], [INSTALLED, PENDING], True, False),
        ([UP, A, UP, A, A_DONE, B, B_DONE, DONE], [INSTALLED, INSTALLED], True, True),
        ([UP, A, said("failed", "a", tail="E: no")], [FAILED, PENDING], True, False),
        ([said("failed", "a"), A_DONE], [FAILED, PENDING], True, False),
        ([said("installed", "c"), said("installed", "b")], [PENDING, PENDING], True, False),
        ([said("up", "a"), A, said("up", "a")], [INSTALLING, PENDING], True, False),
    ],
)
def test_entries_only_move_on(events, expected, up, done):
    report = folded(*events)
    assert (states(report), report.up, report.done) == (expected, up, done)


def test_log_for_users_is_readable():
    events = [
        UP,
        A,
        A_DONE,
        B,
        said("failed", "b=2*", tail="Reading lists...\nE: no"),
        said("failed", tail="no apt"),
        DONE,
    ]
    assert describe(parse(log(*events, said("alive"), said("working", "c", beat=1), said("installed", "c")))) == [
        "The guest is up.",
        "Installing a.",
        "a is installed, version 1.2-3.",
        "Installing b=2*.",
        "b=2* could not be installed:",
        "    Reading lists...",
        "    E: no",
        "The agent cannot install anything:",
        "    no apt",
        "The agent has finished.",
        "c is installed.",
    ]


def test_log_for_users_is_sanitized_and_bounded():
    words = "\x1b[31m\n" + "x" * 1000
    lines = describe(parse(log(*[said(kind, words, version=words) for kind in ("installing", "installed")] * 1000)))
    assert len(lines) == 200
    assert all(line.isprintable() and len(line) < 400 for line in lines)
    assert describe([]) == []


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"garbage",
        b"[]",
        b"null",
        b'"up"',
        b"{}",
        b'{"event": 7}',
        b'{"event": "explode"}',
        b'{"event": "installed", "name": ["a"]}',
        b'{"event": "installed", "name": "a", "version": null}',
        b'{"event": "installed", "name": "\xff\xfe"}',
        b"\x00\x1b[2J",
        b"[" * (MAX_LINE - 1),
        b'{"event": "up", "x": ' + b"[" * 4000,
        b'{"event": "up", "x": "' + b"x" * MAX_LINE + b'"}',
        b'{"event": "insta' + log(UP).strip(),
    ],
)
def test_lines_that_are_none_are_passed_over(line):
    assert list(parse(line + b"\n" + log(A))) == [Event(event="installing", name="a")]


def test_line_counts_once_it_is_whole():
    whole = log(UP, A, A_DONE)
    observed = [states(fold(["a"], parse(whole[:end])))[0] for end in range(len(whole) + 1)]
    assert observed == sorted(observed, key=list(SoftwareState).index)
    assert observed[-2] is INSTALLING
    assert observed[-1] is INSTALLED


def test_more_than_the_limit_is_not_read(tmp_path):
    path = tmp_path / "agent.log"
    path.write_bytes(b"x" * MAX_LOG + b"\n" + log(A_DONE))
    content, written = read(path)
    assert len(content) == MAX_LOG
    assert written > 0
    assert list(parse(content)) == list(parse(path.read_bytes())) == []


def test_no_log_and_no_link_is_read(tmp_path):
    assert read(tmp_path / "none") == (b"", 0.0)
    (tmp_path / "secret").write_text("s")
    (tmp_path / "agent.log").symlink_to(tmp_path / "secret")
    with pytest.raises(OSError, match="symbolic"):
        read(tmp_path / "agent.log")


def test_text_for_users_is_sanitized():
    tail = "\n".join(f"line {n}" for n in range(50)) + "\x1b]0;title\x07\r\nE: \x9b31m\u202e \t."
    entry = folded(said("failed", "a", tail=tail)).failed
    assert len(entry.tail.splitlines()) == 20
    assert entry.tail.endswith("E: ?31m?  .")
    assert entry.tail.isascii()
    assert "\x1b" not in entry.tail
    version = folded(said("installed", "a", version="1\n" + "9" * 1000)).software[0].version
    assert len(version) == 100
    assert "\n" not in version


@given(st.binary(max_size=300), st.lists(st.sampled_from([UP, A, A_DONE, B, B_DONE, DONE]), max_size=6))
def test_any_guest_output_gives_a_report(garbage, events):
    report = fold(("a", "b=2*"), parse(garbage + b"\n" + log(*events)))
    assert [entry.name for entry in report.software] == ["a", "b=2*"]
    verdict = judge(report, guest_agent=False, since=NOW, limit_s=60, now=NOW)
    assert verdict.state in State


FAILURE = said("failed", "a", tail="E: Unable to locate package a")


@pytest.mark.parametrize(
    ("soft_list", "events", "guest_agent", "after_s", "state", "words"),
    [
        ("ab", [], False, 0, State.AWAITED, "has not reported"),
        ("ab", [], True, 0, State.AWAITED, "Saltern's agent in it has not reported"),
        ("ab", [UP], False, 60, State.AWAITED, "0 of 2 installed"),
        ("ab", [UP, A], False, 0, State.AWAITED, "Installing 1 of 2: a."),
        ("ab", [UP, A, A_DONE], False, 0, State.AWAITED, "1 of 2 installed"),
        ("ab", [UP, A, A_DONE, B], False, 0, State.AWAITED, "Installing 2 of 2: b=2*."),
        ("ab", [UP, A, A_DONE, B, B_DONE], False, 0, State.AWAITED, "2 of 2 installed; finishing"),
        ("ab", [UP, A, A_DONE, B, B_DONE, DONE], False, 9999, State.READY, ""),
        ("ab", [UP, A_DONE, DONE], False, 0, State.AWAITED, "1 of 2 installed"),
        ("ab", [UP, A, FAILURE], False, 0, State.FAILED, "Unable to locate package a"),
        ("ab", [UP, said("failed", tail="no manager")], False, 0, State.FAILED, "no manager"),
        ("ab", [UP, A], False, 61, State.FAILED, "Installing 1 of 2: a."),
        ("ab", [], False, 61, State.FAILED, "neither cloud-init nor Saltern's agent nor qemu-guest-agent"),
        ("ab", [], True, 61, State.FAILED, "qemu-guest-agent answers"),
        ("", [], False, 60, State.AWAITED, "has not reported"),
        ("", [], False, 61, State.FAILED, "neither cloud-init"),
        ("", [], True, 61, State.READY, ""),
        ("", [UP], False, 61, State.READY, ""),
    ],
)
def test_readiness_follows_from_report_and_time(soft_list, events, guest_agent, after_s, state, words):
    names = ("a", "b=2*") if soft_list else ()
    now = NOW + timedelta(seconds=after_s)
    verdict = judge(folded(*events, soft_list=names), guest_agent=guest_agent, since=NOW, limit_s=60, now=now)
    assert verdict.state is state
    assert words in verdict.message
    assert [entry.name for entry in verdict.software] == list(names)


def beat(number):
    return {"event": "working", "beat": number}


@pytest.mark.parametrize(
    ("before", "after", "further"),
    [
        ([], [UP], True),
        ([UP], [UP], False),  # it boots in a loop
        ([UP, A], [UP, A], False),
        ([UP], [A], True),
        ([UP, A], [A_DONE], True),
        ([UP, A], [beat(1)], True),
        ([UP, A, beat(1)], [beat(2)], True),
        ([UP, A, beat(1)], [UP, A, beat(1)], False),  # as far as in the boot before, and no further
        ([UP, A, beat(2)], [UP, A, beat(1)], False),
        ([UP, A, beat(2)], [UP, A, beat(1), beat(2), beat(3)], True),
        ([UP, A, beat(5), A_DONE, B], [beat(1)], True),  # counted for each entry separately
        ([UP, A_DONE, B_DONE], [DONE], True),
        ([UP, A, FAILURE], [FAILURE], False),
    ],
)
def test_only_a_changed_report_is_progress(tmp_path, before, after, further):
    first, second = folded(*before), folded(*before, *after)
    assert (first != second) is further
    assert changed_at(tmp_path, "life", first, 100.0) == 100.0
    assert changed_at(tmp_path, "life", first, 150.0) == 100.0
    assert changed_at(tmp_path, "life", second, 200.0) == (200.0 if further else 100.0)
    assert changed_at(tmp_path, "another", second, 300.0) == 300.0


def test_progress_that_cannot_be_remembered_is_when_it_wrote(tmp_path):
    (tmp_path / "agent.progress.json").write_bytes(b"{")
    assert changed_at(tmp_path, "life", folded(UP), 100.0) == 100.0
    assert changed_at(tmp_path, "life", folded(UP), 200.0) == 100.0
    assert changed_at(tmp_path / "gone", "life", folded(UP), 300.0) == 300.0


@pytest.mark.parametrize("number", ["1e99", "-1", "true", '"1"', "9" * 400])
def test_beat_that_is_no_number_is_none(number):
    line = f'{{"event": "working", "beat": {number}}}\n'.encode()
    assert fold((), parse(log(UP) + line)) == Report(up=True)


def test_version_is_shown():
    assert folded(A_DONE).software[0] == Software(name="a", state=INSTALLED, version="1.2-3")
