"""Statuses in both vocabularies: the tables of the command line, of the master and of the README; what may come."""

import pytest
import typer

from master_service.cli.common.statuses import OF_WORKERS, STATUSES, complete, explanation, is_one_of, why_not, word_of
from master_service.planning import status
from tests.unit.test_architecture import REPO


def test_tables_are_those_of_the_master():
    assert set(STATUSES) == {word.value for word in status.MasterStatus}
    assert {word.value: shown.value for word, shown in status.OF_WORKERS.items()} == OF_WORKERS


def test_readme_and_help_have_the_table():
    readme, help_lines = (REPO / "README.md").read_text().splitlines(), explanation().splitlines()
    for shown in STATUSES:
        words = [word for word, of in OF_WORKERS.items() if of == shown]
        cells = (f"`{shown}`", ", ".join(f"`{word}`" for word in words))
        assert f"| {cells[0]} | {cells[1]} |" in readme
        assert f"  {shown:<11} {', '.join(words) or '-'}" in help_lines


@pytest.mark.parametrize("text", ["failed to save", "failed_to_save", "Failed-To-Save "])
def test_word_is_read_in_any_spelling(text):
    assert word_of(text) == "failed to save"


def test_unknown_word_lists_both_vocabularies():
    with pytest.raises(typer.BadParameter, match=r"hlted.*halted, failed.*words are starting, suspended, failed to"):
        word_of("hlted")


def vm(shown, desired="running", real=None):
    return {"name": "web01", "status": shown, "desired": desired, "real": real}


@pytest.mark.parametrize(
    ("words", "subject", "has"),
    [
        (["running"], vm("running", real="running"), True),
        (["paused"], vm("paused", real="suspended"), True),
        (["suspended"], vm("paused", real="suspended"), True),
        (["suspended"], vm("destroying", real="suspended"), False),
        (["failed to save"], vm("failed", real="failed to start"), False),
        (["halted", "failed to start"], vm("failed", real="failed to start"), True),
    ],
)
def test_vm_has_a_status_in_either_vocabulary(words, subject, has):
    assert is_one_of(subject, words) is has


@pytest.mark.parametrize(
    ("words", "subject", "hint"),
    [
        (["running"], vm("halted", "halted"), "`saltern start web01`"),
        (["running"], vm("saving", "halted"), "`saltern start web01`"),
        (["paused"], vm("running"), "`saltern suspend web01`"),
        (["suspended"], vm("running"), "`saltern suspend web01`"),
        (["running"], vm("paused", "paused"), "`saltern resume web01`"),
        (["failed"], vm("halted", "halted"), "its desired state is halted."),
        (["destroyed"], vm("running"), "`saltern destroy web01`"),
        (["running", "halted"], vm("destroying", "destroyed"), "its desired state is destroyed."),
    ],
)
def test_status_that_no_one_desires_will_not_come(words, subject, hint):
    assert "web01 will not be" in why_not(subject, words)
    assert hint in why_not(subject, words)


@pytest.mark.parametrize(
    ("words", "subject"),
    [
        (["running"], vm("pending")),
        (["running"], vm("paused")),
        (["halted"], vm("running")),
        (["paused"], vm("preparing", "paused")),
        (["saving", "halted"], vm("running", "halted")),
        (["failed to save"], vm("saving", "halted")),
        (["destroyed"], vm("destroying", "destroyed")),
        (["running"], vm("halted", "a word of a newer master")),
    ],
)
def test_status_on_the_way_may_come(words, subject):
    assert why_not(subject, words) == ""


def test_shell_completes_words_that_are_read():
    assert complete("s") == ["saving", "starting", "suspended"]
    assert complete("fail") == ["failed", "failed_to_start", "failed_to_save"]
    assert all(word_of(word) for word in complete(""))
