"""Images from Salt's file server, through the minion's own file client, here of a minion without a master."""

import hashlib
import os
import time

import pytest

from worker_service.core.errors import BadImage, BadRequest, Refused, TransferFailed
from worker_service.core.settings import ImagePolicy
from worker_service.images.cache import Cache
from worker_service.transfer.salt import Salt
from worker_service.transfer.uri import parse


@pytest.fixture
def files(tmp_path):
    for name in ("base/images", "prod/images", "data/images"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "base/secret.sls").write_bytes(bytes(512))
    (tmp_path / "minion").write_text(
        f"id: m\nfile_client: local\nroot_dir: {tmp_path}/salt\nlog_file: /dev/null\nlog_level_logfile: quiet\n"
        f"file_roots:\n  base: [{tmp_path}/base]\n  prod: [{tmp_path}/prod]\n"
    )
    return tmp_path


def policy(files, **limits):
    return ImagePolicy(salt_roots=("images",), minion_config=files / "minion", **limits)


def cache(files, **limits):
    made = Cache(files / "data", policy(files, **limits))
    made.prepare()
    return made


def put(files, name, data, age_s=3600):
    path = files / name
    path.write_bytes(data)
    then = time.time() - age_s
    os.utime(path, (then, then))


def image(size=1 << 20):
    return os.urandom(510) + b"\x55\xaa" + os.urandom(size - 512)


def fetch(files, uri, report=lambda done, total: None, **limits):
    return cache(files, **limits).fetch(parse(uri), "disk", report)


def test_file_is_fetched_once_from_its_environment(files):
    base, prod = image(), image()
    put(files, "base/images/a.raw", base)
    put(files, "prod/images/a.raw", prod)
    said = []
    first = fetch(files, "salt://images/a.raw", lambda done, total: said.append((done, total)))
    assert first.digest == hashlib.sha256(base).hexdigest()
    assert said[-1] == (1 << 20, 1 << 20)
    assert fetch(files, "salt://images/a.raw?saltenv=prod").digest == hashlib.sha256(prod).hexdigest()
    said.clear()
    assert fetch(files, "salt://images/a.raw", lambda *bytes_: said.append(bytes_)) == first
    assert said == []
    assert not list(files.glob("salt/**/a.raw"))  # not in the minion's cache as well


def test_allowed_folders_and_plain_paths_are_required(files):
    for uri in ("salt://secret.sls", "salt://top.sls", "salt://imagesx/a"):
        with pytest.raises(Refused, match="salt_roots"):
            Salt(policy(files)).check(parse(uri))
    for uri in ("salt://images/../secret.sls", "salt:///images/a", "salt://images/a?saltenv=", "salt://images/a?x=1"):
        with pytest.raises(BadRequest):
            Salt(policy(files)).check(parse(uri))


def test_missing_file_and_bad_minion_are_reported(files):
    with pytest.raises(TransferFailed, match="not on Salt's file server") as failure:
        fetch(files, "salt://images/missing.raw")
    assert failure.value.retry is False
    (files / "minion").write_text("file_client: [")
    with pytest.raises(TransferFailed, match="broke off"):
        fetch(files, "salt://images/a.raw")


def test_limits_hold_before_the_bytes_are_here(files):
    put(files, "base/images/a.raw", image(4 << 20))
    with pytest.raises(BadImage, match="more bytes"):
        fetch(files, "salt://images/a.raw", max_download_gib=0)
    with pytest.raises(Refused, match="MiB are free"):
        fetch(files, "salt://images/a.raw", reserve_mib=1 << 30)
    assert not list((files / "data/images/by-uri").glob("*.part*"))


def test_interrupted_download_resumes(files):
    data = image(8 << 20)
    put(files, "base/images/a.raw", data)
    done = []

    def report(now, _total):
        done.append(now)
        if len(done) == 4:
            raise InterruptedError

    # Its inode was changed just now, which is not seen to be settled: as if a minute had passed.
    slow = Salt(policy(files)).head(parse("salt://images/a.raw"))
    assert slow.resumable is False
    with pytest.MonkeyPatch.context() as patch:
        now = time.time()
        patch.setattr("worker_service.transfer.salt.time.time", lambda: now + 120)
        with pytest.raises(InterruptedError):
            fetch(files, "salt://images/a.raw", report)
        first = len(done)
        assert fetch(files, "salt://images/a.raw", lambda now, _total: done.append(now)).digest == (
            hashlib.sha256(data).hexdigest()
        )
    assert done[first] > done[2]


def test_file_changed_while_read_is_not_kept(files):
    put(files, "base/images/a.raw", image(8 << 20))

    def report(done, _total):
        if done == 1 << 20:
            put(files, "base/images/a.raw", image(8 << 20), age_s=10)

    with pytest.raises(TransferFailed, match="changed"):
        fetch(files, "salt://images/a.raw", report)
