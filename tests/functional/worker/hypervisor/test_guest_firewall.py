"""A real guest on the network `user` that tries to reach what is not its own."""

import http.server
import socket
import struct
import subprocess
import sys
import threading
from contextlib import contextmanager

import pytest

from devstack.guests import build_demo
from devstack.guests.build import CACHE
from tests.lib import sandbox
from tests.lib.console import PROMPT, Console
from tests.lib.support import eventually
from worker_service.hypervisor import guest_firewall

RESOLVER = "127.0.0.53"
PRIVATE, PUBLIC = "10.66.0.2", "203.0.113.2"
OWN_PRIVATE, OWN_PUBLIC = "10.66.0.1", "203.0.113.1"
PORT = 8123
NOT_ITS_OWN = {"the host's loopback": "10.0.2.2", "the host": OWN_PRIVATE, "its net": PRIVATE, "its face": OWN_PUBLIC}


def ip(*words, inside=()):
    subprocess.run([*inside, "ip", *words], check=True)


class Page(http.server.BaseHTTPRequestHandler):
    """Answers everything."""

    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"reached")

    def log_message(self, *_):
        pass


@contextmanager
def served():
    """A port on all addresses of this host, and a resolver on its loopback that has one address for every name."""
    server = http.server.ThreadingHTTPServer(("0.0.0.0", PORT), Page)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as dns:
        dns.bind((RESOLVER, 53))

        def answer():
            while True:
                query, client = dns.recvfrom(512)
                if query == b"end":
                    return
                end = query.index(b"\0", 12) + 5
                a = query[end - 4 : end - 2] == b"\0\1"
                record = b"\xc0\x0c" + struct.pack(">HHIH", 1, 1, 60, 4) + socket.inet_aton(PUBLIC) if a else b""
                dns.sendto(query[:2] + b"\x81\x80\0\1" + struct.pack(">HHH", a, 0, 0) + query[12:end] + record, client)

        answering = threading.Thread(target=answer)
        answering.start()
        yield
        dns.sendto(b"end", (RESOLVER, 53))
        answering.join()
    server.shutdown()
    server.server_close()


OUTSIDE = f"""
import http.server, sys
sys.path.insert(0, ".")
from tests.functional.worker.hypervisor.test_guest_firewall import Page
server = http.server.ThreadingHTTPServer(("0.0.0.0", {PORT}), Page)
print("serving", flush=True)
server.serve_forever()
"""


@contextmanager
def outside():
    """Another host, with a private and a public address, on a cable to this one. It is a network namespace."""
    argv = ["setpriv", "--pdeathsig", "KILL", "unshare", "--net", sys.executable, "-c", OUTSIDE]
    with subprocess.Popen(argv, stdout=subprocess.PIPE) as other:
        assert other.stdout.readline() == b"serving\n"
        there = ("nsenter", "--net", "--target", str(other.pid))
        ip("link", "add", "here", "type", "veth", "peer", "name", "there", "netns", str(other.pid))
        for address, device, inside in (
            (OWN_PRIVATE, "here", ()),
            (OWN_PUBLIC, "here", ()),
            (PRIVATE, "there", there),
            (PUBLIC, "there", there),
        ):
            ip("addr", "add", f"{address}/24", "dev", device, inside=inside)
        ip("link", "set", "here", "up")
        ip("link", "set", "there", "up", inside=there)
        yield
        other.kill()
    ip("link", "del", "here")


@pytest.fixture
def network(tmp_path):
    """The host's network and resolver, as a site has them. Never on the machine itself."""
    addresses = subprocess.run(["ip", "-br", "addr", "show", "up"], check=True, capture_output=True, text=True).stdout
    if not sandbox.entered() or [line for line in addresses.splitlines() if not line.startswith("lo ")]:
        pytest.skip("needs a sandbox without the machine's network: its firewall stays as it is")
    resolv_conf = tmp_path / "resolv.conf"
    resolv_conf.write_text(f"nameserver {RESOLVER}\n")
    resolv_conf.chmod(0o644)
    subprocess.run(["mount", "--bind", str(resolv_conf), "/etc/resolv.conf"], check=True)
    with served(), outside():
        yield
        guest_firewall.remove()
    subprocess.run(["umount", "/etc/resolv.conf"], check=True)


@pytest.fixture
def image(site):
    path = site.images / "demo.qcow2"
    build_demo(path, CACHE)
    return path


def test_guest_reaches_neither_host_nor_private_networks(image, network, site):
    reply = site.start("curious", image, mem_size=128, network="user")
    site.wait("curious", "running")
    console = Console("curious", site.worker.store.folder(reply["uuid"]) / "console.log")
    console.wait(PROMPT)
    console.ask("until ip -4 addr show eth0 | grep -q inet; do sleep 0.1; done")

    def reached(*addresses):
        asking = (
            f"printf 'GET / HTTP/1.0\\r\\n\\r\\n' | nc -w 30 $each {PORT} 2>/dev/null | grep -q reached && echo $each"
        )
        return set(console.ask(f"for each in {' '.join(addresses)}; do {asking}; done").split())

    def resolves():
        return PUBLIC in console.ask("nslookup -type=a name.example 10.0.2.3")

    assert reached(*NOT_ITS_OWN.values(), PUBLIC) == {*NOT_ITS_OWN.values(), PUBLIC}  # what the firewall is for
    assert resolves()
    capabilities = site.call("capabilities")["guest_isolation"]
    assert not capabilities["works"]
    assert "saltern-guest-firewall.service" in capabilities["reason"]
    assert site.call("list")["capacity"]["guests_isolated"] is False

    guest_firewall.apply(site.worker.settings)

    assert reached(*NOT_ITS_OWN.values(), PUBLIC) == {PUBLIC}
    assert resolves()
    assert site.call("capabilities")["guest_isolation"]["works"]
    assert site.call("list")["capacity"]["guests_isolated"] is True
    assert site.call("destroy", name="curious")["success"]
    eventually(lambda: site.worker.store.is_gone(reply["uuid"]))
