"""The fetched document for a guest: its digest is checked."""

import hashlib

import pytest

from worker_service.core.errors import BadImage
from worker_service.core.settings import ImagePolicy
from worker_service.steps.seed_files import fetched
from worker_service.transfer.uri import parse

DOCUMENT = b"#cloud-config\npackages: [nginx]\n"


@pytest.fixture
def uri(tmp_path):
    (tmp_path / "user-data").write_bytes(DOCUMENT)
    return f"file://{tmp_path}/user-data"


def test_document_with_the_right_digest_is_used(tmp_path, uri):
    policy = ImagePolicy(read_roots=(tmp_path,))
    assert fetched(parse(uri), policy) == DOCUMENT
    digest = hashlib.sha256(DOCUMENT).hexdigest()
    assert fetched(parse(f"{uri}#sha256={digest}"), policy) == DOCUMENT


def test_document_with_a_wrong_digest_is_refused(tmp_path, uri):
    policy = ImagePolicy(read_roots=(tmp_path,))
    found, expected = hashlib.sha256(DOCUMENT).hexdigest(), "0" * 64
    with pytest.raises(BadImage, match=f"user-data.*{found}.*{expected}") as refused:
        fetched(parse(f"{uri}#sha256={expected}"), policy)
    assert not refused.value.retry
