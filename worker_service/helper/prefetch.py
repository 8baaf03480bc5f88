"""Images fetched into the cache before any VM wants them: durable orders, and the process that carries one out.

    python -m worker_service.helper.prefetch KEY --lock FD --slot FD [--settings FILE]

images/prefetch/<key>.json            the order; gone when it is done
images/prefetch/<key>.lock            held by the process that carries it out: free with an order there means an orphan
images/prefetch/<key>.progress.json   how far it is; not durable, nobody's truth
images/prefetch/log                   what the processes said
"""

from __future__ import annotations

import argparse
import hashlib
import logging
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Final

import msgspec

from worker_service.contract import TRIES, Progress
from worker_service.core.errors import SalternError, TransferFailed
from worker_service.core.failpoints import claim_failpoints
from worker_service.fs import atomic_files, locks
from worker_service.helper.limits import acquire
from worker_service.helper.step_loop import start_waiting_helpers
from worker_service.state.context import WorkerContext
from worker_service.state.lifecycle import Step
from worker_service.transfer.uri import parse

log = logging.getLogger("saltern.prefetching")

_SEATS: Final = "prefetch"
_REPORT_EVERY_S: Final = 0.5
_POLL_S: Final = 0.5


class Cancelled(Exception):
    """Nobody wants the image any more."""


