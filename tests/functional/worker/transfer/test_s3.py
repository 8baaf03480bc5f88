"""Images from and to S3: a real server that checks signatures, over connections that break and corrupt."""

import hashlib
import json
import os
import re

import httpx2
import msgspec
import pytest
from werkzeug import Response

from tests.lib.stores import S3Server, line
from tests.lib.support import PATIENCE_S, sha256
from worker_service.core.errors import BadImage, Refused, TransferFailed
from worker_service.core.settings import ImagePolicy, S3Store
from worker_service.images.cache import Cache
from worker_service.transfer import s3
from worker_service.transfer.uri import parse

KEY = "6d6c7f0e-0000-4000-8000-000000000000-hda"
TARGET = "s3://disks/saved/a.qcow2"


@pytest.fixture
def store():
    made = S3Server()
    yield made
    made.close()


@pytest.fixture
def disk(tmp_path, monkeypatch):
    """A flattened disk of two and a half parts."""
    monkeypatch.setattr(s3, "_PART", 5 << 20)  # the least that S3 takes
    path = tmp_path / "hda.flat.qcow2"
    path.write_bytes(os.urandom(510) + b"\x55\xaa" + os.urandom((12 << 20) - 512))
    return path


def policy(store, folder, *, endpoint="", networks=("127.0.0.0/8",), save=True, **limits):
    known = msgspec.convert({**store.settings(folder, endpoint=endpoint, save=save)}, S3Store, dec_hook=to_path)
    return ImagePolicy(http_networks=networks, timeout_s=20, stores={"s3://disks": known}, **limits)


def to_path(kind, value):
    return kind(value)


def cache(folder, policy):
    made = Cache(folder / "data", policy)
    made._bases.parent.parent.mkdir(exist_ok=True)
    made.prepare()
    return made


def quiet(done, total):
    """Report to no one."""


def save(writer, disk, observed=None, uri=TARGET, report=quiet):
    digest = sha256(disk)
    token = writer.stage(parse(uri), disk, digest, KEY, report)
    return writer.commit(parse(uri), token, digest, observed, KEY, report)


def test_image_is_fetched_once_and_again_when_changed(store, tmp_path, disk):
    uri, said = store.put("images/a b+c~ä.raw", disk.read_bytes()), []
    uri = uri.replace(" ", "%20")
    shelf = cache(tmp_path, policy(store, tmp_path))
    base = shelf.fetch(parse(uri), "disk", lambda done, total: said.append((done, total)))
    assert base.digest == sha256(disk)
    assert said[-1] == (disk.stat().st_size, disk.stat().st_size)
    said.clear()
    assert shelf.fetch(parse(uri), "disk", lambda *bytes_: said.append(bytes_)) == base
    assert said == []
    store.put("images/a b+c~ä.raw", disk.read_bytes()[:-512])
    assert shelf.fetch(parse(uri), "disk", quiet) != base


def test_interrupted_download_resumes(store, tmp_path, disk):
    uri = parse(store.put("a.raw", disk.read_bytes()))
    with line(store.port) as wire:
        shelf = cache(tmp_path, policy(store, tmp_path, endpoint=f"http://127.0.0.1:{wire.port}"))
        wire.cut_down = 5 << 20
        done = []
        for _try in range(2):
            with pytest.raises(TransferFailed, match=r"broke off|answered"):
                shelf.fetch(uri, "disk", lambda now, _total: done.append(now))
        wire.cut_down = None
        first = len(done)
        assert shelf.fetch(uri, "disk", lambda now, _total: done.append(now)).digest == sha256(disk)
    assert done[first] > 4 << 20  # not from the beginning


def test_change_between_ranges_is_not_mixed(store, tmp_path, disk):
    uri = parse(store.put("a.raw", disk.read_bytes()))
    with line(store.port) as wire:
        shelf = cache(tmp_path, policy(store, tmp_path, endpoint=f"http://127.0.0.1:{wire.port}"))
        wire.cut_down = 5 << 20
        with pytest.raises(TransferFailed):
            shelf.fetch(uri, "disk", quiet)
        wire.cut_down = None
        other = disk.read_bytes()[::-1][:-1024] + bytes(510) + b"\x55\xaa"
        other = disk.read_bytes()[:512] + other[512:]
        store.put("a.raw", other)
        assert shelf.fetch(uri, "disk", quiet).digest == hashlib.sha256(other).hexdigest()


