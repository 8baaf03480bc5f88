"""A server that gives or takes hardly anything is no server: silence has an end by itself, a trickle would have none.

The kernel counts what a connection moves. So this holds in both directions, for the greeting, the head and the body
alike, and whichever library talks.
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
"""Where `tcpi_bytes_acked` and `tcpi_bytes_received` are in `struct tcp_info` (linux/tcp.h, since 4.1)."""

_CLOSE_WAIT: Final = 8


class Watch:
    """Cuts off connections that are too slow: in each `timeout_s` they move `min_bytes_per_s` on average."""

    def __init__(self, policy: ImagePolicy) -> None:
        self._window_s = policy.timeout_s
        self._least = policy.min_bytes_per_s
        self._over = threading.Event()
        self._slow: int | None = None

    def begin(self, connection: socket.socket) -> None:
        """Watch a connection until `end`. Duplicated: TLS takes the socket out of the hands of its maker."""
        threading.Thread(target=self._watch, args=(connection.dup(),), daemon=True).start()

    def trace(self, event: str, info: Mapping[str, Any]) -> None:
        """Watch what httpcore connects, as its `trace` extension tells of it."""
        if event == "connection.connect_tcp.complete":
            self.begin(info["return_value"].get_extra_info("socket"))

    def end(self) -> None:
        """Watch no longer."""
        self._over.set()

    def verdict(self, uri: Uri) -> TransferFailed | None:
        """The error for a connection that was cut off here; None where something else ended it."""
        if self._slow is None:
            return None
        return TransferFailed(
            f"{uri} is too slow: {self._slow} bytes in {self._window_s:g} s, and {self._least} bytes a second are the "
            "least (images.min_bytes_per_s in the worker's settings). Check the server and the way to it."
        )

    def check_whole(self, uri: Uri) -> None:
        """Raise the verdict after bytes of which only the connection's end says that they are all."""
        if verdict := self.verdict(uri):
            raise verdict

    def _watch(self, connection: socket.socket) -> None:
        with connection:
            before = _moved(connection)
            while not self._over.wait(self._window_s):
                now = _moved(connection)
                if now - before < self._least * self._window_s and not _waits_for_us(connection):
                    self._slow = now - before
                    with suppress(OSError):
                        connection.shutdown(socket.SHUT_RDWR)
                    return
                before = now


@contextmanager
def watching(policy: ImagePolicy) -> Iterator[Watch]:
    """A watch for the time of a transfer."""
    watch = Watch(policy)
    try:
        yield watch
    finally:
        watch.end()


def _told(connection: socket.socket) -> bytes:
    """What the kernel tells of a connection. Source: tcp(7), TCP_INFO."""
    return connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _BYTES_AT + 16)


def _moved(connection: socket.socket) -> int:
    """Bytes that the other end has confirmed, and those that came from it."""
    sent, received = struct.unpack_from("QQ", _told(connection), _BYTES_AT)
    return int(sent + received)


def _waits_for_us(connection: socket.socket) -> bool:
    """Whether it is us who are slow: something was not read here yet, or the other end has said all that it had."""
    unread = struct.unpack("i", fcntl.ioctl(connection, termios.FIONREAD, b"\0" * 4))[0]
    return unread > 0 or _told(connection)[0] == _CLOSE_WAIT
