"""A worker's key and the numbers of its events."""

import json
import time

import pytest

from master_service.saltapi.signatures import NotBelieved, verify
from worker_service.contract.signatures import FIELD, key_bytes, key_text, signed_bytes
from worker_service.core.errors import BadRequest
from worker_service.state.identity import Identity

DATA = {"b": [1, 2.5, 1e22, 1e-7, None, True], "a": {"z": "ü\u2028\x00", "y": -1}, "big": (1 << 62)}


def test_key_is_made_once_and_private(tmp_path):
    fingerprint = Identity(tmp_path).fingerprint
    assert Identity(tmp_path).fingerprint == fingerprint
    assert (tmp_path / "identity.pem").stat().st_mode & 0o777 == 0o600
    assert key_text(key_bytes(fingerprint)) == fingerprint


def test_master_verifies_what_a_worker_signed(tmp_path):
    identity = Identity(tmp_path)
    signed = identity.sign(DATA, "nonce", "w1", 7)
    travelled = json.loads(json.dumps(signed))
    assert verify(travelled, "nonce", "w1", identity.fingerprint).counter == 7
    for key in DATA:
        with pytest.raises(NotBelieved):
            verify(travelled | {key: 0}, "nonce", "w1", identity.fingerprint)


def test_signed_bytes_are_these():
    """Another version of a library must write the same: masters and workers may differ."""
    assert signed_bytes(DATA | {FIELD: {}}, "tag", "w1", 3) == (
        b'saltern message 1\n["w1","tag",3,{"a":{"y":-1,"z":"\xc3\xbc\xe2\x80\xa8\\u0000"},'
        b'"b":[1,2.5,1e22,1e-7,null,true],"big":4611686018427387904}]'
    )


def test_numbers_grow_over_starts_losses_and_clocks(tmp_path, monkeypatch):
    identity = Identity(tmp_path)
    assert identity.last_event() == 0
    numbers = [identity.first_event(), identity.next_event(), identity.next_event(), identity.last_event()]
    assert numbers == sorted(numbers)
    monkeypatch.setattr(time, "time", lambda: 0.0)
    assert Identity(tmp_path).first_event() > numbers[-1], "the clock went back"
    monkeypatch.undo()
    (tmp_path / "events.counter").unlink()
    monkeypatch.setattr(time, "time", lambda: 4e9)
    assert Identity(tmp_path).first_event() > numbers[-1], "the file was lost"


@pytest.mark.parametrize("text", [b"", b"garbage", b"-----BEGIN PRIVATE KEY-----\n-----END PRIVATE KEY-----\n"])
def test_broken_key_is_named(tmp_path, text):
    (tmp_path / "identity.pem").write_bytes(text)
    with pytest.raises(BadRequest, match=r"identity\.pem is no Ed25519 key"):
        _ = Identity(tmp_path).fingerprint


@pytest.mark.parametrize(
    "text", ["", "ed25519:", "ed25519:AAAA", "x" * 51, "ed25519:" + "A" * 43 + "\n", "ed25519:" + "é" * 43]
)
def test_other_texts_are_no_key(text):
    with pytest.raises(ValueError, match="a worker's key is"):
        key_bytes(text)