@pytest.mark.parametrize(
    ("status", "retry"), [(b"503 Slow Down", True), (b"500 Oops", True), (b"403 Forbidden", False)]
)
def test_server_error_is_reported(tmp_path, store, httpserver, status, retry):
    body = b"<?xml version='1.0'?><Error><Code>Because</Code><Message>m</Message></Error>"
    code = int(status[:3])
    httpserver.expect_request("/disks/a.raw").respond_with_data(body, code, {"Retry-After": "45"})
    with pytest.raises(TransferFailed, match=f"answered {code} Because") as failure:
        cache(tmp_path, policy(store, tmp_path, endpoint=httpserver.url_for("/"))).fetch(
            parse("s3://disks/a.raw"), "disk", quiet
        )
    assert failure.value.retry is retry
    assert failure.value.wait_s == (45 if retry else 0)


def test_wrong_key_is_said_and_not_shown(tmp_path, store, disk):
    uri = store.put("a.raw", disk.read_bytes())
    rules = policy(store, tmp_path)
    (tmp_path / "s3.secret").write_text("wrong-secret-canary")
    with pytest.raises(TransferFailed, match="403 SignatureDoesNotMatch") as failure:
        cache(tmp_path, rules).fetch(parse(uri), "disk", quiet)
    assert "canary" not in str(failure.value)


def test_more_bytes_than_announced_are_refused(tmp_path, store, httpserver):
    httpserver.expect_request("/disks/a.raw").respond_with_data(bytes(4 << 20), headers={"ETag": '"v"'})
    rules = policy(store, tmp_path, endpoint=httpserver.url_for("/"), max_download_gib=0)
    with pytest.raises(BadImage, match="more bytes"):
        cache(tmp_path, rules).fetch(parse("s3://disks/a.raw"), "disk", quiet)


def test_policy_holds_for_endpoints_too(tmp_path, store, httpserver):
    reader = s3.S3(policy(store, tmp_path, networks=()))
    with pytest.raises(Refused, match="not a public address"):
        reader.head(parse("s3://disks/a.raw"))
    httpserver.expect_request("/disks/a.raw").respond_with_data("", 307, {"Location": "http://127.0.0.1:1/"})
    with pytest.raises(TransferFailed, match="at another endpoint"):
        s3.S3(policy(store, tmp_path, endpoint=httpserver.url_for("/"))).head(parse("s3://disks/a.raw"))
    rules = policy(store, tmp_path, save=False)
    for bad in ("s3://other/a.raw", "s3://me:pw@disks/a", "s3://disks/", "s3://disks/a//b", "s3://disks/../a"):
        with pytest.raises(Refused):
            s3.S3(rules).check(parse(bad))
    with pytest.raises(Refused, match="not saved to"):
        s3.S3(rules).check(parse(TARGET), write=True)


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o666])
def test_secret_that_others_can_read_is_not_used(tmp_path, store, mode):
    rules = policy(store, tmp_path)
    (tmp_path / "s3.secret").chmod(mode)
    with pytest.raises(Refused, match="chmod 600"):
        s3.S3(rules).head(parse("s3://disks/a.raw"))


# Saving


def test_object_is_invisible_until_it_is_whole(store, tmp_path, disk):
    writer = s3.S3(policy(store, tmp_path))
    assert writer.observe(parse(TARGET)) is None
    token = writer.stage(parse(f"{TARGET}?format=qcow2"), disk, sha256(disk), KEY, quiet)
    assert store.keys() == []
    saved = writer.commit(parse(TARGET), token, sha256(disk), None, KEY, quiet)
    assert saved == TARGET
    assert store.get("saved/a.qcow2") == disk.read_bytes()
    writer.note(saved, b'{"format": "qcow2"}')
    assert json.loads(store.get("saved/a.qcow2.manifest.json")) == {"format": "qcow2"}
    assert store.uploads() == []
    assert not list(tmp_path.glob("*.upload"))


def test_known_target_is_replaced(store, tmp_path, disk):
    store.put("saved/a.qcow2", b"old")
    writer = s3.S3(policy(store, tmp_path))
    assert save(writer, disk, writer.observe(parse(TARGET))) == TARGET
    assert store.get("saved/a.qcow2") == disk.read_bytes()


def test_changed_target_is_kept_and_a_conflict_name_used(store, tmp_path, disk):
    store.put("saved/a.qcow2", b"somebody else's work")
    saved = save(s3.S3(policy(store, tmp_path)), disk, None)
    assert "/saved/a.conflict-" in saved
    assert store.get("saved/a.qcow2") == b"somebody else's work"
    assert store.get(parse(saved).path[1:]) == disk.read_bytes()
    assert store.uploads() == []
    assert save(s3.S3(policy(store, tmp_path)), disk, None) == saved  # after a crash before that was noted
    assert len(store.keys()) == 2


