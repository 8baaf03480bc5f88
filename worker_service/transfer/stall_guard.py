"""Cut off connections that are too slow. A timeout ends silence, but not a server that sends a byte now and then.

The kernel counts the bytes of a connection. So this works in both directions, for the greeting, the head and the body,
and with every library.
"""

from __future__ import annotations

import fcntl
import socket
import struct
import termios
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, Final

from worker_service.core.errors import TransferFailed
from worker_service.core.settings import ImagePolicy
from worker_service.transfer.uri import Uri

_BYTES_AT: Final = 120
"""Offset of `tcpi_bytes_acked` and `tcpi_bytes_received` in `struct tcp_info` (linux/tcp.h, since 4.1)."""

_CLOSE_WAIT: Final = 8


class Watch:
    """Cuts off connections that move less than `min_bytes_per_s` on average in a `timeout_s`."""

    def __init__(self, policy: ImagePolicy) -> None:
        self._window_s = policy.timeout_s
        self._least = policy.min_bytes_per_s
        self._over = threading.Event()
        self._slow: int | None = None

    def begin(self, connection: socket.socket) -> None:
        """Watch a connection until `end`. It is duplicated, because TLS takes over the original socket."""
        threading.Thread(target=self._watch, args=(connection.dup(),), daemon=True).start()

    def trace(self, event: str, info: Mapping[str, Any]) -> None:
        """Watch the connections that httpcore reports to its `trace` extension."""
        if event == "connection.connect_tcp.complete":
            self.begin(info["return_value"].get_extra_info("socket"))

    def end(self) -> None:
        """Stop watching."""
        self._over.set()

    def verdict(self, uri: Uri) -> TransferFailed | None:
        """Return the error for a connection that was cut off here, or None."""
        if self._slow is None:
            return None
        return TransferFailed(
            f"{uri} is too slow: {self._slow} bytes in {self._window_s:g} s, and {self._least} bytes a second are the "
            "minimum (images.min_bytes_per_s in the worker's settings). Check the server and the network."
        )

    def check_whole(self, uri: Uri) -> None:
        """Raise the verdict after a body that ends with its connection, so that a cut is not taken for its end."""
        if verdict := self.verdict(uri):
            raise verdict

    def _watch(self, connection: socket.socket) -> None:
        with connection:
            before = _moved(connection)
            while not self._over.wait(self._window_s):
                now = _moved(connection)
                if now - before < self._least * self._window_s and not _waits_for_worker(connection):
                    self._slow = now - before
                    with suppress(OSError):
                        connection.shutdown(socket.SHUT_RDWR)
                    return
                before = now


@contextmanager
def watching(policy: ImagePolicy) -> Iterator[Watch]:
    """Yield a watch that ends with the transfer."""
    watch = Watch(policy)
    try:
        yield watch
    finally:
        watch.end()


def _tcp_info(connection: socket.socket) -> bytes:
    """Return the kernel's facts about a connection. Source: tcp(7), TCP_INFO."""
    return connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _BYTES_AT + 16)


def _moved(connection: socket.socket) -> int:
    """Return the bytes that the other end has confirmed, and those that it has sent."""
    sent, received = struct.unpack_from("QQ", _tcp_info(connection), _BYTES_AT)
    return int(sent + received)


def _waits_for_worker(connection: socket.socket) -> bool:
    """Return whether the worker is the slow end: bytes are unread, or the other end has finished."""
    unread = struct.unpack("i", fcntl.ioctl(connection, termios.FIONREAD, b"\0" * 4))[0]
    return unread > 0 or _tcp_info(connection)[0] == _CLOSE_WAIT
