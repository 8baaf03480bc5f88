"""Signatures, compared with those of botocore for the same requests."""

from datetime import UTC, datetime
from unittest.mock import patch
from urllib.parse import quote, urlencode

import botocore.auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from hypothesis import given
from hypothesis import strategies as st

from worker_service.transfer import sigv4

NOW = datetime(2026, 5, 4, 3, 2, 1, tzinfo=UTC)
words = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=20)
digests = st.sampled_from([sigv4.EMPTY, sigv4.UNSIGNED, "ab" * 32])


@given(st.sampled_from(["GET", "PUT", "POST", "HEAD", "DELETE"]), words, st.dictionaries(words, words), digests, words)
def test_signature_equals_that_of_botocore(method, name, query, payload, meta):
    path = quote(f"/bucket/{name.replace('/', '_')}", safe="/-_.~")
    query = urlencode(
        sorted((quote(k, safe=""), quote(v, safe="")) for k, v in query.items()), quote_via=lambda s, *_: s
    )
    extra = {"x-amz-meta-name": quote(meta)}
    key = sigv4.Key("AKIDEXAMPLE", "secret/with+signs", "eu-central-1")
    ours = sigv4.signed(sigv4.Request(method, "s3.example.org:9000", path, query, payload), key, NOW, extra)

    url = f"https://s3.example.org:9000{path}" + (f"?{query}" if query else "")
    request = AWSRequest(method, url, headers={"X-Amz-Content-SHA256": payload, **extra})
    request.context["payload_signing_enabled"] = True
    with patch.object(botocore.auth, "get_current_datetime", lambda **_: NOW.replace(tzinfo=None)):
        signer = botocore.auth.S3SigV4Auth(Credentials(key.access_key_id, key.secret), "s3", key.region)
        with patch.object(signer, "payload", lambda _request: payload):
            signer.add_auth(request)
    assert ours["Authorization"] == request.headers["Authorization"]


def test_key_does_not_show_its_secret():
    assert "secret" not in repr(sigv4.Key("AKID", "secret", "r"))
