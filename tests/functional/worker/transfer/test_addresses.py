"""A store's name with several addresses, of which some are dead: fetched from and saved to at one that answers."""

import hashlib
import socket

import httpx2
import msgspec
import pytest
from pytest_httpserver import HTTPServer

from tests.functional.worker.transfer.test_http_put import KEY, Shop
from tests.lib.stores import S3Server, SftpServer
from tests.lib.support import PATIENCE_S
from worker_service.contract.public_address import CONNECT_S
from worker_service.core.errors import Refused, TransferFailed
from worker_service.core.settings import ImagePolicy, S3Store, SftpStore
from worker_service.transfer.http import Http
from worker_service.transfer.http_put import Put
from worker_service.transfer.s3 import S3
from worker_service.transfer.sftp import Sftp
from worker_service.transfer.uri import parse

LOOPBACK = ("127.0.0.0/8", "::1/128")
_getaddrinfo, _create_connection = socket.getaddrinfo, socket.create_connection


class Names:
    """The addresses of `store.example` and localhost, and the connections that were tried: address and time limit."""

    def __init__(self):
        self.addresses, self.tried = ["127.0.0.2", "127.0.0.1"], []

    def getaddrinfo(self, host, port, *rest, **options):
        if host not in ("store.example", "localhost"):
            return _getaddrinfo(host, port, *rest, **options)
        if options.get("flags", 0) & socket.AI_NUMERICHOST:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return [info for each in self.addresses for info in _getaddrinfo(each, port, type=socket.SOCK_STREAM)]

    def create_connection(self, address, timeout=None, **options):
        self.tried.append((address[0], timeout))
        return _create_connection(address, timeout, **options)

    def take(self):
        """Return the addresses that were tried since the last call."""
        tried, self.tried = [address for address, _limit in self.tried], []
        return tried


@pytest.fixture
def names(monkeypatch):
    made = Names()
    monkeypatch.setattr(socket, "getaddrinfo", made.getaddrinfo)
    monkeypatch.setattr(socket, "create_connection", made.create_connection)
    return made


@pytest.fixture
def disk(tmp_path):
    path = tmp_path / "hda.flat.qcow2"
    path.write_bytes(b"disk" * 4096)
    return path


def policy(**more):
    return ImagePolicy(**{"http_networks": LOOPBACK, "timeout_s": PATIENCE_S, **more})


def saved(writer, uri, disk):
    digest = hashlib.sha256(disk.read_bytes()).hexdigest()
    token = writer.stage(uri, disk, digest, KEY, lambda done, total: None)
    return writer.commit(uri, token, digest, None, KEY, lambda done, total: None)


@pytest.mark.parametrize("addresses", [["127.0.0.2", "127.0.0.1"], ["::1", "127.0.0.1"], ["127.0.0.1", "127.0.0.2"]])
def test_dead_address_is_passed_over(names, httpserver, addresses):
    httpserver.expect_request("/a.raw").respond_with_data(b"bytes", headers={"ETag": '"v"'})
    names.addresses = addresses
    reader, uri = Http(policy()), parse(f"http://store.example:{httpserver.port}/a.raw")
    assert b"".join(reader.read(uri, 0, reader.head(uri))) == b"bytes"
    dead = addresses[: addresses.index("127.0.0.1")]
    assert names.take() == [*dead, "127.0.0.1", "127.0.0.1"]  # it is not tried again
    assert all(host == f"store.example:{httpserver.port}" for host in hosts(httpserver))


def hosts(server):
    return [request.headers["Host"] for request, _answer in server.log]


def test_second_address_is_live(names, tmp_path):
    with HTTPServer(host="127.0.0.2") as server:
        server.expect_request("/a.raw").respond_with_data(b"bytes")
        names.addresses = ["127.0.0.1", "127.0.0.2"]
        assert Http(policy()).head(parse(f"http://store.example:{server.port}/a.raw")).size == 5
    assert names.take() == ["127.0.0.1", "127.0.0.2"]


def test_time_to_connect_is_short(names, httpserver):
    httpserver.expect_request("/a.raw").respond_with_data(b"bytes")
    Http(policy()).head(parse(f"http://store.example:{httpserver.port}/a.raw"))
    assert [limit for _address, limit in names.tried] == [CONNECT_S] * 2


