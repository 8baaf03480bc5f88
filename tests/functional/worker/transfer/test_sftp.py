"""Images from and to a real OpenSSH, over connections that break and corrupt."""

import json
import os
import time

import msgspec
import pytest

from tests.lib.stores import SftpServer, line
from tests.lib.support import sha256
from worker_service.core.errors import BadImage, Refused, TransferFailed
from worker_service.core.settings import ImagePolicy, SftpStore
from worker_service.images.cache import Cache
from worker_service.transfer.sftp import Sftp
from worker_service.transfer.uri import parse

KEY = "6d6c7f0e-0000-4000-8000-000000000000-hda"


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    made = SftpServer(tmp_path_factory.mktemp("server"))
    yield made
    made.close()


@pytest.fixture(autouse=True)
def tidy(server):
    yield
    for path in server.folder.iterdir():
        path.unlink()


@pytest.fixture
def disk(tmp_path):
    path = tmp_path / "hda.flat.qcow2"
    path.write_bytes(os.urandom(510) + b"\x55\xaa" + os.urandom((20 << 20) - 512))
    return path


def policy(server, port=0, *, networks=("127.0.0.0/8",), save=True, limits=None, **changes):
    table = {**server.settings(port, save=save), **changes}
    store = msgspec.convert(table, SftpStore, dec_hook=lambda kind, value: kind(value))
    stores = {server.store(port): store}
    return ImagePolicy(http_networks=networks, timeout_s=20, stores=stores, **(limits or {}))


def cache(folder, policy):
    (folder / "data/images").mkdir(parents=True, exist_ok=True)
    made = Cache(folder / "data", policy)
    made.prepare()
    return made


def quiet(done, total):
    """Report to no one."""


def put(server, name, data, age_s=3600):
    path = server.folder / name
    path.write_bytes(data)
    then = time.time() - age_s
    os.utime(path, (then, then))
    return path


def save(writer, uri, disk, observed=None, report=quiet):
    digest = sha256(disk)
    token = writer.stage(parse(uri), disk, digest, KEY, report)
    return writer.commit(parse(uri), token, digest, observed, KEY, report)


def names(server):
    return sorted(path.name for path in server.folder.iterdir())


def test_image_is_fetched_once_and_again_when_changed(server, tmp_path, disk):
    put(server, "a ä.raw", disk.read_bytes())
    uri = parse(server.uri("a ä.raw").replace(" ", "%20"))
    shelf, said = cache(tmp_path, policy(server)), []
    base = shelf.fetch(uri, "disk", lambda done, total: said.append((done, total)))
    assert base.digest == sha256(disk)
    assert said[-1] == (disk.stat().st_size, disk.stat().st_size)
    said.clear()
    assert shelf.fetch(uri, "disk", lambda *bytes_: said.append(bytes_)) == base
    assert said == []
    put(server, "a ä.raw", disk.read_bytes(), age_s=1800)
    shelf.fetch(uri, "disk", lambda *bytes_: said.append(bytes_))
    assert said


@pytest.mark.parametrize("age_s", [3600, 0])
def test_interrupted_download_resumes_if_its_time_is_sure(server, tmp_path, disk, age_s):
    put(server, "a.raw", disk.read_bytes(), age_s)
    with line(server.port) as wire:
        shelf = cache(tmp_path, policy(server, wire.port))
        wire.cut_down, done = 9 << 20, []
        uri = parse(server.uri("a.raw", wire.port))
        with pytest.raises(TransferFailed, match="broke off"):
            shelf.fetch(uri, "disk", lambda now, _total: done.append(now))
        wire.cut_down, first = None, len(done)
        assert shelf.fetch(uri, "disk", lambda now, _total: done.append(now)).digest == sha256(disk)
    assert (done[first] > 4 << 20) is (age_s > 0)


def test_unknown_or_changed_host_key_is_refused(server, tmp_path, disk):
    put(server, "a.raw", disk.read_bytes())
    uri = parse(server.uri("a.raw"))
    rules = policy(server)
    server.known_hosts(port=1)
    with pytest.raises(Refused, match="Unknown keys are not accepted"):
        Sftp(rules).head(uri)
    other = server.make_key(f"other-{time.monotonic_ns()}")
    server.known_hosts(key=other)
    with pytest.raises(Refused, match="not the known one"):
        Sftp(rules).head(uri)


