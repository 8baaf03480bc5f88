"""Images that may leave the cache, their order, and images that may not."""

import os
from datetime import UTC, datetime

import msgspec
import pytest

from tests.lib.support import sha256
from worker_service.contract import Spec
from worker_service.core.errors import BadImage, Refused, TransferFailed
from worker_service.core.settings import ImagePolicy
from worker_service.images import converted, vdi
from worker_service.images.cache import Cache
from worker_service.state.bases import bases_needed
from worker_service.state.record import Disk, Phase, Record
from worker_service.transfer.registry import Head, source
from worker_service.transfer.uri import parse

MIB = 1 << 20


class Shelf:
    """A cache with three bases of a MiB each, used an hour apart: a the longest ago."""

    def __init__(self, folder):
        self.folder = folder
        data = folder / "data"
        data.mkdir()
        self.cache = Cache(data, ImagePolicy(read_roots=(folder,)))
        self.cache.prepare()
        self.digest = {}
        for age, name in ((3, "a"), (2, "b"), (1, "c")):
            path = folder / name
            path.write_bytes(os.urandom(MIB))
            self.digest[name] = sha256(path)
            self.fetch(name)
            os.utime(self.cache.path(self.digest[name]), (1e9 - age * 3600,) * 2)

    def uri(self, name):
        return f"file://{self.folder}/{name}"

    def fetch(self, name):
        return self.cache.fetch(parse(self.uri(name)), "data", lambda done, total: None)

    def here(self):
        return "".join(sorted(name for name, digest in self.digest.items() if self.cache.path(digest).exists()))

    def names(self, entries):
        return "".join(name for entry in entries for name, digest in self.digest.items() if digest == entry.sha256)


@pytest.fixture
def shelf(tmp_path):
    return Shelf(tmp_path)


@pytest.mark.parametrize(
    ("keep_mib", "used", "removed"),
    [
        (None, "", ""),
        (3, "", ""),
        (2, "", "a"),
        (1, "", "ab"),
        (0, "", "abc"),
        (2, "a", "b"),
        (1, "ab", "c"),
        (0, "abc", ""),
    ],
)
def test_cleaning_removes_least_recently_used_unused_images(shelf, keep_mib, used, removed):
    in_use = {shelf.digest[name] for name in used}
    keep = None if keep_mib is None else keep_mib * MIB
    assert shelf.names(shelf.cache.clean(in_use, preview=True, keep_bytes=keep)) == removed
    assert shelf.here() == "abc"
    assert shelf.names(shelf.cache.clean(in_use, keep_bytes=keep)) == removed
    assert shelf.here() == "".join(sorted(set("abc") - set(removed)))


def test_removed_image_leaves_nothing_and_can_be_fetched_again(shelf):
    shelf.cache.clean(set(), keep_bytes=0)
    assert shelf.cache.uris() == ()
    assert list(shelf.cache.path("x").parent.iterdir()) == []
    assert list((shelf.folder / "data/images/by-uri").glob("*.json")) == []
    assert shelf.fetch("a").digest == shelf.digest["a"]


def test_same_base_of_two_workers_has_two_uuids(tmp_path):
    """VirtualBox refuses a disk whose uuid it knows at another place, and workers of one user share it."""
    uuids = []
    for name in ("one", "other", "one"):
        base = tmp_path / name / "abc"
        base.parent.mkdir(exist_ok=True)
        base.write_bytes(bytes(MIB))
        converted.remove(base)
        with converted.as_vdi(base, "raw", MIB).open("rb") as file:
            uuids.append(vdi.read(file.fileno()).uuid)
    assert uuids[0] != uuids[1]
    assert uuids[0] == uuids[2]


def test_converted_base_counts_and_goes_with_its_base(shelf):
    base = shelf.cache.path(shelf.digest["a"])
    made = converted.as_vdi(base, "raw", MIB)
    assert made.stat().st_size > MIB
    assert shelf.names(shelf.cache.clean(set(), preview=True, keep_bytes=3 * MIB)) == "a"
    assert len(shelf.cache.entries()) == 3
    shelf.cache.clean(set(), keep_bytes=3 * MIB)
    assert shelf.here() == "bc"
    assert [path.name for path in base.parent.iterdir() if path.name.startswith(base.name)] == []


def test_recently_found_image_stays(shelf):
    shelf.fetch("a")  # a VM has got it, and has not written so down
    assert shelf.names(shelf.cache.clean(set(), keep_bytes=0)) == "bc"
    assert shelf.here() == "a"


def record(phase, uri, **changes):
    now = datetime.now(UTC)
    spec = Spec(name="x", hda_image=uri)
    return Record(uuid="u", spec=spec, generation=1, phase=phase, phase_since=now, created_at=now, **changes)


@pytest.mark.parametrize("phase", list(Phase))
def test_which_phases_need_their_bases(shelf, phase):
    vm = record(phase, "blank:1G", disks={"hda": Disk(base=shelf.digest["a"])}, cd=shelf.digest["b"])
    needed = phase not in (Phase.DONE, Phase.START_FAILED, Phase.DESTROYING)
    assert shelf.cache.in_use(*bases_needed([vm])) == ({shelf.digest["a"], shelf.digest["b"]} if needed else set())


