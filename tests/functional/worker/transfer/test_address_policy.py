"""Forbidden addresses of images: the worker's loopback, metadata services, names that change their address.

No packet leaves this machine. The test resolves the names, and a connection to anything but its listeners fails it.
"""

import socket
import ssl
import subprocess
from contextlib import suppress

import pytest
from pytest_httpserver import HTTPServer
from werkzeug import Response

from tests.lib.acceptor import Acceptor
from worker_service.core.errors import Refused, SalternError, TransferFailed
from worker_service.core.settings import ImagePolicy
from worker_service.images.cache import Cache
from worker_service.operations import validation
from worker_service.transfer.http import Http
from worker_service.transfer.http_put import Put
from worker_service.transfer.uri import parse

PUBLIC = "93.184.216.34"
_getaddrinfo, _create_connection = socket.getaddrinfo, socket.create_connection


class Net:
    """Names and connections that a test sets.

    Attributes:
        names: the addresses of each name, one list for each lookup; the last one stays.
        asked: the names that were asked for.
        connects: the addresses that were connected to.
        stands_for: ports of loopback behind public addresses.
    """

    def __init__(self):
        self.names, self.lookups, self.connects, self.stands_for = {}, [], [], {}

    def getaddrinfo(self, host, port, *rest, **options):
        with suppress(socket.gaierror):
            options["flags"] = options.get("flags", 0) | socket.AI_NUMERICHOST
            return _getaddrinfo(host, port, *rest, **options)
        if host.rstrip(".").lower() == "localhost":
            answers = [["127.0.0.1", "::1"]]
        elif (answers := self.names.get(host)) is None:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        self.lookups.append(host)
        addresses = answers.pop(0) if len(answers) > 1 else answers[0]
        return [info for address in addresses for info in _getaddrinfo(address, port, type=socket.SOCK_STREAM)]

    def create_connection(self, address, *rest, **options):
        self.connects.append(address[0])
        if address[0] in self.stands_for:
            return _create_connection(("127.0.0.1", self.stands_for[address[0]]), *rest, **options)
        assert address[0] in ("127.0.0.1", "::1"), f"a connection to {address} was tried"
        return _create_connection(address, *rest, **options)


@pytest.fixture
def net(monkeypatch):
    made = Net()
    monkeypatch.setattr(socket, "getaddrinfo", made.getaddrinfo)
    monkeypatch.setattr(socket, "create_connection", made.create_connection)
    return made


@pytest.fixture
def listener():
    """A port on each loopback address, and those who knocked there."""
    knocked = []
    first = socket.create_server(("127.0.0.1", 0))
    port = first.getsockname()[1]
    listeners = [first]
    with suppress(OSError):
        listeners.append(socket.create_server(("::1", port), family=socket.AF_INET6))

    def accepted(connection):
        with connection:
            knocked.append(connection)

    acceptors = [Acceptor(listener, accepted) for listener in listeners]
    yield port, knocked
    for acceptor in acceptors:
        acceptor.close()


HOSTS = [
    "127.0.0.1", "127.1", "2130706433", "0x7f000001", "0177.0.0.1", "0x7f.0.0.1", "127.0.1", "017700000001",
    "127.000.000.001", "[::1]", "[::ffff:127.0.0.1]", "[::127.0.0.1]", "[64:ff9b::7f00:1]", "[64:ff9b::a9fe:a9fe]",
    "[::ffff:7f00:1]", "[0:0:0:0:0:0:0:1]", "0.0.0.0", "0", "[::]", "localhost", "localhost.", "LOCALHOST",
    "LocalHost.", "127.0.0.1.", "169.254.169.254", "[fd00:ec2::254]", "224.0.0.1", "[ff02::1]", "[fec0::1]",
    "①②⑦.0.0.1", "127。0。0。1", "127.0.0.1%00.ok", "ok.example%00@127.0.0.1", "a@127.0.0.1",
]  # fmt: skip
URLS = [f"http://{host}:{{port}}/latest/meta-data/" for host in HOSTS] + [
    "http://169.254.169.254/latest/meta-data/",
    "http://[fd00:ec2::254]/",
    "http://ok.example#@127.0.0.1:{port}/",
    "http://ok.example\\@127.0.0.1:{port}/",
    "http://127.0.0.1:{port}\t/",
    "http://metadata.example:{port}/",
    "http:///127.0.0.1:{port}/",
    "http://:{port}/",
]