def test_bad_credentials_are_refused(server, disk):
    unknown_key = server.make_key(f"unknown_key-{time.monotonic_ns()}")
    with pytest.raises(TransferFailed, match="does not let") as failure:
        Sftp(policy(server, key_file=str(unknown_key))).head(parse(server.uri("a.raw")))
    assert failure.value.retry is False
    unknown_key.chmod(0o644)
    with pytest.raises(Refused, match="chmod 600"):
        Sftp(policy(server, key_file=str(unknown_key))).head(parse(server.uri("a.raw")))
    disk.chmod(0o600)
    with pytest.raises(Refused, match="no private key"):
        Sftp(policy(server, key_file=str(disk))).head(parse(server.uri("a.raw")))


def test_policy_holds_for_sftp(server):
    with pytest.raises(Refused, match="not a public address"):
        Sftp(policy(server, networks=())).head(parse(server.uri("a.raw")))
    rules = policy(server, save=False)
    for bad in ("sftp://127.0.0.1/a", f"sftp://me:pw@127.0.0.1:{server.port}/a", server.uri("../a"), server.uri("")):
        with pytest.raises(Refused):
            Sftp(rules).check(parse(bad + ("" if bad[-1] == "a" else "/")))
    with pytest.raises(Refused, match="not saved to"):
        Sftp(rules).check(parse(server.uri("a")), write=True)
    with pytest.raises(TransferFailed, match="does not exist"):
        Sftp(policy(server)).head(parse(server.uri("missing.raw")))


def test_limits_hold(server, tmp_path, disk):
    put(server, "a.raw", disk.read_bytes())
    with pytest.raises(BadImage, match="more bytes"):
        cache(tmp_path, policy(server, limits={"max_download_gib": 0})).fetch(parse(server.uri("a.raw")), "disk", quiet)


# Saving


def test_file_is_invisible_until_it_is_whole(server, disk):
    writer, uri = Sftp(policy(server)), server.uri("a.qcow2")
    assert writer.observe(parse(uri)) is None
    token = writer.stage(parse(f"{uri}?format=qcow2"), disk, sha256(disk), KEY, quiet)
    assert names(server) == [f".a.qcow2.part-{KEY}"]
    assert writer.commit(parse(uri), token, sha256(disk), None, KEY, quiet) == uri
    assert sha256(server.folder / "a.qcow2") == sha256(disk)
    writer.note(uri, b'{"format": "qcow2"}')
    assert json.loads((server.folder / "a.qcow2.manifest.json").read_text()) == {"format": "qcow2"}
    assert names(server) == ["a.qcow2", "a.qcow2.manifest.json"]


def test_known_target_is_replaced(server, disk):
    put(server, "a.qcow2", b"old")
    writer, uri = Sftp(policy(server)), server.uri("a.qcow2")
    assert save(writer, uri, disk, writer.observe(parse(uri))) == uri
    assert sha256(server.folder / "a.qcow2") == sha256(disk)


def test_changed_target_is_kept_and_a_conflict_name_used(server, disk):
    put(server, "a.qcow2", b"somebody else's work")
    saved = save(Sftp(policy(server)), server.uri("a.qcow2"), disk)
    assert "/a.conflict-" in saved
    assert (server.folder / "a.qcow2").read_bytes() == b"somebody else's work"
    assert sha256(server.folder / saved.rpartition("/")[2]) == sha256(disk)
    assert save(Sftp(policy(server)), server.uri("a.qcow2"), disk) == saved  # after a crash before that was noted
    assert len(names(server)) == 2


def test_concurrent_write_is_not_overwritten(server, disk):
    writer, uri = Sftp(policy(server)), parse(server.uri("a.qcow2"))
    token = writer.stage(uri, disk, sha256(disk), KEY, quiet)
    with writer._session(uri) as sftp:
        put(server, "a.qcow2", b"a moment earlier")
        with pytest.raises(OSError, match="Failure"):
            sftp.rename(token, uri.path)
    assert (server.folder / "a.qcow2").read_bytes() == b"a moment earlier"