def test_all_addresses_dead(names):
    with pytest.raises(TransferFailed, match=r"store\.example:1/a\.raw broke off") as failure:
        Http(policy()).head(parse("http://store.example:1/a.raw"))
    assert failure.value.retry
    assert names.take() == ["127.0.0.2", "127.0.0.1"]


def test_addresses_that_policy_forbids_are_left_out(names, httpserver):
    """A name with `::1`, where the site allows 127.0.0.0/8 alone, is no reason to use neither."""
    httpserver.expect_request("/a.raw").respond_with_data(b"bytes")
    uri = parse(f"http://store.example:{httpserver.port}/a.raw")
    names.addresses = ["::1", "10.0.0.1", "127.0.0.1", "169.254.169.254"]
    assert Http(policy(http_networks=("127.0.0.0/8",))).head(uri).size == 5
    assert names.take() == ["127.0.0.1"]
    with pytest.raises(Refused, match="not a public address"):
        Http(policy(http_networks=())).head(uri)
    assert names.take() == []


def test_error_of_a_server_is_no_reason_to_ask_another(names, httpserver):
    httpserver.expect_request("/a.raw").respond_with_data(b"", status=503)
    names.addresses = ["127.0.0.1", "127.0.0.2"]
    with pytest.raises(TransferFailed, match="503"):
        Http(policy()).head(parse(f"http://store.example:{httpserver.port}/a.raw"))
    assert names.take() == ["127.0.0.1"]


def test_disk_is_put_to_the_live_address(names, httpserver, disk):
    shop = Shop(httpserver)
    uri = parse(f"http://store.example:{httpserver.port}/disks/a.qcow2")
    assert saved(Put(policy(save_hosts=("store.example",))), uri, disk) == uri.text
    assert shop.kept == {"/disks/a.qcow2": disk.read_bytes()}
    assert len(shop.puts()) == 1
    assert names.take().count("127.0.0.2") == 1


def test_s3_and_sftp_use_the_live_address(names, disk, tmp_path):
    s3 = S3Server()
    try:
        known = {**s3.settings(tmp_path, endpoint=f"http://localhost:{s3.port}")}
        stores = {"s3://disks": msgspec.convert(known, S3Store, dec_hook=lambda kind, value: kind(value))}
        assert saved(S3(policy(stores=stores)), parse("s3://disks/a.qcow2"), disk) == "s3://disks/a.qcow2"
        assert s3.get("a.qcow2") == disk.read_bytes()
    finally:
        s3.close()
    assert names.take().count("127.0.0.2") == 1
    sftp = SftpServer(tmp_path)
    try:
        settings = sftp.settings()
        known_hosts = tmp_path / "known"
        known_hosts.write_text(sftp.known_hosts().read_text().replace("127.0.0.1", "store.example"))
        settings["known_hosts"] = str(known_hosts)
        store = msgspec.convert(settings, SftpStore, dec_hook=lambda kind, value: kind(value))
        at = f"sftp://store.example:{sftp.port}{sftp.folder}"
        names.take()
        assert saved(Sftp(policy(stores={at: store})), parse(f"{at}/a.qcow2"), disk) == f"{at}/a.qcow2"
        assert (sftp.folder / "a.qcow2").read_bytes() == disk.read_bytes()
        assert names.take()[:2] == ["127.0.0.2", "127.0.0.1"]
    finally:
        sftp.close()


def test_broken_answer_is_not_repeated_elsewhere(names, httpserver):
    """Only a connection that was never made is tried at the next address: a request may have had an effect."""
    assert not issubclass(httpx2.RemoteProtocolError, httpx2.ConnectError | httpx2.ConnectTimeout)
    names.addresses = ["127.0.0.1", "127.0.0.2"]
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.listen()
        uri = parse(f"http://store.example:{server.getsockname()[1]}/a.raw")
        with pytest.raises(TransferFailed):
            Http(policy(timeout_s=0.2)).head(uri)
    assert names.take() == ["127.0.0.1"]