@pytest.mark.parametrize("url", URLS)
def test_no_way_of_writing_it_leads_to_a_private_address(net, listener, tmp_path, url):
    port, knocked = listener
    net.names = {"metadata.example": [["169.254.169.254"]], "ok.example": [["127.0.0.1"]]}
    text = url.format(port=port)
    cache = Cache(tmp_path, ImagePolicy())
    cache.prepare()
    with pytest.raises(SalternError) as refused:
        cache.fetch(parse(text), "disk", lambda done, size: None)
    assert not refused.value.retry or "cannot be resolved" in str(refused.value)
    assert (net.connects, knocked) == ([], [])


NAMES = {"localhost", "localhost.", "LOCALHOST", "LocalHost.", "127.0.0.1.", "127.0.0.1%00.ok"}


@pytest.mark.parametrize("host", sorted(set(HOSTS) - NAMES))
def test_forbidden_address_is_refused_at_the_request(net, host):
    """Not only when a helper resolves it: the caller gets the error at once."""
    with pytest.raises(SalternError) as refused:
        validation.check_image(f"http://{host}/a.raw", ImagePolicy())
    assert refused.value.http_status in (400, 403)
    assert net.lookups == []  # and the request waits for no resolver


def test_name_that_changes_its_mind(net, listener, httpserver):
    """Public when it is looked at, loopback when it is connected to: it is asked once, and its answer connected to."""
    port, knocked = listener
    httpserver.expect_request("/a.raw").respond_with_data(b"bytes", headers={"ETag": '"v"'})
    net.names = {"rebind.example": [[PUBLIC], ["127.0.0.1"]]}
    net.stands_for = {PUBLIC: httpserver.port}
    reader, uri = Http(ImagePolicy()), parse(f"http://rebind.example:{port}/a.raw")
    head = reader.head(uri)
    assert (head.size, net.lookups, net.connects) == (5, ["rebind.example"], [PUBLIC])
    with pytest.raises(Refused, match=r"127\.0\.0\.1"):
        next(reader.read(uri, 0, head))
    assert (net.connects, knocked) == ([PUBLIC], [])


def test_private_address_beside_a_public_one_is_left_out(net, listener, httpserver):
    port, knocked = listener
    httpserver.expect_request("/a.raw").respond_with_data(b"bytes")
    net.names, net.stands_for = {"both.example": [["127.0.0.1", PUBLIC, "::1"]]}, {PUBLIC: httpserver.port}
    assert Http(ImagePolicy()).head(parse(f"http://both.example:{port}/a.raw")).size == 5
    net.stands_for = {PUBLIC: 1}  # nobody is there: the others are still not tried
    with pytest.raises(TransferFailed, match="refused"):
        Http(ImagePolicy()).head(parse(f"http://both.example:{port}/a.raw"))
    assert (net.connects, knocked) == ([PUBLIC, PUBLIC], [])


def through(net, httpserver, location, scheme="http", reader=Http):
    """Fetch from a public place that leads elsewhere."""
    httpserver.expect_request("/a.raw").respond_with_response(Response(status=302, headers={"Location": location}))
    net.names = {"away.example": [[PUBLIC]], "inside.example": [["10.0.0.1"]], "localhost": [["127.0.0.1"]]}
    net.stands_for = {PUBLIC: httpserver.port}
    reader(ImagePolicy(timeout_s=20)).head(parse(f"{scheme}://away.example/a.raw"))


