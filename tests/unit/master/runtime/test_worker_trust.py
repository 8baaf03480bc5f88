"""What the master believes: only what an enrolled worker signed, and only once."""

import pytest

from master_service.runtime.worker_trust import WorkerTrust
from master_service.saltapi.signatures import Doubt, NotBelieved
from tests.functional.master.fakes import FakeWorker

W1, W2 = FakeWorker("w1"), FakeWorker("w2")
TAG = "vmachines/w1/alive"
REPLY = {"success": True, "message": "ok", "progress": 0.1, "big": 1 << 60, "name": "ü\u2028", "none": None}


@pytest.fixture
def trust():
    made = WorkerTrust()
    made.keys = {"w1": W1.fingerprint, "w2": W2.fingerprint}
    made.believe_list("w1", W1.sign({}, "nonce", 100), "nonce")
    return made


def doubt(call, *arguments):
    with pytest.raises(NotBelieved) as caught:
        call(*arguments)
    return caught.value.doubt


def test_signed_reply_is_believed(trust):
    assert trust.believe_reply("w1", W1.sign(REPLY, "nonce"), "nonce")["name"] == REPLY["name"]
    assert not trust.doubts


def forged(**changes):
    reply = W1.sign(REPLY, "nonce")
    return reply | changes


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        (W1.sign(REPLY, "another nonce"), Doubt.FORGED),
        (W2.sign(REPLY, "nonce"), Doubt.FORGED),
        (forged(message="other"), Doubt.FORGED),
        (forged(more=1), Doubt.FORGED),
        (forged(signature=forged()["signature"] | {"counter": 7}), Doubt.FORGED),
        (forged(signature=forged()["signature"] | {"value": ""}), Doubt.FORGED),
        (forged(signature=forged()["signature"] | {"value": "not base64"}), Doubt.FORGED),
        (forged(signature={}), Doubt.FORGED),
        (forged(signature=None), Doubt.FORGED),
        ({key: value for key, value in forged().items() if key != "message"}, Doubt.FORGED),
        (REPLY, Doubt.UNSIGNED),
        ("Traceback", Doubt.UNSIGNED),
        (None, Doubt.UNSIGNED),
    ],
    ids=str,
)
def test_other_reply_is_not_believed(trust, reply, expected):
    assert doubt(trust.believe_reply, "w1", reply, "nonce") == expected
    assert trust.doubts == {("w1", expected): 1}


def test_worker_without_a_key_is_not_believed(trust):
    unenrolled = FakeWorker("w3")
    assert doubt(trust.believe_reply, "w3", unenrolled.sign(REPLY, "nonce"), "nonce") == Doubt.NOT_ENROLLED


def test_event_is_believed_once_and_in_order(trust):
    second = W1.sign({"n": 2}, TAG, 102)
    first = W1.sign({"n": 1}, TAG, 101)
    assert trust.believe_event("w1", first, TAG)["n"] == 1
    assert trust.believe_event("w1", first, TAG) is None, "Salt sent it again"
    assert trust.believe_event("w1", second, TAG)["n"] == 2
    assert doubt(trust.believe_event, "w1", first, TAG) == Doubt.REPLAYED
    assert doubt(trust.believe_event, "w1", W1.sign({"n": 0}, TAG, 99), TAG) == Doubt.REPLAYED
    assert trust.doubts == {("w1", Doubt.REPLAYED): 2}


def test_event_is_bound_to_its_tag_and_worker(trust):
    event = W1.sign({}, TAG, 101)
    assert doubt(trust.believe_event, "w1", event, "vmachines/w1/audit") == Doubt.FORGED
    assert doubt(trust.believe_event, "w2", event, TAG) == Doubt.FORGED


def test_event_before_the_first_list_shows_nothing(trust):
    event = W2.sign({}, "vmachines/w2/alive", 1)
    assert doubt(trust.believe_event, "w2", event, "vmachines/w2/alive") == Doubt.EARLY
    assert doubt(trust.believe_event, "w1", W1.sign({}, TAG, 99), TAG) == Doubt.EARLY
    assert not trust.doubts, "it is its own, and no attack"
    assert [trust.should_look_again("w2") for _ in range(2)] == [True, False]
    assert not trust.should_look_again("w3")


def test_later_list_leaves_events_in_flight_alone(trust):
    """A list can overtake an event, and the store decides by time which of the two is newer."""
    trust.believe_list("w1", W1.sign({}, "nonce", 110), "nonce")
    assert trust.believe_event("w1", W1.sign({}, TAG, 105), TAG)
    assert not trust.doubts


def test_new_key_begins_again(trust):
    trust.believe_event("w1", W1.sign({}, TAG, 200), TAG)
    trust.keys = {"w1": W2.fingerprint}
    assert doubt(trust.believe_event, "w1", W1.sign({}, TAG, 201), TAG) == Doubt.FORGED
