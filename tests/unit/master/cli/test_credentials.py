"""Tokens are sent only to the master that they belong to."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from master_service.cli.common import credentials
from master_service.cli.common.client import Exit, Failure
from master_service.cli.common.credentials import Credential, find_token, foreign, listeners, session_file
from master_service.cli.common.options import Options

HEAD = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"
LOCAL = "http://127.0.0.1:8080"
SALTERN, EVE = 998, 1001


@pytest.fixture
def home(tmp_path, monkeypatch):
    """An empty folder to work in, and one for sessions."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(credentials, "DEFAULT_FILES", (Path("var/admin.token"), tmp_path / "etc/admin.token"))
    (tmp_path / "etc").mkdir()
    (tmp_path / "var").mkdir()
    return tmp_path


@pytest.fixture
def sockets(tmp_path, monkeypatch):
    """The sockets of a host: (address in hex, port, state, uid) of each."""

    def write(*entries):
        for name, length in (("tcp", 8), ("tcp6", 32)):
            lines = (
                f"   0: {address}:{port:04X} {'0' * length}:0000 {state} 0:0 00:0 0 {uid} 0 1 1 x 100 0 0 10 0\n"
                for address, port, state, uid in entries
                if len(address) == length
            )
            (tmp_path / name).write_text(HEAD + "".join(lines))
        monkeypatch.setattr(credentials, "_SOCKETS", tmp_path)

    return write


IPV4, ANY4, OTHER4 = "0100007F", "00000000", "0500000A"
IPV6, ANY6, MAPPED = "0" * 24 + "01000000", "0" * 32, "0000000000000000FFFF00000100007F"


@pytest.mark.parametrize(
    ("entries", "uids"),
    [
        ([(IPV4, 8080, "0A", SALTERN)], [SALTERN]),
        ([(ANY4, 8080, "0A", SALTERN), (IPV6, 8080, "0A", EVE)], [SALTERN, EVE]),
        ([(ANY6, 8080, "0A", EVE)], [EVE]),
        ([(MAPPED, 8080, "0A", EVE)], [EVE]),
        ([(OTHER4, 8080, "0A", EVE)], []),  # an address of the network is not reached by loopback
        ([(IPV4, 8081, "0A", EVE)], []),
        ([(IPV4, 8080, "01", EVE)], []),  # a connection, no listener
        ([], []),
    ],
)
def test_listeners_of_a_port_are_found(sockets, entries, uids):
    sockets(*entries)
    assert list(listeners(8080)) == uids


@pytest.mark.parametrize("url", [LOCAL, "http://localhost:8080/", "http://[::1]:8080", "https://127.0.0.2:8080"])
@pytest.mark.parametrize(("uid", "why"), [(0, ""), (SALTERN, ""), (EVE, "belongs to the user with uid 1001")])
def test_master_of_this_host_is_known_by_its_listener(sockets, url, uid, why):
    sockets((IPV4, 8080, "0A", uid))
    found = foreign(url, SALTERN)
    assert (found == "") is (why == "")
    assert why in found


@pytest.mark.parametrize(
    "url",
    [
        "http://evil.test:8080", "https://10.0.0.5", "http://127.0.0.1:8080@evil.test:8080", "http://0.0.0.0:8080",
        "http://127.0.0.1.evil.test:8080", "http://localhost.:8080", "http://[::ffff:10.0.0.5]:8080", "nonsense",
        "http://evil.test:8080#@127.0.0.1", "http://evil.test:8080/127.0.0.1", "http://127.0.0.1:9999", "",
        "http://", "ftp://127.0.0.1",
    ],
)  # fmt: skip
def test_other_urls_are_foreign(sockets, url):
    sockets((IPV4, 8080, "0A", SALTERN))
    assert foreign(url, SALTERN)


def test_default_token_stays_on_this_host(home, sockets):
    (home / "etc/admin.token").write_text("root\n")
    sockets((IPV4, 8080, "0A", 0))
    assert find_token(None, None, LOCAL) == Credential(token="root")
    found = find_token(None, None, "https://evil.test")
    assert found.token == ""
    assert "evil.test is another host" in found.withheld
    assert str(home / "etc/admin.token") in found.withheld


def test_token_of_a_login_goes_to_its_url_alone(home):
    path = session_file("https://a.test:8080/")
    path.parent.mkdir(parents=True)
    path.write_text("session")
    assert find_token(None, None, "https://a.test:8080").token == "session"
    for url in ("https://b.test:8080", "http://a.test:8080", "https://a.test", "https://a.test:8080/x"):
        assert find_token(None, None, url) == Credential()


def test_named_token_goes_where_its_user_says(home):
    (home / "mine").write_text(" file \n")
    assert find_token(" given ", home / "mine", "https://any.test") == Credential(token="given")
    assert find_token(None, home / "mine", "https://any.test") == Credential(token="file")
    with pytest.raises(Failure, match="Cannot read the token"):
        find_token(None, home / "missing", LOCAL)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file to another user")
def test_file_of_another_user_in_this_folder_is_no_token(home, sockets):
    sockets((IPV4, 8080, "0A", 0))
    token = home / "var/admin.token"
    token.write_text("of the folder")
    assert find_token(None, None, LOCAL).token == "of the folder"
    (home / "etc/admin.token").write_text("installed")
    os.chown(token, EVE, -1)
    os.chown(home / "etc/admin.token", SALTERN, -1)  # the service's own
    assert find_token(None, None, LOCAL).token == "installed"
    token.unlink()
    os.mkfifo(token)  # reading it would wait for ever
    assert find_token(None, None, LOCAL).token == "installed"


CATCHER = """
import http.server, os
os.setuid(65534)
class Catch(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        print(self.headers["Authorization"], flush=True)
        self.send_response(401)
        self.end_headers()
server = http.server.HTTPServer(("127.0.0.1", 0), Catch)
print(server.server_port, flush=True)
server.handle_request()
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can start a process of another user")
def test_other_user_of_this_host_gets_no_token(home, monkeypatch):
    """A real process listens where no master runs, and real sockets are listed."""
    (home / "etc/admin.token").write_text("secret of root")
    with subprocess.Popen([sys.executable, "-c", CATCHER], stdout=subprocess.PIPE, text=True, cwd="/") as process:
        url = f"http://127.0.0.1:{process.stdout.readline().strip()}"
        with pytest.raises(Failure, match="belongs to the user with uid 65534") as caught:
            Options(url=url, token=None, token_file=None).client().get("/vmachines")
        assert caught.value.exit_code is Exit.DENIED
        assert process.stdout.readline() == "None\n"


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
def test_own_listener_is_recognized(family):
    host = "127.0.0.1" if family is socket.AF_INET else "::1"
    with socket.create_server((host, 0), family=family) as server:
        port = server.getsockname()[1]
        assert list(listeners(port)) == [os.geteuid()]
        assert foreign(f"http://{host if family is socket.AF_INET else f'[{host}]'}:{port}", os.geteuid()) == ""