@pytest.mark.parametrize(
    "location",
    [
        "file:///etc/shadow", "gopher://127.0.0.1:{port}/", "ftp://127.0.0.1:{port}/", "data:text/plain,x",
        "http://169.254.169.254/latest/meta-data/", "http://[fd00:ec2::254]/", "http://127.0.0.1:{port}/",
        "//127.0.0.1:{port}/", "http://2130706433:{port}/", "http://[64:ff9b::7f00:1]:{port}/",
        "http://localhost:{port}/", "http://inside.example:{port}/", "http://a@127.0.0.1:{port}/",
        "https://[::1]:{port}/",
    ],
)  # fmt: skip
def test_redirect_leads_nowhere_else(net, listener, httpserver, location):
    port, knocked = listener
    with pytest.raises(Refused):
        through(net, httpserver, location.format(port=port))
    assert (net.connects, knocked) == ([PUBLIC], [])


@pytest.mark.parametrize(
    "location", ["", "http://", "http://[", "http://x:99999999/", "\x00", "http://①②⑦.0.0.1/", "http://0177.0.0.1/"]
)
def test_redirect_that_is_none(net, httpserver, location):
    with pytest.raises(SalternError):
        through(net, httpserver, location)
    assert set(net.connects) == {PUBLIC}


def test_redirect_from_tls_to_none(net, listener, tmp_path):
    key, cert = str(tmp_path / "key"), str(tmp_path / "cert")
    argv = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", key, "-out", cert, "-days", "2"]
    subprocess.run(
        [*argv, "-subj", "/CN=away.example", "-addext", "subjectAltName=DNS:away.example"],
        check=True,
        capture_output=True,
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)

    class Trusting(Http):
        _trusted = ssl.create_default_context(cafile=cert)

    with HTTPServer(ssl_context=context) as server, pytest.raises(Refused, match="redirects to http:"):
        through(net, server, "http://away.example/b.raw", "https", Trusting)
    assert net.connects == [PUBLIC]


def test_redirects_are_limited(net, httpserver):
    def on(request):
        hop = int(request.path.rpartition("/")[2])
        return Response(status=302, headers={"Location": f"/hop/{hop + 1}"}) if hop < 50 else Response(b"bytes")

    httpserver.expect_request(httpserver.create_matcher("/hop/0").uri).respond_with_handler(on)
    for hop in range(1, 51):
        httpserver.expect_request(f"/hop/{hop}").respond_with_handler(on)
    net.names, net.stands_for = {"away.example": [[PUBLIC]]}, {PUBLIC: httpserver.port}
    with pytest.raises(TransferFailed, match="more than 3 times") as failed:
        Http(ImagePolicy(timeout_s=20)).head(parse("http://away.example/hop/0"))
    assert not failed.value.retry
    assert len(net.connects) <= 4


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_disk_is_not_sent_on_to_another_host(net, listener, httpserver, tmp_path, status):
    port, knocked = listener

    def answer(request):
        if request.method == "GET":
            return Response(status=404)
        return Response(status=status, headers={"Location": f"http://127.0.0.1:{port}/a.qcow2"})

    httpserver.expect_request("/a.qcow2").respond_with_handler(answer)
    disk = tmp_path / "hda.flat.qcow2"
    disk.write_bytes(b"secret" * 1000)
    net.names, net.stands_for = {"away.example": [[PUBLIC]]}, {PUBLIC: httpserver.port}
    put, uri = Put(ImagePolicy(save_hosts=("away.example",), timeout_s=20)), parse("http://away.example/a.qcow2")
    token = put.stage(uri, disk, "0" * 64, "key", lambda done, total: None)
    with pytest.raises(Refused, match="follows no redirect"):
        put.commit(uri, token, "0" * 64, None, "key", lambda done, total: None)
    assert (set(net.connects), knocked) == ({PUBLIC}, [])
