"""The firewall of guests on the network `user`: they reach public addresses and the host's resolver, and no others.

    python -m worker_service.hypervisor.guest_firewall [--settings FILE] {apply,remove,show,check}

QEMU itself makes the connections of such a guest, so one rule for QEMU's user holds for all guests, whatever VM they
belong to: a table `saltern_guests` of nftables, which no other program uses. Guests on a bridge or on a network of
libvirt send their packets past it.

The table is made by a unit (saltern-guest-firewall) or by `make run`. The worker only checks that it works, and reports
that to the master: other programs that flush the rules of the host remove this table too.
"""

from __future__ import annotations

import argparse
import ctypes
import ipaddress
import os
import socket
import subprocess
import sys
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

from worker_service.core import host
from worker_service.core.errors import HypervisorError, SalternError
from worker_service.core.settings import Settings, load

TABLE: Final = "saltern_guests"
RESOLV_CONF: Final = Path("/etc/resolv.conf")
_NFT_S: Final = 20.0
_ANSWER_S: Final = 0.5


def rules(networks: Iterable[str], uid: int, resolvers: Iterable[str]) -> str:
    """Return the table as a script for `nft -f`. It replaces an older one in one transaction."""
    denied = [ipaddress.ip_network(network) for network in networks]
    lines = [f"table inet {TABLE}", f"delete table inet {TABLE}", f"table inet {TABLE} {{"]
    sets = {version: [str(network) for network in denied if network.version == version] for version in (4, 6)}
    for version, elements in sets.items():
        lines.append(f"  set denied{version} {{ type ipv{version}_addr; flags interval; auto-merge;")
        lines += [f"    elements = {{ {', '.join(elements)} }};"] if elements else []
        lines.append("  }")
    lines += [
        "  chain output {",
        "    type filter hook output priority filter; policy accept;",
        f"    meta skuid != {uid} accept",
        "    ct state established,related accept",  # also answers to a viewer of a VNC port on the host
    ]
    for resolver in map(ipaddress.ip_address, resolvers):
        family = "ip" if resolver.version == 4 else "ip6"
        lines.append(f"    {family} daddr {resolver} meta l4proto {{ tcp, udp }} th dport 53 accept")
    lines += [
        "    fib daddr type local goto refuse",  # the host, by any of its addresses
        "    ip daddr @denied4 goto refuse",
        "    ip6 daddr @denied6 goto refuse",
        "  }",
        "  chain refuse {",
        "    counter",
        "    meta l4proto tcp reject with tcp reset",  # QEMU does not pass on to its guest what ICMP says about TCP
        "    reject",
        "  }",
        "}",
    ]
    return "\n".join(lines) + "\n"


def resolvers_in(text: str) -> list[str]:
    """Return the addresses of the name servers in a resolv.conf. Without any, the resolver is on the host."""
    found = []
    for line in text.splitlines():
        match line.split():
            case ["nameserver", address, *_]:
                with suppress(ValueError):  # an address with a scope, which nftables cannot name
                    found.append(str(ipaddress.ip_address(address.partition("%")[0])))
            case _:
                pass
    return found or ["127.0.0.1"]


def script(settings: Settings) -> str:
    """Return the table for this host. Raises HypervisorError if QEMU's user does not exist."""
    user = host.user(settings.qemu_user)
    if user is None:
        raise HypervisorError(
            f"This host has no user {settings.qemu_user}. Install libvirt, or set qemu_user in the worker's settings "
            "to the user that libvirt runs QEMU as."
        )
    if user.uid == 0:
        raise HypervisorError(
            "libvirt runs QEMU as root here (qemu_user), and no rule can tell guests from the host's own programs. "
            "Set `user` in qemu.conf and qemu_user in the worker's settings to another user."
        )
    text = RESOLV_CONF.read_text(errors="replace") if RESOLV_CONF.exists() else ""
    return rules(settings.guest_denied_networks, user.uid, resolvers_in(text))


def apply(settings: Settings) -> None:
    """Load the table into the kernel, and check that it works. Raises HypervisorError."""
    _nft("-f", "-", text=script(settings))
    isolated, reason = check(settings)
    if not isolated:
        raise HypervisorError(reason)


def remove() -> None:
    """Remove the table, if there is one. Raises HypervisorError."""
    _nft("-f", "-", text=f"table inet {TABLE}\ndelete table inet {TABLE}\n")


def _nft(*arguments: str, text: str) -> None:
    try:
        done = subprocess.run(
            ["nft", *arguments], input=text, capture_output=True, text=True, check=False, timeout=_NFT_S
        )
    except FileNotFoundError:
        raise HypervisorError("The program nft is missing: install the package nftables.") from None
    except subprocess.TimeoutExpired:
        raise HypervisorError(f"nft has not ended for {_NFT_S:g} s. Try again.") from None
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines()
        raise HypervisorError(
            f"nft failed ({lines[0] if lines else 'no message'}). It needs root, and a kernel with nf_tables, nft_ct, "
            "nft_fib_inet and nft_reject_inet."
        )


def check(settings: Settings) -> tuple[bool, str]:
    """Return whether guests on the network `user` are kept from this host, and a sentence with the reason.

    It is tried, not looked up: any firewall counts that refuses a connection from QEMU's user to a port on loopback.
    """
    user = host.user(settings.qemu_user)
    if user is None:
        return False, f"This host has no user {settings.qemu_user}; qemu_user in the worker's settings names QEMU's."
    try:
        reached = _reaches_loopback(user.uid)
    except OSError as err:
        return False, f"Whether guests are kept from this host could not be tried ({err.strerror}): it needs root."
    if reached:
        return False, (
            "Guests on the network `user` reach this host and its private networks: no firewall stops QEMU's user. "
            "Start saltern-guest-firewall.service; it says what is missing."
        )
    return True, "Guests on the network `user` are kept from this host and from guest_denied_networks."


def _reaches_loopback(uid: int) -> bool:
    """Return whether a connection of that user to a port of this process succeeds. Raises OSError."""
    with socket.create_server(("127.0.0.1", 0)) as listener, _socket_of(uid) as client:
        client.settimeout(_ANSWER_S)
        try:
            client.connect(listener.getsockname())
        except OSError:
            return False
    return True


def _socket_of(uid: int) -> socket.socket:
    """Return a socket that the kernel counts as another user's. Raises PermissionError.

    A socket belongs to the fsuid of the thread that makes it, and setfsuid(2) changes that of the calling thread alone.
    """
    libc = ctypes.CDLL(None)
    own = os.geteuid()
    libc.setfsuid(uid)
    try:
        if libc.setfsuid(uid) != uid:  # it returns the previous one, and no error
            raise PermissionError(1, os.strerror(1))
        return socket.socket()
    finally:
        libc.setfsuid(own)


def main(argv: Sequence[str] | None = None) -> int:
    """Do what the command line asks for; return the exit code."""
    parser = argparse.ArgumentParser(prog="worker_service.hypervisor.guest_firewall", description=__doc__)
    parser.add_argument("action", choices=("apply", "remove", "show", "check"))
    parser.add_argument("--settings", help="the worker's settings file (default: /etc/saltern/worker.toml)")
    arguments = parser.parse_args(argv)
    try:
        settings = load(arguments.settings)
        match arguments.action:
            case "apply":
                apply(settings)
            case "remove":
                remove()
            case "show":
                sys.stdout.write(script(settings))
            case _:
                isolated, reason = check(settings)
                sys.stdout.write(f"{reason}\n")
                return int(not isolated)
    except SalternError as err:
        sys.stderr.write(f"{err}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
