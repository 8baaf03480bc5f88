"""Calls that may never come back: each has its time, and nobody waits longer for it.

libvirt's client has no time limit of its own: a libvirtd that is stopped or hangs keeps its callers for ever, and
libvirt's keepalive needs an event loop and begins only once a connection is open.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as CallTimeout
from typing import Generic, TypeVar

T = TypeVar("T")

__all__ = ["CallTimeout", "SharedCall", "call_with_timeout", "start_call"]


def start_call(call: Callable[[], T]) -> Future[T]:
    """Make a call in a thread of its own, which keeps no process from ending, unlike those of an executor."""
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(call())
        except BaseException as err:  # noqa: BLE001 - it is raised where the result is asked for
            future.set_exception(err)

    threading.Thread(target=run, name="libvirt-call", daemon=True).start()
    return future


def call_with_timeout(limit_s: float, call: Callable[[], T]) -> T:
    """The result of a call; raises CallTimeout once the time is over. The call itself cannot be taken back."""
    return start_call(call).result(limit_s)


class SharedCall(Generic[T]):
    """A call that all who want its result wait for together: while it hangs no second one is made.

    Whoever comes once its time is over is told at once. When it comes back at last, the next caller makes a new one.
    """

    def __init__(self, limit_s: float, call: Callable[[], T]) -> None:
        self._limit_s = limit_s
        self._call = call
        self._lock = threading.Lock()
        self._under_way: Future[T] | None = None
        self._deadline = 0.0

    def result(self) -> T:
        """Its result; raises what it raised, or CallTimeout."""
        with self._lock:
            if self._under_way is None or self._under_way.done():
                self._under_way = start_call(self._call)
                self._deadline = time.monotonic() + self._limit_s
            mine, left = self._under_way, self._deadline - time.monotonic()
        return mine.result(max(0.0, left))