class Order(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """An image that is to be in the cache. `tries` that failed; `problem` why the last of them did."""

    uri: str
    since: datetime
    pin: bool = False
    tries: int = 0
    next_try_at: datetime | None = None
    problem: str | None = None
    given_up: bool = False


class Orders:
    """The orders of a worker, on disk."""

    def __init__(self, worker: WorkerContext) -> None:
        self._worker = worker
        self.folder = worker.settings.data_root / "images/prefetch"
        self.folder.mkdir(exist_ok=True, mode=0o700)

    def place(self, uri: str, *, pin: bool) -> None:
        """Order an image; again, it begins its tries anew."""
        order = Order(uri=uri, since=self._worker.now(), pin=pin)
        atomic_files.write(self._path(_key(uri)), msgspec.json.encode(order))
        self.fork(_key(uri))

    def cancel(self, uri: str) -> bool:
        """Take an order back; whether there was one. A process at work sees that and ends."""
        key = _key(uri)
        with suppress(FileNotFoundError):
            self._path(key).unlink()
            atomic_files.sync_folder(self.folder)
            self._worker.cache.drop_part(parse(uri))
            return True
        return False

    def forget_given_up(self) -> None:
        """Remove the orders that nobody works on any more."""
        for key, order in self.all():
            if order.given_up:
                self._path(key).unlink(missing_ok=True)

    def read(self, key: str) -> Order | None:
        """An order, None where there is none, or no longer."""
        with suppress(FileNotFoundError, msgspec.MsgspecError):
            return msgspec.json.decode(self._path(key).read_bytes(), type=Order)
        return None

    def all(self) -> Iterator[tuple[str, Order]]:
        """Every order with its key, the oldest first."""
        paths = (path for path in self.folder.glob("*.json") if not path.name.endswith(".progress.json"))
        found = ((path.stem, self.read(path.stem)) for path in paths if not path.name.startswith("."))
        yield from sorted(((key, order) for key, order in found if order), key=lambda pair: pair[1].since)

    def report(self) -> list[dict[str, Any]]:
        """What a door shows of the orders. Bytes in `done` and `total`."""
        shown = []
        for key, order in self.all():
            progress = None
            with suppress(FileNotFoundError, msgspec.MsgspecError):
                progress = msgspec.json.decode(self._progress(key).read_bytes())
            shown.append(
                {
                    "uri": str(parse(order.uri)),
                    "pin": order.pin,
                    "since": order.since.isoformat(timespec="seconds"),
                    "tries": order.tries,
                    "problem": order.problem,
                    "given_up": order.given_up,
                    "progress": progress,
                }
            )
        return shown

    def fork_pending(self) -> None:
        """Every look is a chance to find an orphan."""
        now = self._worker.now()
        for key, order in self.all():
            if not order.given_up and (order.next_try_at is None or order.next_try_at <= now):
                self.fork(key)

    def fork(self, key: str) -> None:
        """Let a process of its own session carry out an order, unless one is at it, or all seats are taken."""
        settings = self._worker.settings
        lock = locks.lock(self.folder / f"{key}.lock", wait=False)
        if lock is None:
            return
        descriptors = [lock]
        try:
            slot = acquire(self._worker.store.slots, _SEATS, settings.max_parallel_jobs)
            if slot is None:
                return  # the watcher's tick looks again
            descriptors.append(slot)
            argv = ["setsid", "--fork", sys.executable, "-m", "worker_service.helper.prefetch", key]
            argv += ["--lock", str(lock), "--slot", str(slot), *self._worker.settings_argument]
            with (self.folder / "log").open("ab") as out:
                subprocess.run(
                    argv, stdin=subprocess.DEVNULL, stdout=out, stderr=out, cwd="/", pass_fds=descriptors, check=True
                )
        finally:
            for descriptor in descriptors:
                os.close(descriptor)

    def work(self, key: str) -> None:
        """Carry out an order: tries until it is done, given up or cancelled."""
        while (order := self.read(key)) and not order.given_up:
            if order.next_try_at and order.next_try_at > self._worker.now():
                time.sleep(_POLL_S)
                continue
            try:
                self._fetch(key, order)
            except Cancelled:
                log.info("%s: cancelled", parse(order.uri))
                self._worker.cache.drop_part(parse(order.uri))
            except SalternError as err:
                self._note_failure(key, order, err)
            except OSError as err:
                self._note_failure(key, order, TransferFailed(f"{err.strerror}. Check the worker's disk."))
            finally:
                self._progress(key).unlink(missing_ok=True)
                start_waiting_helpers(self._worker, Step.FETCH)  # VMs may wait for this very image

    def _fetch(self, key: str, order: Order) -> None:
        began = time.monotonic()
        last = 0.0

        def report(done: int, total: int | None) -> None:
            nonlocal last
            now = time.monotonic()
            if now - last < _REPORT_EVERY_S and done != total:
                return
            last = now
            if self.read(key) != order:
                raise Cancelled
            rate = done / (now - began) if now > began else None
            eta = (total - done) / rate if rate and total else None
            progress = Progress(phase="prefetch", done=done, total=total, rate=rate, eta_s=eta)
            part = self.folder / f".{key}.progress"
            part.write_bytes(msgspec.json.encode(progress))
            part.replace(self._progress(key))

        base = self._worker.cache.fetch(parse(order.uri), None, report)
        if order.pin:
            self._worker.cache.pin(base.digest)
        if self.read(key) == order:  # else it was ordered anew meanwhile, perhaps with a pin
            self._path(key).unlink(missing_ok=True)
        log.info("%s: it is in the cache: %s", parse(order.uri), base.digest)

    def _note_failure(self, key: str, order: Order, err: SalternError) -> None:
        log.warning("%s: try %d failed: %s", parse(order.uri), order.tries + 1, err)
        tries = order.tries + 1
        wait = timedelta(seconds=self._worker.settings.retry_delay_s * 2 ** (tries - 1))
        failed = msgspec.structs.replace(
            order,
            tries=tries,
            problem=str(err),
            next_try_at=self._worker.now() + wait,
            given_up=not err.retry or tries >= TRIES,
        )
        if self.read(key) == order:
            atomic_files.write(self._path(key), msgspec.json.encode(failed))

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}.json"

    def _progress(self, key: str) -> Path:
        return self.folder / f"{key}.progress.json"


def _key(uri: str) -> str:
    return hashlib.sha256(uri.encode()).hexdigest()[:32]


def main() -> None:
    """Carry out the order that the command line names."""
    parser = argparse.ArgumentParser(prog="worker_service.helper.prefetch", description=__doc__.partition("\n")[0])
    parser.add_argument("key", help="the order's key")
    parser.add_argument("--settings", help="the worker's settings file")
    parser.add_argument("--lock", type=int, help="descriptor of the order's lock, inherited from whoever forked this")
    parser.add_argument("--slot", type=int, help="descriptor of the seat, inherited too")
    arguments = parser.parse_args()
    claim_failpoints()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    logging.Formatter.converter = time.gmtime
    try:
        Orders(WorkerContext(arguments.settings)).work(arguments.key)
    except SalternError as err:
        raise SystemExit(str(err)) from err


if __name__ == "__main__":
    main()
