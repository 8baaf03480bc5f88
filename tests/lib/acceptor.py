"""Accept connections in a thread of one's own, and end that thread before its socket is closed."""

import socket
import threading
from collections.abc import Callable
from contextlib import suppress


class Acceptor:
    """Hands each connection to a function, until it is closed.

    The thread ends first. If it were about to wait on a closed socket, the number of that could already belong to the
    socket of another server, from which it would take a connection.
    """

    def __init__(self, listener: socket.socket, accepted: Callable[[socket.socket], object]) -> None:
        self._listener = listener
        self._accepted = accepted
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        with suppress(OSError):
            while True:
                self._accepted(self._listener.accept()[0])

    def close(self) -> None:
        """Accept no more connections."""
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # this ends the wait for a connection, now or later
        self._thread.join()
        self._listener.close()


def in_thread(serve: Callable[..., None], *arguments: object) -> None:
    """Serve one connection in a thread of its own."""
    threading.Thread(target=serve, args=arguments, daemon=True).start()
