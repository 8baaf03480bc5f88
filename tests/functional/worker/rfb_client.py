"""A VNC viewer over a websocket: as much of RFB as a test needs to see a console and to type."""

import struct
from contextlib import ExitStack
from typing import Self

from websockets.sync.client import ClientConnection, connect


class Viewer:
    """One viewer. `ticket` travels as a subprotocol, as from a page."""

    def __init__(self, url: str, ticket: str, *, origin: str | None = None, shared: bool = True) -> None:
        protocols = ["binary", f"ticket.{ticket}"]
        self._held = ExitStack()
        opening = connect(url, subprotocols=protocols, origin=origin, proxy=None, open_timeout=30)
        self.socket: ClientConnection = self._held.enter_context(opening)
        self._kept = b""
        self.shared = shared
        self.size = (0, 0)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Say farewell."""
        self._held.close()

    def take(self, count: int) -> bytes:
        """The next bytes of the server; ConnectionClosed when there are none."""
        while len(self._kept) < count:
            self._kept += self.socket.recv(timeout=30)
        taken, self._kept = self._kept[:count], self._kept[count:]
        return taken

    def hello(self) -> "Viewer":
        """The handshake. Afterwards `size` is that of the console."""
        assert self.take(12) == b"RFB 003.008\n"
        self.socket.send(b"RFB 003.008\n")
        kinds = self.take(self.take(1)[0])
        assert kinds == b"\x01"  # no password: the ticket was it
        self.socket.send(b"\x01")
        assert self.take(4) == b"\0\0\0\0"
        self.socket.send(b"\x01" if self.shared else b"\x00")
        self.size = struct.unpack(">HH", self.take(20)[:4])
        self.take(struct.unpack(">I", self.take(4))[0])
        self.socket.send(b"\x02\0" + struct.pack(">Hi", 1, 0))  # raw
        return self

    def look(self) -> int:
        """Ask for the whole picture, and return its bytes."""
        self.socket.send(struct.pack(">BBHHHH", 3, 0, 0, 0, *self.size))
        while self.take(1) != b"\0":
            raise AssertionError("not an update")
        self.take(1)
        came = 0
        for _ in range(struct.unpack(">H", self.take(2))[0]):
            _, _, width, height, encoding = struct.unpack(">HHHHi", self.take(12))
            assert encoding == 0
            came += len(self.take(4 * width * height))
        return came

    def press(self, key: str) -> None:
        """Press and release a key."""
        for down in (1, 0):
            self.socket.send(struct.pack(">BBHI", 4, down, 0, ord(key)))

    def look_on(self) -> None:
        """Look until it is over: ConnectionClosed."""
        while True:
            self.look()