def test_concurrent_write_is_not_overwritten(store, tmp_path, disk, monkeypatch):
    writer = s3.S3(policy(store, tmp_path))
    token = writer.stage(parse(TARGET), disk, sha256(disk), KEY, quiet)
    real = writer._complete

    def late(*arguments):
        store.put("saved/a.qcow2", b"a moment earlier")
        real(*arguments)

    monkeypatch.setattr(writer, "_complete", late)
    with pytest.raises(TransferFailed, match="changed during the upload"):
        writer.commit(parse(TARGET), token, sha256(disk), None, KEY, quiet)
    assert store.get("saved/a.qcow2") == b"a moment earlier"


def test_saved_already_before_a_crash(store, tmp_path, disk):
    writer, said = s3.S3(policy(store, tmp_path)), []
    save(writer, disk)
    assert save(writer, disk, None, report=lambda *bytes_: said.append(bytes_)) == TARGET
    assert said == []
    assert store.keys() == ["saved/a.qcow2"]


def test_cut_off_three_times_and_then_whole(store, tmp_path, disk):
    with line(store.port) as wire:
        writer = s3.S3(policy(store, tmp_path, endpoint=f"http://127.0.0.1:{wire.port}"))
        for limit in (1 << 10, 3 << 20, 5 << 20):
            wire.cut_up = limit
            with pytest.raises(TransferFailed):
                save(writer, disk)
            assert store.keys() == []
        wire.cut_up = None
        assert save(writer, disk) == TARGET
    assert store.get("saved/a.qcow2") == disk.read_bytes()
    assert store.uploads() == []  # those of the broken tries are aborted


def test_line_that_spoils_it_is_found_out_in_time(store, tmp_path, disk):
    with line(store.port) as wire:
        writer = s3.S3(policy(store, tmp_path, endpoint=f"http://127.0.0.1:{wire.port}"))
        wire.spoil_up = 1 << 20
        with pytest.raises(TransferFailed, match="got other bytes"):
            save(writer, disk)
    assert store.keys() == []


def test_destroyed_in_the_middle_nothing_stays(store, tmp_path, disk):
    def report(done, total):
        if done > 6 << 20:
            raise InterruptedError

    writer = s3.S3(policy(store, tmp_path))
    with pytest.raises(InterruptedError):
        save(writer, disk, report=report)
    assert store.uploads() == ["saved/a.qcow2"]
    writer.discard(parse(TARGET), disk, KEY)
    assert (store.uploads(), store.keys()) == ([], [])
    writer.discard(parse(TARGET), disk, KEY)  # again: this is no change


# Places that do not say what they hold

WRITE_ONLY = ("s3:PutObject", "s3:AbortMultipartUpload")


def commit(writer, store, disk, *allowed):
    """Save as a helper does, with the permissions of the worker, and return the URI with what the store has then."""
    store.allow(*allowed)
    try:
        observed = writer.observe(parse(TARGET))
        saved = save(writer, disk, observed)
        assert writer.manifest(parse(saved)) is None
        writer.note(saved, b"{}")
        writer.discard(parse(TARGET), disk, KEY)
    finally:
        store.allow()
    assert observed is None
    return saved, sorted(store.keys())


def test_write_only_place_is_saved_to(store, tmp_path, disk):
    assert commit(s3.S3(policy(store, tmp_path)), store, disk, *WRITE_ONLY) == (
        TARGET,
        ["saved/a.qcow2", "saved/a.qcow2.manifest.json"],
    )
    assert store.get("saved/a.qcow2") == disk.read_bytes()
    assert store.uploads() == []


def test_object_at_a_write_only_place_is_not_replaced(store, tmp_path, disk):
    store.put("saved/a.qcow2", b"of another")
    saved, keys = commit(s3.S3(policy(store, tmp_path)), store, disk, *WRITE_ONLY)
    assert "/saved/a.conflict-" in saved
    name = saved.removeprefix("s3://disks/")
    assert keys == sorted([name, f"{name}.manifest.json", "saved/a.qcow2"])
    assert store.get("saved/a.qcow2") == b"of another"
    assert store.get(name) == disk.read_bytes()
    # after a crash before that was noted: the same names, and the manifest of that try stays
    again, more = commit(s3.S3(policy(store, tmp_path)), store, disk, *WRITE_ONLY)
    assert again == saved
    assert set(keys) < set(more)
    assert all(key.endswith(".manifest.json") or ".manifest.conflict-" in key for key in {*more} - {*keys})
    assert store.uploads() == []


