"""Secrets in URIs: what counts as one, what is shown of it, and what that costs."""

import io
import logging
import time

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from worker_service.contract import Changes, Spec
from worker_service.contract.uri import Uri, parse
from worker_service.contract.uri_secrets import (
    URI_PARAMETERS,
    MaskingFormatter,
    has_secret,
    masked,
    masked_parameters,
    masked_uri,
    masked_values,
    shown,
)

CANARY = "hunter2"
SECRETS = {
    # users and passwords
    f"https://ann:{CANARY}@store.example/a": "https://***@store.example/a",
    f"https://{CANARY}@store.example/a": "https://***@store.example/a",
    f"https://:{CANARY}@store.example/a": "https://***@store.example/a",
    f"https://{CANARY}:@store.example/a": "https://***@store.example/a",
    f"https://ann:p@{CANARY}@store.example/a": "https://***@store.example/a",
    f"https://ann:{CANARY}@store.example:8443/a": "https://***@store.example:8443/a",
    f"https://ann:{CANARY}@[fd00::1]:8443/a": "https://***@[fd00::1]:8443/a",
    f"https://ann:{CANARY}@/a": "https://***@/a",
    f"https://ann:{CANARY}@h:x/a": "https://***@h:***/a",
    f"sftp://ann:{CANARY}@store.example/a": "sftp://***@store.example/a",
    f"//{CANARY}@store.example/a": "//***@store.example/a",
    # no URIs, and yet people write them
    f"http://h:{CANARY}/x": "http://h:***/x",
    f"http://h:{CANARY}": "http://h:***",
    "http://h:990099/x": "http://h:***/x",
    f"https://ann:{CANARY}/x@store.example/a": "https://***@store.example/a",
    f"https://ann:{CANARY}?x@store.example/a": "https://***@store.example/a",
    f"https://ann:{CANARY}%40store.example/a": "https://ann:***/a",
    f"https:ann:{CANARY}@store.example/a": "***@store.example/a",
    f"ann:{CANARY}@store.example/a": "***@store.example/a",
    # presigned URLs
    f"https://b.s3.amazonaws.com/k?X-Amz-Signature={CANARY}": "https://b.s3.amazonaws.com/k?X-Amz-Signature=***",
    f"https://h/k?x=1&X-Amz-Security-Token={CANARY}&y=2": "https://h/k?x=1&X-Amz-Security-Token=***&y=2",
    f"https://h/k?AWSAccessKeyId={CANARY}&Signature={CANARY}": "https://h/k?AWSAccessKeyId=***&Signature=***",
    f"https://h/k?X-Goog-Signature={CANARY}": "https://h/k?X-Goog-Signature=***",
    f"https://h/k?GoogleAccessId={CANARY}": "https://h/k?GoogleAccessId=***",
    f"https://h/k?OSSAccessKeyId={CANARY}": "https://h/k?OSSAccessKeyId=***",
    f"https://h/k?sv=2024&sig={CANARY}%3D&se=1": "https://h/k?sv=2024&sig=***&se=1",
    f"https://h/k?temp_url_sig={CANARY}&temp_url_expires=1": "https://h/k?temp_url_sig=***&temp_url_expires=1",
    f"https://h/k?Key-Pair-Id={CANARY}": "https://h/k?Key-Pair-Id=***",
    f"https://h/k?X-Tos-Credential={CANARY}": "https://h/k?X-Tos-Credential=***",
    f"https://h/k?q-ak={CANARY}&q-signature={CANARY}": "https://h/k?q-ak=***&q-signature=***",
    # other parameters
    f"https://h/k?token={CANARY}": "https://h/k?token=***",
    f"https://h/k?access_token={CANARY}#sha256=0": "https://h/k?access_token=***#sha256=0",
    f"https://h/k?private_token={CANARY}": "https://h/k?private_token=***",
    f"https://h/k?api_key={CANARY}": "https://h/k?api_key=***",
    f"https://h/k?apikey={CANARY}": "https://h/k?apikey=***",
    f"https://h/k?PASSWORD={CANARY}": "https://h/k?PASSWORD=***",
    f"https://h/k?token=a?{CANARY}=b": "https://h/k?token=***",
    f"https://h/k?x=1;token={CANARY}": "https://h/k?x=1;token=***",
    f"https://h/a;jsessionid={CANARY}?x=1": "https://h/a;jsessionid=***",
    f"https://h/a#access_token={CANARY}": "https://h/a#access_token=***",
    # encoded, or within another URI
    f"https://h/k?to%6Ben={CANARY}": "https://h/k?to%6Ben=***",
    f"https://h/k?X%2DAmz%2DSignature={CANARY}": "https://h/k?X%2DAmz%2DSignature=***",
    f"https://h/k?x=1?token={CANARY}": "https://h/k?x=***",
    f"https://h/k?url=https://ann:{CANARY}@h/": "https://h/k?url=***",
    f"https://h/k?url=https%3A%2F%2Fh%2F%3Fsig%3D{CANARY}": "https://h/k?url=***",
    f"https://h/k?u=a%253Fu%253Db%25253Ftoken%25253D{CANARY}": "https://h/k?u=***",
    f"https://ann:{CANARY}@h/k?token={CANARY}": "https://***@h/k?token=***",
}
OPEN = [
    "file:/srv/images/a.qcow2",
    "file:///srv/images/a@b:c.qcow2",
    "file:///srv//a@b.qcow2",
    "https://host/a@b.qcow2",
    "https://host:8443/a:b@c.qcow2",
    "https://host:/a",
    "https://[::1]:8443/a",
    "https://host/a?version=3&tokens_are_not=",
    "https://host/a?keyboard=us&monkey=2&design=x&author=me&passage=3",
    f"https://host/a#sha256={'0f' * 32}",
    "s3://images/debian/a.qcow2?versionId=x",
    "salt://images/a.qcow2?saltenv=base",
    "s3://saved/a?format=raw&compress=zstd",
    "blank:20G",
    "",
]
PROSE = [
    "",
    "It is off.",
    "mail to ann@example.org, or ask git@host:path",
    "at 12:30:01 // x=y: 'a'='b'",
    "root@w1: 'web01' is here already with another cpu_count.",
    "Write it like https://HOST:PORT/image.qcow2, or https://host/image.qcow2.",
    "sftp://store:22/a answered 403 (http://[::1]:8000).",
]


