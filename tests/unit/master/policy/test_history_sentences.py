"""The sentence of each kind of entry in a VM's history."""

import pytest

from master_service.policy.history_sentences import sentence


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        (("desired", "ann", ("", "running"), "create"), "ann created it; its desired state is running"),
        (("desired", "ann", ("running", "running"), "modify"), "ann modified it"),
        (("desired", "ann", ("running", "halted"), "shutdown"), "ann requested shutdown"),
        (("desired", "op", ("running", "running"), "fence"), "op declared that its worker is switched off"),
        (
            ("desired", "saltern", ("running", "halted"), "follow", "its guest shut it down"),
            "the desired state becomes halted: its guest shut it down",
        ),
        (
            ("desired", "saltern", ("running", "halted"), "give_up", "w1 refuses to start it: no"),
            "the desired state becomes halted: w1 refuses to start it: no",
        ),
        (
            ("desired", "saltern", ("running", "running"), "take_back"),
            "it has its former settings again, because its worker refused the others",
        ),
        (("desired", "saltern", ("running", "halted"), "follow"), "the desired state becomes halted"),
        (
            ("desired", "saltern", ("destroyed", "destroyed"), "destroyed", "w1 does not have it"),
            "it is destroyed: w1 does not have it",
        ),
        (("dispatch", "w1", ("", "start"), "sent, try 1"), "start was sent to w1"),
        (
            ("dispatch", "w1", ("", "start"), "sent, try 2", "it crashed; restart 1 of 5"),
            "start was sent to w1, try 2: it crashed; restart 1 of 5",
        ),
        (("dispatch", "w1", ("", "start"), "accepted"), "w1 accepted the start"),
        (("dispatch", "w1", ("", "start"), "refused: It is full."), "w1 refused the start: It is full."),
        (
            ("dispatch", "w1", ("", "start"), "not delivered: Salt is away."),
            "start did not reach w1: Salt is away.",
        ),
        (("dispatch", "", ("", "start"), "no worker fits"), "start waits: no worker fits"),
        (("observed", "w1", ("", "starting"), "Booting."), "w1 reports starting: Booting."),
        (("observed", "w1", ("starting", "running"), ""), "w1 reports running, was starting"),
        (
            ("observed", "w1", ("running", "halted"), "It is off.", "powered off from outside"),
            "w1 reports halted, was running (powered off from outside): It is off.",
        ),
        (("observed", "w1", ("halted", "halted"), "", "crashed"), "w1 reports halted (crashed)"),
        (("observed", "w1", ("running", "destroyed"), ""), "w1 has destroyed it"),
    ],
)
def test_sentence_says_what_the_entry_says(entry, expected):
    assert sentence(*entry) == expected