def test_upload_that_may_not_be_aborted_is_left(store, tmp_path, disk):
    writer, done = s3.S3(policy(store, tmp_path)), []

    def report(now, total):
        done.append(now)
        if len(done) > 4:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        save(writer, disk, report=report)
    saved, _keys = commit(writer, store, disk, "s3:PutObject")
    assert saved == TARGET


def test_store_that_confirms_nothing_must_be_readable(store, tmp_path, disk, monkeypatch):
    monkeypatch.setattr(s3, "_confirms", lambda *_: False)
    for _try in range(3):  # also when the tries before have left it under both names
        with pytest.raises(TransferFailed, match="s3:GetObject") as failure:
            commit(s3.S3(policy(store, tmp_path)), store, disk, *WRITE_ONLY)
        assert not failure.value.retry
    assert len(store.keys()) == 2
    assert store.uploads() == []


class Secretive:
    """Passes requests to a store, and answers 403 for a missing key: its caller may not list the bucket."""

    def __init__(self, httpserver, port):
        self.port = port
        httpserver.expect_request(re.compile("/.*")).respond_with_handler(self.serve)

    def serve(self, request):
        target = request.full_path if request.query_string else request.path
        answer = httpx2.request(
            request.method,
            f"http://127.0.0.1:{self.port}{target.replace(' ', '%20')}",
            headers=dict(request.headers),
            content=request.get_data(),
            trust_env=False,
            timeout=PATIENCE_S,
        )
        if answer.status_code == 404 and request.method in ("GET", "HEAD"):
            return Response("<Error><Code>AccessDenied</Code></Error>", 403)
        kept = {"etag", "x-amz-meta-sha256", "content-type", "content-length"}
        headers = [(name, value) for name, value in answer.headers.items() if name in kept]
        return Response(answer.content, answer.status_code, headers)


@pytest.mark.parametrize("confirms", [True, False])
def test_missing_key_that_is_answered_with_403(store, tmp_path, disk, httpserver, monkeypatch, confirms):
    if not confirms:  # what the store then shows is read back
        monkeypatch.setattr(s3, "_confirms", lambda *_: False)
    Secretive(httpserver, store.port)
    writer = s3.S3(policy(store, tmp_path, endpoint=httpserver.url_for("/")))
    assert writer.observe(parse(TARGET)) is None
    assert save(writer, disk, None) == TARGET
    assert writer.manifest(parse(TARGET)) is None
    writer.note(TARGET, b"{}")
    assert sorted(store.keys()) == ["saved/a.qcow2", "saved/a.qcow2.manifest.json"]
    # what is there is shown, so it is known and replaced, also its manifest
    observed = writer.observe(parse(TARGET))
    assert observed
    disk.write_bytes(disk.read_bytes()[::-1])
    assert save(writer, disk, observed) == TARGET
    assert store.get("saved/a.qcow2") == disk.read_bytes()
    with pytest.raises(TransferFailed, match="403 AccessDenied: the key is missing, or") as failure:
        writer.head(parse("s3://disks/none.raw"))
    assert not failure.value.retry


def test_wrong_key_is_no_missing_object(store, tmp_path):
    writer = s3.S3(policy(store, tmp_path))
    (tmp_path / "s3.secret").write_text("wrong-secret-canary")
    with pytest.raises(TransferFailed, match="SignatureDoesNotMatch"):
        writer.observe(parse(TARGET))


# Owners


def test_bucket_is_divided_by_owner(store, tmp_path, disk):
    known = msgspec.convert(store.settings(tmp_path), S3Store, dec_hook=to_path)
    site = ImagePolicy(
        http_networks=("127.0.0.0/8",), timeout_s=20, reserve_mib=0, stores={"s3://disks/{owner}": known}
    )
    uri = "s3://disks/ann/a.qcow2"
    ann, bob = s3.S3(site.for_owner("ann")), s3.S3(site.for_owner("bob"))
    assert save(ann, disk, uri=uri) == uri
    assert ann.manifest(parse(uri)) is None
    ann.note(uri, b"{}")
    assert ann.manifest(parse(uri)) == b"{}"
    for act in (bob.head, bob.observe, bob.manifest, lambda at: save(bob, disk, uri=at.text)):
        with pytest.raises(Refused, match="closed to the VMs of bob"):
            act(parse(uri))
    digest = sha256(disk)
    assert cache(tmp_path, site.for_owner("ann")).fetch(parse(uri), "data", quiet).digest == digest
    for place in (uri, "s3://disks/bob/a.qcow2"):
        with pytest.raises((Refused, TransferFailed)):
            cache(tmp_path, site.for_owner("bob")).fetch(parse(f"{place}#sha256={digest}"), "data", quiet)