@pytest.mark.parametrize("uri", SECRETS)
def test_secret_is_masked_and_found(uri):
    assert masked_uri(uri) == shown(uri) == SECRETS[uri]
    assert has_secret(uri)
    assert not has_secret(SECRETS[uri])


@pytest.mark.parametrize("uri", SECRETS)
@pytest.mark.parametrize("text", ["{}", "{} broke off: no answer.", "'{}'", "see ({}).", '{{"uri":"{}"}}', "x={}\n"])
def test_secret_is_masked_in_a_text(uri, text):
    made = masked(text.format(uri))
    assert CANARY not in made
    assert made == masked(made)


@pytest.mark.parametrize("uri", OPEN)
def test_uri_without_a_secret_stays_as_it_is(uri):
    assert masked_uri(uri) == shown(uri) == masked(uri) == uri
    assert not has_secret(uri)


@pytest.mark.parametrize("text", PROSE)
def test_sentence_stays_as_it_is(text):
    assert masked(text) == text


@pytest.mark.parametrize(
    "given",
    [
        f"https://ann:my {CANARY}@host/a",
        f"https://ann {CANARY}@host/a",
        f"https:\\\\ann:{CANARY}@host/a",
        f"//{CANARY}\n@host",
        f"ann:a {CANARY}@host",
        "https://ann:" + CANARY * 1000,
    ],
)
def test_text_that_is_no_uri_is_shown_without_its_password(given):
    assert CANARY not in shown(given)


def test_every_form_of_a_uri_is_shown_masked():
    uri = parse(f"https://ann:{CANARY}@host/a?sig={CANARY}")
    assert str(uri) == f"{uri}" == "https://***@host/a?sig=***"
    assert CANARY not in str(Uri(text=f"https://h/a?token={CANARY}", scheme="https", netloc="h", path="/a"))


def test_parameters_of_a_vm_are_masked():
    uri, hidden = f"https://h/a?sig={CANARY}", "https://h/a?sig=***"
    spec = Spec(name="a", **dict.fromkeys(URI_PARAMETERS, uri))
    assert masked_parameters(spec) == Spec(name="a", **dict.fromkeys(URI_PARAMETERS, hidden))
    assert masked_parameters(Changes(cd_image=uri, hda_save_to="")) == Changes(cd_image=hidden, hda_save_to="")
    plain = Spec(name="a", hda_image="blank:1G")
    assert masked_parameters(plain) is plain
    named = {name for name in Spec.__struct_fields__ if name.endswith(("_image", "_save_to", "user_data"))}
    assert set(URI_PARAMETERS) == named


def test_values_are_masked_at_every_depth():
    uri = f"https://h/a?sig={CANARY}"
    assert CANARY not in str(masked_values({"a": [uri, {uri: 1}], "b": (uri, None, 2.5, True)}))
    assert masked_values({"a": [1, None, "x"]}) == {"a": [1, None, "x"]}


def test_log_has_no_secret_of_any_library():
    out = io.StringIO()
    handler = logging.StreamHandler(out)
    handler.setFormatter(MaskingFormatter("%(message)s"))
    log = logging.Logger("some library")  # noqa: LOG001 - no other test gets its lines
    log.addHandler(handler)
    log.info("HTTP Request: GET %s", f"https://h/a?X-Amz-Signature={CANARY}")
    try:
        raise ValueError("https://ann:" + CANARY + "@h/")
    except ValueError:
        log.exception("failed")
    assert out.getvalue().count("***") == 2
    assert CANARY not in out.getvalue()


@given(st.text(alphabet="ab/:@?&;=#%.'\" \\[]{}*0", max_size=60))
@example("//:a/@:a")
@example("//ann:a/b@host:secret/x")
def test_any_text_can_be_masked_and_twice_is_once(text):
    assert masked(masked(text)) == masked(text)
    assert masked_uri(masked_uri(text)) == masked_uri(text)
    assert isinstance(shown(text), str)


REPEATED = [
    "/",
    "//",
    "@",
    ":",
    "=",
    "?a=",
    "&",
    "a:",
    "//@",
    "https://u:",
    "%3F",
    "?a=?b=",
    ";",
    "'",
    "[",
    "://a@",
    "a",
]


@pytest.mark.parametrize("part", REPEATED)
@pytest.mark.parametrize("mask", [masked, masked_uri])
def test_long_text_costs_as_much_as_it_is_long(mask, part):
    """Sixteen times as long: 16 times the work, with room for a noisy machine, and 256 times if it were quadratic."""

    def cost_s(times):
        text, taken = part * (times // len(part)), []
        for _ in range(3):
            begin = time.thread_time()
            mask(text)
            taken.append(time.thread_time() - begin)
        return min(taken)

    assert cost_s(320_000) < 60 * cost_s(20_000) + 0.01
