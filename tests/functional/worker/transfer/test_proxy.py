"""Images and disks through the HTTP proxy of a site, which alone knows the names of the stores."""

import base64
import hashlib
import select
import socket
import ssl
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

import msgspec
import pytest
from pytest_httpserver import HTTPServer

from tests.functional.worker.transfer.test_http_put import KEY, Shop
from tests.lib.stores import S3Server
from tests.lib.support import PATIENCE_S, self_signed
from worker_service.core.errors import BadRequest, Refused, TransferFailed
from worker_service.core.settings import HttpProxy, ImagePolicy, S3Store, load
from worker_service.transfer.http import Http
from worker_service.transfer.http_put import Put
from worker_service.transfer.s3 import S3
from worker_service.transfer.uri import parse

CANARY = "canary-proxy-81c3"
_getaddrinfo = socket.getaddrinfo


class Relay(BaseHTTPRequestHandler):
    """Forwards plain requests and tunnels. `server.names` are the hosts that it reaches, with their ports."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        """Write nothing."""

    def pass_on(self, host, head=b"", *, tunnel=False):
        self.server.lines.append(self.requestline)
        if self.server.login and self.headers.get("Proxy-Authorization") != self.server.login:
            self.send_error(407)
            return
        if host not in self.server.names:
            self.send_error(502)
            return
        with socket.create_connection(("127.0.0.1", self.server.names[host])) as far:
            if tunnel:
                self.wfile.write(b"HTTP/1.1 200 OK\r\n\r\n")
            far.sendall(head)
            ends = {far: self.connection, self.connection: far}
            while True:
                for source in select.select(ends, (), ())[0]:
                    if not (data := source.recv(1 << 16)):
                        self.close_connection = True
                        return
                    ends[source].sendall(data)

    def do_CONNECT(self):
        self.pass_on(self.path.partition(":")[0], tunnel=True)

    def forward(self):
        url = urlsplit(self.path)
        path = f"{url.path}?{url.query}" if url.query else url.path
        lines = "".join(f"{name}: {value}\r\n" for name, value in self.headers.items())
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.pass_on(url.hostname, f"{self.command} {path} HTTP/1.1\r\n{lines}\r\n".encode() + body)

    do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = forward  # noqa: N815 - http.server's names


@pytest.fixture
def proxy():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Relay)
    server.daemon_threads = True
    server.names, server.lines, server.login = {}, [], ""
    server.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture(autouse=True)
def unknown_names(monkeypatch):
    """The worker's own resolver knows no store."""

    def getaddrinfo(host, *rest, **options):
        if str(host).endswith(".example"):
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return _getaddrinfo(host, *rest, **options)

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)


@pytest.fixture
def disk(tmp_path):
    path = tmp_path / "hda.flat.qcow2"
    path.write_bytes(b"disk" * 4096)
    return path


def policy(proxy, *, more=None, **settings):
    way = HttpProxy(url=proxy.url, **(more or {}))
    return ImagePolicy(**{"timeout_s": PATIENCE_S, "proxy": way, **settings})


def saved(writer, uri, disk):
    digest = hashlib.sha256(disk.read_bytes()).hexdigest()
    token = writer.stage(uri, disk, digest, KEY, lambda done, total: None)
    return writer.commit(uri, token, digest, None, KEY, lambda done, total: None)


def test_image_is_fetched_through_the_proxy(proxy, httpserver):
    httpserver.expect_request("/a.raw").respond_with_data(b"bytes", headers={"ETag": '"v"'})
    proxy.names["store.example"] = httpserver.port
    reader, uri = Http(policy(proxy)), parse("http://store.example:8080/a.raw")
    with reader.visit(uri, None) as (head, begins, chunks):
        assert (head.size, head.validator, begins, b"".join(chunks)) == (5, '"v"', 0, b"bytes")
    assert proxy.lines == ["GET http://store.example:8080/a.raw HTTP/1.1"]
    assert httpserver.log[0][0].headers["Host"] == "store.example:8080"


