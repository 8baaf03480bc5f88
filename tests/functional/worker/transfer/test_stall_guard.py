"""Servers that send a byte now and then and never finish, in each part of a transfer."""

import os
import socket
import threading
import time
from contextlib import suppress
from itertools import count

import pytest

from tests.functional.worker.images.test_download import Shelf
from tests.functional.worker.transfer.test_http_put import KEY
from tests.lib.acceptor import Acceptor, in_thread
from tests.lib.stores import SftpServer
from tests.lib.support import PATIENCE_S
from worker_service.core.errors import TransferFailed
from worker_service.core.settings import ImagePolicy, SftpStore
from worker_service.steps import seed_files
from worker_service.transfer import stall_guard
from worker_service.transfer.http import Http
from worker_service.transfer.http_put import Put
from worker_service.transfer.registry import Head
from worker_service.transfer.sftp import Sftp
from worker_service.transfer.uri import parse

SIZE = 1 << 20
WINDOW_S = 0.6
HEAD = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % SIZE
ENDLESS = b"HTTP/1.0 200 OK\r\n\r\n"
LIMITS = {"http_networks": ("127.0.0.0/8",), "timeout_s": PATIENCE_S, "min_bytes_per_s": 4096}


@pytest.fixture(autouse=True)
def window(monkeypatch):
    """Watches look soon, silence may last: a server that the machine keeps waiting is not the one that is meant."""

    def make(seconds=WINDOW_S, over=threading.Event):
        class Short(stall_guard.Watch):
            def __init__(self, policy):
                super().__init__(policy)
                self._window_s, self._over = seconds, over()

        monkeypatch.setattr(stall_guard, "Watch", Short)

    make()
    return make


class Steps:
    """A watch's clock: each window is over when a test says so, which then goes on once the watch has looked."""

    def __init__(self):
        self._looks, self._ends, self._over = threading.Semaphore(0), threading.Semaphore(0), False

    def wait(self, _window_s):
        self._looks.release()
        self._ends.acquire()
        return self._over

    def set(self):
        self._over = True
        self._ends.release()

    def looked(self):
        assert self._looks.acquire(timeout=PATIENCE_S)

    def end_window(self):
        self._ends.release()
        self.looked()


class Later(threading.Event):
    """The clock of a stall guard. It stands still until the test starts it."""

    def __init__(self):
        super().__init__()
        self.go = threading.Event()

    def wait(self, timeout=None):
        self.go.wait()
        return super().wait(timeout)

    def set(self):
        super().set()
        self.go.set()


class Server:
    """Speaks to each connection as a test wants: `talk(connection, number)`."""

    def __init__(self, talk, receive_buffer=None):
        listener = socket.create_server(("127.0.0.1", 0))
        if receive_buffer:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.port = listener.getsockname()[1]
        self._talk, numbers = talk, count()
        acceptor = Acceptor(listener, lambda connection: in_thread(self._one, connection, next(numbers)))
        self.close = acceptor.close

    def _one(self, connection, number):
        with suppress(OSError), connection:
            self._talk(connection, number)


@pytest.fixture
def serve():
    made = []

    def start(talk, **options):
        made.append(Server(talk, **options))
        return made[-1]

    yield start
    for server in made:
        server.close()


def trickle(connection, data, pause_s=0.02):
    for at in range(len(data)):
        connection.sendall(data[at : at + 1])
        time.sleep(pause_s)


def after(beginning):
    """Say the beginning at once and the rest byte by byte."""

    def talk(connection, _number):
        connection.recv(1 << 16)
        connection.sendall(beginning)
        trickle(connection, b"x" * SIZE)

    return talk


def require_cut(act, within_s=60.0):
    began = time.monotonic()
    with pytest.raises(TransferFailed, match=r"too slow: \d+ bytes in [\d.]+ s.*min_bytes_per_s") as failed:
        act()
    assert failed.value.retry
    assert time.monotonic() - began < within_s


@pytest.mark.parametrize(
    "beginning", [b"", b"HTTP/1.1 200 OK\r\nX-Long: ", HEAD, HEAD + b"x" * 1000, ENDLESS, ENDLESS + b"x" * 1000]
)
def test_byte_now_and_then_is_no_answer(serve, beginning):
    reader = Http(ImagePolicy(**LIMITS))
    uri = parse(f"http://127.0.0.1:{serve(after(beginning)).port}/a.raw")
    require_cut(lambda: list(reader.read(uri, 0, Head(None, None))))


