"""Downloads into the cache: compressed, interrupted, malicious. With real servers and without VMs."""

import gzip
import lzma
import os
import socket
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path

import pytest
from backports import zstd
from werkzeug import Response

from tests.lib.support import sha256
from worker_service.core.errors import BadImage, Refused, TransferFailed
from worker_service.core.settings import ImagePolicy
from worker_service.images.cache import Cache
from worker_service.transfer.uri import parse

REPO = Path(__file__).parents[4]
PACKERS = {"gz": gzip.compress, "xz": lzma.compress, "zst": zstd.compress}
hows = pytest.mark.parametrize("how", PACKERS)


class Shelf:
    """A cache of one's own, and a folder that it may read."""

    def __init__(self, folder, **policy):
        self.folder = folder
        self.data = folder / "data"
        self.data.mkdir(exist_ok=True)
        self.policy = ImagePolicy(read_roots=(folder,), http_networks=("127.0.0.0/8",), **{"timeout_s": 20, **policy})
        self.cache = Cache(self.data, self.policy)
        self.cache.prepare()

    def put(self, name, data):
        path = self.folder / name
        path.write_bytes(data)
        return path

    def fetch(self, uri, use="disk", report=lambda done, total: None):
        return self.cache.fetch(parse(uri if "://" in str(uri) else f"file://{uri}"), use, report)

    def leftovers(self):
        return {path.name for path in (self.data / "images/by-uri").glob("*.part*")}

    def bases(self):
        return {entry.sha256 for entry in self.cache.entries()}

    def disk_use(self):
        return sum(path.stat().st_blocks * 512 for path in self.data.rglob("*"))


@pytest.fixture
def shelf(tmp_path):
    return Shelf(tmp_path)


@pytest.fixture
def disk():
    """A bootable raw disk, mostly empty."""
    return (os.urandom(510) + b"\x55\xaa" + os.urandom(1 << 20)).ljust(8 << 20, b"\0")


@hows
def test_packed_image_is_kept_unpacked(shelf, disk, how):
    packed = shelf.put(f"disk.{how}", PACKERS[how](disk))
    base = shelf.fetch(packed)
    assert base.path.read_bytes() == disk
    assert base.digest == sha256(base.path)
    assert (base.image.format, base.image.virtual_size) == ("raw", len(disk))
    assert base.path.stat().st_blocks * 512 < len(disk)  # zeros take no room
    assert base.path.stat().st_mode & 0o777 == 0o440
    assert shelf.leftovers() == set()


def test_first_bytes_count_and_not_the_name(shelf, disk):
    plain = shelf.fetch(shelf.put("plain.gz", disk))
    packed = shelf.fetch(shelf.put("packed.raw", gzip.compress(disk)))
    assert (plain.digest, plain.path) == (packed.digest, packed.path)  # one base for the same content
    assert (plain.source, packed.source) == (plain.digest, sha256(shelf.folder / "packed.raw"))


@hows
def test_compressed_qcow2_is_unpacked(shelf, tmp_path, how):
    path = tmp_path / "a.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", str(path), "10G"], check=True)
    base = shelf.fetch(shelf.put("a.packed", PACKERS[how](path.read_bytes())))
    assert (base.image.format, base.image.virtual_size) == ("qcow2", 10 << 30)


def test_digest_is_of_the_bytes_at_the_uri(shelf, disk, httpserver):
    packed = gzip.compress(disk)
    digest = sha256(shelf.put("packed", packed))
    requests = []

    def serve(request):
        requests.append(request.path)
        return Response(packed)

    httpserver.expect_request("/disk.gz").respond_with_handler(serve)
    url = httpserver.url_for("/disk.gz")
    first = shelf.fetch(f"{url}#sha256={digest}")
    assert shelf.fetch(f"{url}#sha256={digest}") == first
    assert len(requests) == 1  # then no server needs to be asked
    with pytest.raises(BadImage, match=digest):
        shelf.fetch(f"{url}#sha256={first.digest[::-1]}")
    assert shelf.leftovers() == set()
    assert shelf.bases() == {first.digest}


@pytest.mark.parametrize("pack", [None, gzip.compress])
def test_digest_and_not_the_signature_is_the_identity(shelf, disk, httpserver, pack):
    """Signatures have a thousand names. Whatever stands in a query, or at which mirror: these are the same bytes."""
    content = pack(disk) if pack else disk
    digest, requests = sha256(shelf.put("content", content)), []

    def serve(request):
        requests.append(request.query_string)
        return Response(content, headers={"ETag": f'"{len(requests)}"'})

    httpserver.expect_request("/disk").respond_with_handler(serve)
    httpserver.expect_request("/mirror").respond_with_handler(serve)
    url = httpserver.url_for("/disk")
    first = shelf.fetch(f"{url}?md5=one&expires=1#sha256={digest}")
    for same in (f"{url}?md5=two&expires=2", url, httpserver.url_for("/mirror")):
        for _again in range(2):
            assert shelf.fetch(f"{same}#sha256={digest}") == first
    assert requests == [b"md5=one&expires=1"]
    shelf.fetch(url)  # without the digest, only its source knows what it has
    assert len(requests) == 2
    assert shelf.bases() == {first.digest}


