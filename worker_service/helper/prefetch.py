"""Images fetched into the cache before a VM needs them: durable orders, and the job that carries one out.

images/prefetch/<key>.json            the order; removed when it is done
images/prefetch/<key>.lock            held by the helper that carries the order out; an order with a free lock has none
images/prefetch/<key>.progress.json   the progress; not durable, and lost without harm
images/prefetch/log                   the log of these helpers
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Iterator
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import msgspec

from worker_service.contract import TRIES, Progress
from worker_service.core.errors import SalternError, TransferFailed
from worker_service.core.progress import throttle
from worker_service.fs import atomic_files
from worker_service.helper import launcher
from worker_service.helper.jobs import prefetch_folder
from worker_service.state.context import WorkerContext
from worker_service.state.lifecycle import Step
from worker_service.steps.retry import pause
from worker_service.transfer.uri import parse

log = logging.getLogger("saltern.prefetch")

_POLL_S: Final = 0.5
_LONG_S: Final = 15.0
"""Longest pause for which a helper keeps its slot."""


class Cancelled(Exception):
    """The order was cancelled or replaced."""


class Order(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """An order to fetch an image into the cache. `tries` counts the failed ones; `problem` is the error of the last."""

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
        self.folder = prefetch_folder(worker)
        self.folder.mkdir(exist_ok=True, mode=0o700)

    def place(self, uri: str, *, pin: bool) -> None:
        """Order an image. A second order of the same image starts with its first try again."""
        order = Order(uri=uri, since=self._worker.now(), pin=pin)
        atomic_files.write(self._path(_key(uri)), msgspec.json.encode(order))
        launcher.start_prefetch(self._worker, _key(uri))

    def cancel(self, uri: str) -> bool:
        """Cancel an order and return whether there was one. A running helper notices the cancellation and ends."""
        key = _key(uri)
        with suppress(FileNotFoundError):
            self._path(key).unlink()
            atomic_files.sync_folder(self.folder)
            self._worker.cache.drop_part(parse(uri))
            return True
        return False

    def forget_given_up(self) -> None:
        """Remove the orders that were given up."""
        for key, order in self.all():
            if order.given_up:
                self._path(key).unlink(missing_ok=True)

    def read(self, key: str) -> Order | None:
        """Return an order, or None if it does not exist (any more)."""
        with suppress(FileNotFoundError, msgspec.MsgspecError):
            return msgspec.json.decode(self._path(key).read_bytes(), type=Order)
        return None

    def all(self) -> Iterator[tuple[str, Order]]:
        """Yield every order with its key, the oldest first."""
        paths = (path for path in self.folder.glob("*.json") if not path.name.endswith(".progress.json"))
        found = ((path.stem, self.read(path.stem)) for path in paths if not path.name.startswith("."))
        yield from sorted(((key, order) for key, order in found if order), key=lambda pair: pair[1].since)

    def report(self) -> list[dict[str, Any]]:
        """Return the orders as users see them. `done` and `total` are in bytes."""
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

    def start_pending(self) -> None:
        """Start a helper for each order that is due and has none. Orders without a free slot stay for the next call."""
        now = self._worker.now()
        for key, order in self.all():
            if not order.given_up and (order.next_try_at is None or order.next_try_at <= now):
                launcher.start_prefetch(self._worker, key)

    def work(self, key: str) -> None:
        """Carry out an order: try until it is done, given up or cancelled."""
        while (order := self.read(key)) and not order.given_up:
            wait_s = (order.next_try_at - self._worker.now()).total_seconds() if order.next_try_at else 0.0
            if wait_s > _LONG_S:
                return  # its slot is for other orders meanwhile; the watcher starts a helper again
            if wait_s > 0:
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
                launcher.start_waiting_helpers(self._worker, Step.FETCH)  # VMs may wait for this image

    def _fetch(self, key: str, order: Order) -> None:
        def publish(progress: Progress) -> None:
            if self.read(key) != order:
                raise Cancelled
            part = self.folder / f".{key}.progress"
            part.write_bytes(msgspec.json.encode(progress))
            part.replace(self._progress(key))

        base = self._worker.cache.fetch(parse(order.uri), None, throttle("prefetch", publish))
        if order.pin:
            self._worker.cache.pin(base.digest)
        if self.read(key) == order:  # otherwise a newer order has replaced it, perhaps one with a pin
            self._path(key).unlink(missing_ok=True)
        log.info("%s: in the cache as %s", parse(order.uri), base.digest)

    def _note_failure(self, key: str, order: Order, err: SalternError) -> None:
        tries = order.tries + 1
        log.warning("%s: try %d failed: %s", parse(order.uri), tries, err)
        wait, problem = pause(self._worker.settings.start_retry_delay(tries), err)
        failed = msgspec.structs.replace(
            order,
            tries=tries,
            problem=problem,
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
