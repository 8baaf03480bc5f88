"""Timeouts for calls that may never return.

The libvirt client has no timeout: a libvirtd that is stopped or hangs blocks its callers for ever. libvirt's keepalive
needs an event loop and begins only once a connection is open.
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
    """Start a call in a thread of its own. Unlike an executor's threads, it does not keep the process from ending."""
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(call())
        except BaseException as err:  # noqa: BLE001 - `result` raises it
            future.set_exception(err)

    threading.Thread(target=run, name="libvirt-call", daemon=True).start()
    return future


def call_with_timeout(limit_s: float, call: Callable[[], T]) -> T:
    """Return the result of a call; raise CallTimeout after the time limit. The call itself continues."""
    return start_call(call).result(limit_s)


class SharedCall(Generic[T]):
    """A call whose callers share one result: while it hangs, no second call is started.

    Once it has timed out, every further caller fails immediately. After it has returned, the next caller starts a new
    call.
    """

    def __init__(self, limit_s: float, call: Callable[[], T]) -> None:
        self._limit_s = limit_s
        self._call = call
        self._lock = threading.Lock()
        self._pending: Future[T] | None = None
        self._deadline = 0.0

    def result(self) -> T:
        """Return the result of the call. Raises the call's own error, or CallTimeout."""
        with self._lock:
            if self._pending is None or self._pending.done():
                self._pending = start_call(self._call)
                self._deadline = time.monotonic() + self._limit_s
            pending, left = self._pending, self._deadline - time.monotonic()
        return pending.result(max(0.0, left))