def test_unchanged_packed_images_are_not_read_again(shelf, disk):
    packed = shelf.put("a.zst", zstd.compress(disk))
    first = shelf.fetch(packed)
    said = []
    assert shelf.fetch(packed, report=lambda done, total: said.append(done)) == first
    assert said == []
    shelf.put("a.zst", zstd.compress(disk[:-512]))
    assert shelf.fetch(packed) != first


def test_progress_counts_bytes_of_the_source(shelf, disk):
    packed = shelf.put("a.gz", gzip.compress(disk))
    said = []
    shelf.fetch(packed, report=lambda done, total: said.append((done, total)))
    size = packed.stat().st_size
    assert said[-1] == (size, size)


@hows
def test_bomb_of_ten_gigabytes(tmp_path, how):
    bomb = tmp_path / f"bomb.{how}"
    write_zeros(bomb, how, gib=10)
    assert bomb.stat().st_size < 16 << 20
    shelf = Shelf(tmp_path, max_virtual_gib=1)
    with pytest.raises(BadImage, match=r"bomb.*more than 1024 MiB"):
        shelf.fetch(bomb)
    assert shelf.disk_use() < 1 << 20
    assert (shelf.leftovers(), shelf.bases()) == (set(), set())


def write_zeros(path, how, gib):
    """Zeros, packed once and then repeated: streams in a row are one image."""
    path.write_bytes(PACKERS[how](bytes(32 << 20)) * (gib * 32))


def test_bomb_that_is_not_zeros_ends_while_it_is_small(tmp_path):
    shelf = Shelf(tmp_path, max_ratio=100)
    with pytest.raises(BadImage, match="100 times"):
        shelf.fetch(shelf.put("bomb", zstd.compress(b"A" * (512 << 20))))
    assert (shelf.leftovers(), shelf.bases()) == (set(), set())


def test_reserve_stays_free_whatever_comes_out(tmp_path, disk):
    shelf = Shelf(tmp_path, reserve_mib=1 << 30)
    tiny = PACKERS["zst"](disk)
    with pytest.raises(Refused, match="MiB"):
        shelf.fetch(shelf.put("a.zst", tiny))
    assert (shelf.leftovers(), shelf.bases()) == (set(), set())