def test_tls_is_between_worker_and_store(proxy, tmp_path):
    cert, key = self_signed(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    with HTTPServer(ssl_context=context) as server:
        server.expect_request("/a.raw").respond_with_data(b"bytes")
        proxy.names["store.example"] = server.port
        reader = Http(policy(proxy))
        reader._trusted = ssl.create_default_context(cafile=str(cert))
        with pytest.raises(TransferFailed, match=r"proxy http.*CERTIFICATE_VERIFY_FAILED"):
            reader.head(parse("https://store.example/a.raw"))  # the certificate is that of another host
        reader._trusted.check_hostname = False
        assert reader.head(parse("https://store.example/a.raw")).size == 5
    assert proxy.lines == ["CONNECT store.example:443 HTTP/1.1"] * 2


def test_disks_are_saved_through_the_proxy(proxy, httpserver, disk, tmp_path):
    shop, uri = Shop(httpserver), parse("http://store.example/disks/a.qcow2")
    proxy.names["store.example"] = httpserver.port
    assert saved(Put(policy(proxy, save_hosts=("store.example",))), uri, disk) == uri.text
    assert shop.kept == {"/disks/a.qcow2": disk.read_bytes()}
    s3 = S3Server()
    try:
        proxy.names["127.0.0.1"] = s3.port
        known = msgspec.convert(s3.settings(tmp_path), S3Store, dec_hook=lambda kind, value: kind(value))
        rules = policy(proxy, stores={"s3://disks": known}, http_networks=("127.0.0.0/8",))
        before = len(proxy.lines)
        assert saved(S3(rules), parse("s3://disks/a.qcow2"), disk) == "s3://disks/a.qcow2"
        assert s3.get("a.qcow2") == disk.read_bytes()
        assert len(proxy.lines) > before
    finally:
        s3.close()


def test_some_hosts_are_reached_directly(proxy, httpserver):
    """Here too, each hop of a redirect is judged on its own."""
    httpserver.expect_request("/a.raw").respond_with_data(b"bytes")
    httpserver.expect_request("/away").respond_with_data(
        b"", status=302, headers={"Location": f"http://127.0.0.1:{httpserver.port}/a.raw"}
    )
    proxy.names["store.example"] = httpserver.port
    more = {"direct": ("127.*", "*.lan", "LOCALHOST")}
    reader = Http(policy(proxy, more=more, http_networks=("127.0.0.0/8",)))
    assert reader.head(parse(f"http://127.0.0.1:{httpserver.port}/a.raw")).size == 5
    assert reader.head(parse(f"http://localhost:{httpserver.port}/a.raw")).size == 5
    assert proxy.lines == []
    assert reader.head(parse("http://store.example/away")).size == 5
    assert proxy.lines == ["GET http://store.example/away HTTP/1.1"]
    with pytest.raises(Refused, match="not a public address"):
        Http(policy(proxy, more=more)).head(parse(f"http://localhost:{httpserver.port}/a.raw"))


@pytest.mark.parametrize("url", ["http://127.0.0.1:{port}/", "http://2130706433/", "http://[::1]/", "http://10.0.0.1/"])
def test_private_address_is_refused_before_the_proxy(proxy, httpserver, url):
    proxy.names["store.example"] = httpserver.port
    target = url.format(port=httpserver.port)
    httpserver.expect_request("/away").respond_with_data(b"", status=302, headers={"Location": target})
    for uri in (f"{target}a.raw", "http://store.example/away"):
        with pytest.raises(Refused, match="not a public address"):
            Http(policy(proxy)).head(parse(uri))
    assert proxy.lines == ["GET http://store.example/away HTTP/1.1"]


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_login_at_the_proxy_is_for_it_alone(proxy, httpserver, tmp_path, scheme):
    password = tmp_path / "password"
    password.touch(mode=0o600)
    password.write_text(f"{CANARY}\n")
    httpserver.expect_request("/a.raw").respond_with_data(b"bytes")
    proxy.names["store.example"] = httpserver.port
    proxy.login = "Basic " + base64.b64encode(f"ann:{CANARY}".encode()).decode()
    uri = parse(f"{scheme}://store.example/a.raw")
    with pytest.raises(TransferFailed, match=r"407.*password_file") as failure:
        Http(policy(proxy)).head(uri)
    assert not failure.value.retry
    login = {"user": "ann", "password_file": password}
    if scheme == "http":
        assert Http(policy(proxy, more=login)).head(uri).size == 5
    else:
        with pytest.raises(TransferFailed, match="through the proxy") as failure:
            Http(policy(proxy, more=login)).head(uri)  # this server speaks no TLS
        assert CANARY not in str(failure.value)
    password.chmod(0o644)
    with pytest.raises(Refused, match="chmod 600"):
        Http(policy(proxy, more=login)).head(uri)


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_proxy_that_is_away_is_named(proxy, scheme):
    gone = HttpProxy(url="http://127.0.0.1:1")
    with pytest.raises(TransferFailed, match=r"through the proxy http://127\.0\.0\.1:1: .*refused") as failure:
        Http(ImagePolicy(proxy=gone)).head(parse(f"{scheme}://store.example/a.raw"))
    assert failure.value.retry
    with pytest.raises(TransferFailed, match="502"):
        Http(policy(proxy)).head(parse(f"{scheme}://unknown.example/a.raw"))


@pytest.mark.parametrize(
    ("lines", "error"),
    [
        ('url = "http://proxy:3128"\nuser = "ann"\npassword_file = "/p"\ndirect = ["*.lan"]', ""),
        ('url = "https://proxy"', ""),
        ('url = "socks5://proxy:1080"', "http://HOST:PORT"),
        ('url = "proxy:3128"', "http://HOST:PORT"),
        (f'url = "http://ann:{CANARY}@proxy:3128"', "password_file"),
        ('user = "ann"', "url"),
        ('url = "http://proxy:3128"\nno_proxy = "x"', "no_proxy"),
    ],
)
def test_proxy_in_the_settings(tmp_path, lines, error):
    file = tmp_path / "worker.toml"
    file.write_text(f"[images.proxy]\n{lines}\n")
    if not error:
        assert load(file).images.for_owner("ann").proxy is not None
        return
    with pytest.raises(BadRequest, match=error) as failure:
        load(file)
    assert CANARY not in str(failure.value)
