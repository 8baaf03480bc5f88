"""The screens of a worker for a viewer, by the worker's own websocket: no other part of its API is needed for them."""

import socket
import struct
import threading
import zlib
from collections.abc import Iterator
from contextlib import contextmanager

from starlette.applications import Starlette
from starlette.routing import WebSocketRoute

from tests.functional.worker.rfb_client import Viewer
from tests.lib.support import Site
from worker_service.api.__main__ import server
from worker_service.api.access import Access
from worker_service.api.auth import TokenFile
from worker_service.api.console_proxy import ConsoleProxy
from worker_service.console import tickets
from worker_service.core.settings import ApiSettings

_ENCODING = {"vnc": 0, "screenshot": -260}
"""Raw pixels, or TightPNG."""


@contextmanager
def screens(site: Site) -> Iterator[str]:
    """Serve the screens of a worker; yields the URL."""
    held = socket.create_server(("127.0.0.1", 0))
    settings = ApiSettings(port=held.getsockname()[1])
    tokens = site.folder / "tokens"
    tokens.touch()
    consoles = ConsoleProxy(site.worker, settings, Access(TokenFile(tokens), settings.calls_per_s))

    async def serve(websocket):
        await consoles.serve(websocket, websocket.path_params["uuid"])

    app = Starlette(routes=[WebSocketRoute("/vmachines/{uuid}/screen", serve)])
    running = server(app, settings)
    thread = threading.Thread(target=running.run, args=([held],))
    thread.start()
    try:
        while not running.started and thread.is_alive():
            thread.join(0.02)
        yield f"ws://127.0.0.1:{settings.port}"
    finally:
        running.should_exit = True
        thread.join()
        held.close()


class Screen(Viewer):
    """A viewer of one VM's screen."""

    def __init__(self, url: str, site: Site, uuid: str) -> None:
        secret, digest = tickets.make()
        reply = site.call("screen", uuid=uuid, ticket_sha256=digest)
        assert reply["success"], reply
        super().__init__(f"{url}/vmachines/{uuid}/screen", secret)
        self.hello()
        self._kind = site.call("status", uuid=uuid)["console"]
        self.socket.send(b"\x02\0" + struct.pack(">Hi", 1, _ENCODING[self._kind]))

    def picture(self) -> bytes:
        """Return the pixels of the screen; those of a PNG as it has packed them."""
        self.socket.send(struct.pack(">BBHHHH", 3, 0, 0, 0, *self.size))
        assert self.take(2) == b"\0\0"
        shown = b""
        for _ in range(struct.unpack(">H", self.take(2))[0]):
            _, _, width, height, encoding = struct.unpack(">HHHHi", self.take(12))
            assert encoding == _ENCODING[self._kind]
            shown += self.take(4 * width * height) if self._kind == "vnc" else _pixels(self.take(self._png_bytes()))
        return shown

    def watch(self) -> None:
        """Look until the screen closes: ConnectionClosed."""
        while True:
            self.picture()

    def _png_bytes(self) -> int:
        """Read the length of a picture in TightPNG: seven bits in each byte."""
        assert self.take(1) == b"\xa0"
        length = 0
        for shift in (0, 7, 14):
            byte = self.take(1)[0]
            length |= (byte & (0x7F if shift < 14 else 0xFF)) << shift
            if byte < 0x80:
                break
        return length


def _pixels(png: bytes) -> bytes:
    packed, at = b"", 8
    while at < len(png):
        length = int.from_bytes(png[at : at + 4])
        packed += png[at + 8 : at + 8 + length] if png[at + 4 : at + 8] == b"IDAT" else b""
        at += length + 12
    data, height = zlib.decompress(packed), int.from_bytes(png[20:24])
    line = len(data) // height
    return b"".join(data[at + 1 : at + line] for at in range(0, len(data), line))