def test_interrupted_compressed_download_starts_over(shelf, disk, httpserver):
    packed = gzip.compress(disk)
    ranges = []

    def serve(request):
        ranges.append(request.headers.get("Range"))
        body = packed if len(ranges) > 1 else packed[: len(packed) // 2]
        return Response(iter([body]), headers={"ETag": '"v1"', "Content-Length": str(len(packed))})

    httpserver.expect_request("/a.gz").respond_with_handler(serve)
    with pytest.raises(TransferFailed, match="broke off"):
        shelf.fetch(httpserver.url_for("/a.gz"))
    assert shelf.leftovers() == set()
    assert shelf.fetch(httpserver.url_for("/a.gz")).path.read_bytes() == disk
    assert ranges == [None] * 2


def test_interrupted_plain_download_resumes(shelf, disk, httpserver):
    ranges = []

    def serve(request):
        ranges.append(request.headers.get("Range"))
        headers = {"ETag": '"v1"', "Content-Length": str(len(disk))}
        if begin := request.headers.get("Range"):
            rest = disk[int(begin.removeprefix("bytes=").rstrip("-")) :]
            return Response(rest, status=206, headers={"ETag": '"v1"'})
        return Response(iter([disk[: 3 << 20]]), headers=headers)

    httpserver.expect_request("/a.raw").respond_with_handler(serve)
    with pytest.raises(TransferFailed, match="broke off"):
        shelf.fetch(httpserver.url_for("/a.raw"))
    assert len(shelf.leftovers()) == 2
    assert shelf.fetch(httpserver.url_for("/a.raw")).path.read_bytes() == disk
    assert ranges[-1] == f"bytes={3 << 20}-"
    assert shelf.leftovers() == set()


def without_ranges(data):
    """A server that has an ETag, and gives all of it whatever is asked for."""
    return Response(data, headers={"ETag": '"v1"'})


def at_another_place(rest):
    return Response(rest[512:], status=206, headers={"Content-Range": "bytes 512-1023/*"})


def nothing_follows(_rest):
    """Some say so to a conditional Range, instead of giving all of it."""
    return Response(status=416)


def of_another_version(data):
    """Some mirrors know no If-Range."""
    begin = 3 << 20
    bounds = {"Content-Range": f"bytes {begin}-{len(data) - 1}/{len(data)}", "ETag": '"v2"'}
    return Response(data[begin:], status=206, headers=bounds)


@pytest.mark.parametrize(
    ("resume", "again"),
    [(without_ranges, False), (at_another_place, True), (nothing_follows, True), (of_another_version, True)],
)
def test_failed_resume_downloads_again_within_the_try(shelf, disk, httpserver, resume, again):
    ranges = []

    def serve(request):
        ranges.append(request.headers.get("Range"))
        headers = {"ETag": '"v1"', "Content-Length": str(len(disk))}
        body = disk[: 3 << 20] if len(ranges) == 1 else disk
        return (ranges[-1] and resume(disk)) or Response(iter([body]), headers=headers)

    httpserver.expect_request("/a.raw").respond_with_handler(serve)
    url = httpserver.url_for("/a.raw")
    with pytest.raises(TransferFailed, match="broke off"):
        shelf.fetch(url)
    assert shelf.fetch(url).path.read_bytes() == disk
    assert ranges == [None, f"bytes={3 << 20}-", *([None] if again else [])]
    assert shelf.leftovers() == set()


def test_part_that_is_whole_already_and_of_unknown_size(shelf, disk, httpserver):
    """Killed between the last byte and its place in the cache: the server has nothing that follows, and says 416."""
    gets = []

    def serve(request):
        gets.append(request.headers.get("Range"))
        if gets[-1]:
            return Response(status=416, headers={"Content-Range": f"bytes */{len(disk)}"})
        return Response(iter([disk]), headers={"ETag": '"v1"'})

    httpserver.expect_request("/a.raw").respond_with_handler(serve)
    url = httpserver.url_for("/a.raw")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SALTERN_FAILPOINT", "fetch.downloaded=eio")
        with pytest.raises(OSError, match=r"fetch\.downloaded"):
            shelf.fetch(url)
    assert len(shelf.leftovers()) == 2
    assert shelf.fetch(url).path.read_bytes() == disk
    assert gets[-2:] == [f"bytes={len(disk)}-", None]


@pytest.mark.parametrize("packed", [False, True])
def test_crash_leaves_a_part_that_the_next_try_uses(shelf, disk, packed):
    """Killed after the third chunk: the half-unpacked data must not count as half of the source."""
    content = disk + os.urandom(4 << 20)
    path = shelf.put("a", zstd.compress(content) if packed else content)
    code = (
        "import sys; from tests.functional.worker.images.test_download import Shelf; from pathlib import Path; "
        "Shelf(Path(sys.argv[1])).fetch(sys.argv[2])"
    )
    argv = [sys.executable, "-c", code, str(shelf.folder), str(path)]
    environment = {**os.environ, "SALTERN_FAILPOINT": "fetch.chunk:3"}
    assert subprocess.run(argv, cwd=REPO, env=environment, check=False).returncode == -9
    assert len(shelf.leftovers()) == 2
    assert shelf.fetch(path).path.read_bytes() == content
    assert shelf.leftovers() == set()


def test_part_that_is_whole_is_not_sent_again(shelf, disk, httpserver):
    """As above, but the size is known: the head of the second answer confirms the part."""
    sent = []

    def serve(request):
        if request.headers.get("Range"):
            return Response(status=416)
        sent.append(0)
        return Response(counted(), headers={"ETag": '"v1"', "Content-Length": str(len(content))})

    def counted():
        for begin in range(0, len(content), 1 << 20):
            sent[-1] += 1 << 20
            yield content[begin : begin + (1 << 20)]

    def report(done, total):
        if done == total:
            raise InterruptedError

    content = disk + os.urandom(24 << 20)  # more than the buffers of a connection hold
    httpserver.expect_request("/a.raw").respond_with_handler(serve)
    url = httpserver.url_for("/a.raw")
    with pytest.raises(InterruptedError):
        shelf.fetch(url, report=report)
    assert len(shelf.leftovers()) == 2
    assert shelf.fetch(url).path.read_bytes() == content
    assert sent[0] == len(content) > sent[1]


def test_server_that_trickles_is_still_recognized(shelf, disk, httpserver):
    packed = gzip.compress(disk[: 1 << 20])
    pieces = [packed[at : at + 1] for at in range(8)] + [packed[8:]]
    httpserver.expect_request("/a").respond_with_handler(lambda _request: Response(iter(pieces)))
    assert shelf.fetch(httpserver.url_for("/a")).path.read_bytes() == disk[: 1 << 20]


def test_server_without_a_length_that_ends_early_fools_no_one(shelf, tmp_path):
    """The connection ends in order, in the middle of a qcow2: only the image itself says that an end is missing."""
    (tmp_path / "raw").write_bytes(os.urandom(4 << 20))
    convert = ["qemu-img", "convert", "-f", "raw", "-O", "qcow2", tmp_path / "raw", tmp_path / "disk.qcow2"]
    subprocess.run(convert, check=True)
    whole = (tmp_path / "disk.qcow2").read_bytes()
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve():
            with suppress(OSError):
                while True:
                    with listener.accept()[0] as near:
                        near.recv(1 << 16)
                        near.sendall(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n" + whole[: len(whole) * 6 // 10])

        threading.Thread(target=serve, daemon=True).start()
        with pytest.raises(BadImage, match="cut off or damaged"):
            shelf.fetch(f"http://127.0.0.1:{listener.getsockname()[1]}/disk.qcow2")
        listener.shutdown(socket.SHUT_RDWR)
    assert shelf.bases() == set()
    assert shelf.leftovers() == set()