def test_greeting_of_tls_without_an_end(serve):
    uri = parse(f"https://127.0.0.1:{serve(after(bytes.fromhex('1603030fff'))).port}/a.raw")
    require_cut(lambda: Http(ImagePolicy(**LIMITS)).head(uri))


def test_part_stays_and_the_cache_takes_nothing(tmp_path, serve):
    shelf = Shelf(tmp_path, **{name: LIMITS[name] for name in ("min_bytes_per_s", "timeout_s")})
    uri = f"http://127.0.0.1:{serve(after(ENDLESS + os.urandom(5000))).port}/a.raw"
    require_cut(lambda: shelf.fetch(uri))
    assert shelf.bases() == set()


def test_document_for_the_guest(serve):
    uri = parse(f"http://127.0.0.1:{serve(after(HEAD + b'#cloud-config')).port}/user-data")
    require_cut(lambda: seed_files.fetched(uri, ImagePolicy(**LIMITS)))


def test_server_that_hardly_takes_anything(serve, tmp_path, window):
    window(seconds=3)

    def talk(connection, number):
        if number == 0:  # the content of the store
            connection.recv(1 << 16)
            connection.sendall(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")
        while connection.recv(500):
            time.sleep(0.3)

    server = serve(talk, receive_buffer=4096)
    disk = tmp_path / "disk"
    disk.write_bytes(os.urandom(64 << 20))
    put = Put(ImagePolicy(**LIMITS, save_hosts=("127.0.0.1",)))
    uri = parse(f"http://127.0.0.1:{server.port}/a.qcow2")
    require_cut(lambda: put.commit(uri, str(disk), "0" * 64, None, KEY, lambda done, total: None))


def test_stalled_sftp_is_cut_off(serve, tmp_path):
    real = SftpServer(tmp_path)
    try:
        banner = serve(after(b"SSH-2.0-slow\r\n" + b"\0\0\x7f\xfc"))
        store = SftpStore(user="me", known_hosts=real.known_hosts(banner.port), key_file=real.key)
        policy = ImagePolicy(**LIMITS, stores={f"sftp://127.0.0.1:{banner.port}/": store})
        require_cut(lambda: Sftp(policy).head(parse(f"sftp://127.0.0.1:{banner.port}/a.raw")))
    finally:
        real.close()


def test_slow_and_steady_arrives(serve, window):
    steps, more = Steps(), threading.Semaphore(0)
    window(seconds=1, over=lambda: steps)

    def talk(connection, _number):
        connection.recv(1 << 16)
        steps.looked()
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 30000\r\n\r\n")
        for _ in range(30):
            connection.sendall(b"x" * 1000)
            more.acquire()

    uri = parse(f"http://127.0.0.1:{serve(talk).port}/a.raw")
    got, windows = b"", 0
    for chunk in Http(ImagePolicy(**{**LIMITS, "min_bytes_per_s": 500})).read(uri, 0, Head(None, None)):
        got += chunk
        while windows < len(got) // 1000:
            steps.end_window()
            more.release()
            windows += 1
    assert got == b"x" * 30000


@pytest.mark.parametrize("head", [HEAD, ENDLESS])
def test_slow_reader_does_not_blame_the_server(serve, window, head):
    """Unpacking the last bytes may take minutes; they are here."""
    clock, sent, said = Later(), threading.Event(), threading.Event()
    window(over=lambda: clock)
    body = b"x" * (256 << 10)

    def talk(connection, _number):
        connection.recv(1 << 16)
        connection.sendall(head.replace(b"%d" % SIZE, b"%d" % len(body)) + body)
        sent.set()
        if head is ENDLESS:
            connection.shutdown(socket.SHUT_WR)
        said.set()
        connection.recv(1)

    uri = parse(f"http://127.0.0.1:{serve(talk).port}/a.raw")
    got = 0
    for chunk in Http(ImagePolicy(**LIMITS)).read(uri, 0, Head(None, None)):
        got += len(chunk)
        if got in (len(chunk), len(body)):
            assert (sent if got < len(body) else said).wait(PATIENCE_S)
            clock.go.set()
            time.sleep(WINDOW_S * 2.5)
    assert got == len(body)


def test_site_may_allow_any_speed(serve):
    def talk(connection, _number):
        connection.recv(1 << 16)
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n")
        trickle(connection, b"x" * 100)

    uri = parse(f"http://127.0.0.1:{serve(talk).port}/a.raw")
    limits = {**LIMITS, "min_bytes_per_s": 0}
    assert b"".join(Http(ImagePolicy(**limits)).read(uri, 0, Head(None, None))) == b"x" * 100