def test_saved_already_before_a_crash(server, disk):
    writer, uri = Sftp(policy(server)), server.uri("a.qcow2")
    save(writer, uri, disk)
    assert save(writer, uri, disk) == uri
    assert names(server) == ["a.qcow2"]


def test_cut_off_and_then_whole(server, disk):
    with line(server.port) as wire:
        writer, uri = Sftp(policy(server, wire.port)), server.uri("a.qcow2", wire.port)
        for limit in (100, 1 << 10, 7 << 20):
            wire.cut_up = limit
            with pytest.raises(TransferFailed, match="broke off"):
                save(writer, uri, disk)
            assert not (server.folder / "a.qcow2").exists()
        wire.cut_up = None
        assert save(writer, uri, disk) == uri
    assert names(server) == ["a.qcow2"]


def test_line_that_spoils_it_is_found_out(server, disk):
    with line(server.port) as wire:
        writer, uri = Sftp(policy(server, wire.port)), server.uri("a.qcow2", wire.port)
        wire.spoil_up = 6 << 20
        with pytest.raises(TransferFailed, match="broke off"):  # SSH itself sees it
            save(writer, uri, disk)
    assert not (server.folder / "a.qcow2").exists()


def test_destroyed_in_the_middle_nothing_stays(server, disk):
    def report(done, total):
        if done > 6 << 20:
            raise InterruptedError

    writer, uri = Sftp(policy(server)), server.uri("a.qcow2")
    with pytest.raises((InterruptedError, TransferFailed)):
        save(writer, uri, disk, report=report)
    assert names(server) == []
    put(server, f".a.qcow2.part-{KEY}", b"what a crash left")
    writer.discard(parse(uri), disk, KEY)
    writer.discard(parse(uri), disk, KEY)
    assert names(server) == []


# Folders


@pytest.fixture
def outside(server):
    """A file that the user of the store may write, beside the folder of the store."""
    path = server.folder.parent / "authorized_keys"
    path.write_text("ssh-ed25519 AAAA the administrator")
    yield path
    path.unlink()


def test_file_outside_the_folder_is_not_replaced(server, disk, outside):
    writer = Sftp(policy(server))
    uris = [f"{server.store()}/../authorized_keys", server.store().removesuffix("/sftp") + "/authorized_keys"]
    for uri in (*uris, uris[1].replace("authorized", "%61uthorized"), uris[0].replace("..", "%2e%2e")):
        for act in (lambda uri=uri: save(writer, uri, disk), lambda uri=uri: writer.head(parse(uri))):
            with pytest.raises(Refused):
                act()
    assert outside.read_text().endswith("the administrator")


def test_link_on_the_server_leads_nowhere(server, disk, outside):
    (server.folder / "up").symlink_to("..")
    (server.folder / "keys").symlink_to(outside)
    writer = Sftp(policy(server))
    for name in ("up/authorized_keys", "keys"):
        with pytest.raises(Refused, match="symbolic link"):
            save(writer, server.uri(name), disk)
        with pytest.raises(Refused, match="symbolic link"):
            writer.head(parse(server.uri(name)))
    assert outside.read_text().endswith("the administrator")


def test_each_owner_has_a_folder(server, disk, request):
    store = policy(server).stores[server.store()]
    divided = ImagePolicy(http_networks=("127.0.0.0/8",), timeout_s=20, stores={f"{server.store()}/{{owner}}": store})
    for owner in ("ann", "bob"):
        (server.folder / owner).mkdir()
        request.addfinalizer((server.folder / owner).rmdir)
    uri = server.uri("ann/a.qcow2")
    request.addfinalizer((server.folder / "ann/a.qcow2").unlink)
    assert save(Sftp(divided.for_owner("ann")), uri, disk) == uri
    for owner in ("bob", ""):
        with pytest.raises(Refused, match="closed to"):
            Sftp(divided.for_owner(owner)).head(parse(uri))
        with pytest.raises(Refused, match="closed to"):
            save(Sftp(divided.for_owner(owner)), uri, disk)


def test_manifest_is_read(server):
    writer, uri = Sftp(policy(server)), server.uri("a.qcow2")
    assert writer.manifest(parse(uri)) is None
    writer.note(uri, b"{}")
    assert writer.manifest(parse(f"{uri}?format=raw")) == b"{}"