def test_uri_names_the_image_while_fetching(shelf):
    other = f"https://host/x#sha256={'0' * 64}"
    records = [record(Phase.FETCHING, uri) for uri in (shelf.uri("c"), other, "https://host/never-seen")]
    assert shelf.cache.in_use(*bases_needed(records)) == {shelf.digest["c"], "0" * 64}


@pytest.fixture
def tenants(tmp_path):
    """Return a function that gives the cache of an owner. `public` and a folder of each owner lie below `shared`."""
    for folder in ("data", "public", "own/ann", "own/bob"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "own/bob/disk").write_bytes(b"the disk of bob" * 4096)
    policy = ImagePolicy(read_roots=(tmp_path / "public", tmp_path / "own/{owner}"), reserve_mib=0)

    def cache_of(owner):
        made = Cache(tmp_path / "data", policy.for_owner(owner))
        made.prepare()
        return made

    return cache_of


def fetched(cache, uri):
    return cache.fetch(parse(uri), "data", lambda done, total: None).digest


def test_digest_of_anothers_base_gives_nothing(tenants, tmp_path):
    """The digest is no secret: manifests and statuses show it."""
    secret, mine = f"file://{tmp_path}/own/bob/disk", f"file://{tmp_path}/own/ann/any"
    digest = fetched(tenants("bob"), secret)
    for uri in (f"{secret}#sha256={digest}", secret):
        with pytest.raises(Refused, match="outside the folders"):
            fetched(tenants("ann"), uri)
    with pytest.raises(TransferFailed, match="No such file"):
        fetched(tenants("ann"), f"{mine}#sha256={digest}")
    (tmp_path / "own/ann/any").write_bytes(b"something else")
    with pytest.raises(BadImage, match="not"):
        fetched(tenants("ann"), f"{mine}#sha256={digest}")


def test_source_answers_once_for_each_owner(tenants, tmp_path):
    image = tmp_path / "public/image"
    image.write_bytes(b"public" * 4096)
    digest = fetched(tenants("bob"), f"file://{image}")
    uri = f"file://{image}#sha256={digest}"
    image.rename(tmp_path / "away")
    assert fetched(tenants("bob"), uri) == digest  # from there, these bytes, to bob
    with pytest.raises(TransferFailed, match="No such file"):
        fetched(tenants("ann"), uri)
    (tmp_path / "away").rename(image)
    head = source(parse(uri), ImagePolicy(read_roots=(tmp_path,))).head(parse(uri))
    assert tenants("ann").has(parse(uri), head)
    assert not tenants("ann").has(parse(f"file://{image}#sha256={'0' * 64}"), head)
    assert fetched(tenants("ann"), uri) == digest
    image.unlink()
    assert fetched(tenants("ann"), uri) == digest


def test_owner_gets_known_bytes_by_digest_from_elsewhere(tenants, tmp_path):
    for name in ("image", "copy"):
        (tmp_path / "public" / name).write_bytes(b"public" * 4096)
    image, copy = (f"file://{tmp_path}/public/{name}" for name in ("image", "copy"))
    ann, bob = tenants("ann"), tenants("bob")
    digest = fetched(ann, image)
    (tmp_path / "public/copy").unlink()
    same = parse(f"{copy}#sha256={digest}")
    assert ann.has(same, Head(None, None))
    assert not ann.are_being_fetched([same])
    assert fetched(ann, f"{copy}#sha256={digest}") == digest
    assert ann.in_use([], [parse(copy)]) == {digest}
    for uri in (f"{copy}#sha256={digest}", copy):
        with pytest.raises(TransferFailed, match="No such file"):
            fetched(bob, uri)
    assert not bob.has(same, Head(None, None))
    with pytest.raises(TransferFailed, match="No such file"):
        fetched(ann, copy)
    with pytest.raises(Refused, match="outside the folders"):
        fetched(ann, f"file://{tmp_path}/own/bob/disk#sha256={digest}")
    ann.clean(set(), keep_bytes=0)
    assert digest in {entry.sha256 for entry in ann.entries()}  # just used


def test_note_of_an_older_version_names_no_owner(tenants, tmp_path):
    image = tmp_path / "public/image"
    image.write_bytes(b"public" * 4096)
    digest = fetched(tenants(""), f"file://{image}")
    (note,) = (tmp_path / "data/images/by-uri").glob("*.json")
    old = msgspec.json.decode(note.read_bytes())
    del old["owners"]
    note.write_bytes(msgspec.json.encode(old))
    assert fetched(tenants("ann"), f"file://{image}#sha256={digest}") == digest
    assert msgspec.json.decode(note.read_bytes())["owners"] == ["ann"]


def test_note_of_0_1_about_a_signed_url_is_forgotten(shelf):
    """Masters see the sources of cached images. The base stays: other URIs may have it."""
    (note,) = (path for path in shelf.folder.rglob("by-uri/*.json") if shelf.uri("a").encode() in path.read_bytes())
    note.write_bytes(note.read_bytes().replace(shelf.uri("a").encode(), b"https://h/a?X-Amz-Signature=c4nary"))
    assert "c4nary" not in str((shelf.cache.uris(), shelf.cache.entries()))
    assert not note.exists()
    assert shelf.here() == "abc"
    assert shelf.fetch("a").digest == shelf.digest["a"]
