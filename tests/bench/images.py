"""Images in and out, beside plain tools that do the same work."""

from __future__ import annotations

import http.server
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from devstack.guests import build_bootchain
from devstack.layout import REPO
from tests.bench import memory
from tests.bench.measure import Row, median, memory_at_hand, memory_given_back, rounds, seconds
from tests.lib.support import Site, virsh

_SIZE = 2 << 30
_ROUNDS = 3
_CHUNK = 1 << 20
_PEAK_MIB = 80
_FETCH = """
import resource, sys
from worker_service.transfer.uri import parse
from worker_service.state.context import WorkerContext
WorkerContext(sys.argv[1]).cache.fetch(parse(sys.argv[2]), "disk", lambda done, size: None)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def fetching(site: Site) -> list[Row]:
    """Fetch 2 GiB over http into the cache, beside curl and sha256sum of the same file from the same server."""
    big_file(site.images / "big.raw")
    peaks: list[int] = []
    with file_server(site.images) as port:

        def url(number: int) -> str:
            return f"http://127.0.0.1:{port}/big.raw?{number}"

        def curl(number: int, *, sync: bool = False) -> float:
            out = site.folder / "curl.raw"
            commands = [["curl", "-sf", "-o", str(out), url(number)], ["sha256sum", str(out)]]
            if sync:
                commands.insert(1, ["sync", str(out)])
            memory_at_hand()
            taken = seconds(lambda: [subprocess.run(argv, check=True, capture_output=True) for argv in commands])
            out.unlink()
            return taken

        def ours(number: int) -> float:
            argv = [sys.executable, "-c", _FETCH, str(site.settings), url(number)]
            out: list[str] = []
            memory_at_hand()
            taken = seconds(
                lambda: out.append(subprocess.run(argv, check=True, stdout=subprocess.PIPE, text=True, cwd=REPO).stdout)
            )
            peaks.append(int(out[0]) >> 10)
            site.worker.cache.clean(())
            shutil.rmtree(site.folder / "data/images")
            site.worker.cache.prepare()
            return taken

        ways: dict[str, Callable[[int], float]] = {"ours": ours, "curl": curl, "synced": partial(curl, sync=True)}
        middle = {name: median(values) for name, values in rounds(_ROUNDS, ways).items()}
    return [
        _rate("fetch of 2 GiB over http", middle["ours"], "curl, sha256sum", middle["curl"]),
        _rate("the same, durable", middle["ours"], "curl, sync, sha256sum", middle["synced"]),
        Row("peak memory of that", f"{max(peaks)} MiB", f"{_PEAK_MIB} MiB", max(peaks) / _PEAK_MIB, 1.0),
    ]


def saving(site: Site) -> list[Row]:
    """Time `shutdown` to `halted` with 2 GiB to save, beside qemu-img convert and a copy."""
    image, private = site.images / "big.raw", list[float]()
    site.start("warm", image)
    site.wait("warm", "running", within_s=300)
    record = site.worker.store.find(name="warm")
    base = site.worker.cache.path(record.disks["hda"].base or "")
    flat, copy = site.folder / "flat.qcow2", site.saved / "copy.qcow2"
    convert = [["qemu-img", "convert", "-f", "raw", "-O", "qcow2", str(base), str(flat)], ["cp", str(flat), str(copy)]]
    sync = [*convert, ["sync", str(copy)]]
    verify = [*sync, ["sha256sum", str(copy)]]

    def plain(commands: list[list[str]], prepare: Callable[[], None], _: int) -> float:
        prepare()
        taken = seconds(lambda: [subprocess.run(argv, check=True, stdout=subprocess.DEVNULL) for argv in commands])
        flat.unlink()
        copy.unlink()
        return taken

    def ours(prepare: Callable[[], None], number: int) -> float:
        name = f"save-{number}"
        site.start(name, image)
        site.wait(name, "running", within_s=60)
        virsh("destroy", name)
        site.wait(name, "halted")  # an unexpected halt: its disks are kept
        prepare()
        with memory.of_helpers(site, private):
            taken = seconds(lambda: site.call("shutdown", name=name, timeout_s=600))
        reply = site.call("status", name=name)
        if reply["status"] != "halted" or not site.saved_file(name).exists():
            raise SystemExit(f"{reply}\n{site.logs()}")
        site.saved_file(name).unlink()
        site.call("destroy", name=name)
        return taken

    others = {"convert, cp": convert, "convert, cp, sync": sync, "convert, cp, sync, sha256sum": verify}
    rows = []
    for what, prepare in (("save of 2 GiB", memory_at_hand), ("the same, after a pause", memory_given_back)):
        ways = {name: partial(plain, commands, prepare) for name, commands in others.items()}
        middle = {name: median(values) for name, values in rounds(_ROUNDS, ways | {"": partial(ours, prepare)}).items()}
        rows += [_rate(what, middle[""], name, middle[name]) for name in others]
    site.call("destroy", name="warm")
    image.unlink()
    return [*rows, memory.helper_row("most private memory of the helper meanwhile", private)]


def _rate(what: str, ours: float, than: str, theirs: float) -> Row:
    compared = f"{than}: {_SIZE / theirs / 1e6:.0f} MB/s"
    return Row(what, f"{_SIZE / ours / 1e6:.0f} MB/s", compared, theirs / ours, 0.9, at_least=True)


def big_file(path: Path) -> None:
    """Make a bootable, incompressible disk of 2 GiB."""
    build_bootchain(path, variant="spin", size=_SIZE)
    with path.open("r+b") as file:
        file.seek(_CHUNK)
        for _ in range(_SIZE // _CHUNK - 1):
            file.write(os.urandom(_CHUNK))


@contextmanager
def file_server(folder: Path) -> Iterator[int]:
    """Serve a folder over http; yields the port. The kernel moves the bytes, so that the server costs little."""

    class Handler(http.server.SimpleHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def __init__(self, *arguments: object) -> None:
            super().__init__(*arguments, directory=str(folder))  # type: ignore[arg-type]

        def copyfile(self, source: object, outputfile: object) -> None:
            self.connection.sendfile(source)  # type: ignore[arg-type]

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.server_address[1]
        server.shutdown()
        thread.join()
