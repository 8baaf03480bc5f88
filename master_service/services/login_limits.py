"""How many passwords may be tried: by each source, of each account from one source, and of each account in all.

A caller spends only what belongs to their own source, and so locks nobody else out. Passwords guessed from many
sources meet the third limit, which does not apply to a source from which the account has logged in before. Everything
is in the memory of this master. It is the same for accounts that do not exist, so that neither the answer nor its time
tells them apart.
"""

from __future__ import annotations

import ipaddress
from collections import OrderedDict
from math import ceil
from typing import Final

from http_bounds.rate_limit import Limiter
from master_service.core.errors import TooMany

FREE_TRIES: Final = 5
"""Wrong passwords of one account from one source before tries have to wait."""

LOCK_S: Final = 30.0
"""The pause between two tries then. It does not grow, because an honest user may share the address."""

_TRIES_OF_AN_ACCOUNT: Final = 30
_LOCK_OF_AN_ACCOUNT_S: Final = 10.0
_TRIES_OF_A_SOURCE: Final = 20
_PAUSE_OF_A_SOURCE_S: Final = 2.0
_KNOWN: Final = 10_000


class LoginLimits:
    """Counts tries. Times are seconds of the wall clock."""

    def __init__(self) -> None:
        self._sources = Limiter[str](1 / _PAUSE_OF_A_SOURCE_S, _TRIES_OF_A_SOURCE)
        self._pairs = Limiter[tuple[str, str]](1 / LOCK_S, FREE_TRIES)
        self._accounts = Limiter[str](1 / _LOCK_OF_AN_ACCOUNT_S, _TRIES_OF_AN_ACCOUNT)
        self._known: OrderedDict[tuple[str, str], None] = OrderedDict()

    def admit(self, source: str, now: float) -> None:
        """Count a try of a source, before anything is computed for it. Raises TooMany."""
        if wait_s := self._sources.wait_s(source, now):
            text = "Too many passwords were tried from this address."
            raise TooMany(text, f"Try again in {wait_s:.0f} s.", retry_after_s=ceil(wait_s))

    def count(self, name: str, source: str, now: float) -> str:
        """Count a try of a password as wrong, before it is compared. Return why it is refused; empty if it is not.

        Tries at the same time cannot outrun the count.
        """
        pair = (name, source)
        if wait_s := self._pairs.wait_s(pair, now):
            return f"too many tries from this address; the next in {wait_s:.0f} s"
        if pair not in self._known and (wait_s := self._accounts.wait_s(name, now)):
            return f"too many tries from new addresses; the next in {wait_s:.0f} s"
        return ""

    def succeeded(self, name: str, source: str) -> None:
        """Forget the tries of a source whose password was right, and know it from now on."""
        pair = (name, source)
        self._pairs.forget(pair)
        self._known[pair] = None
        self._known.move_to_end(pair)
        if len(self._known) > _KNOWN:
            self._known.popitem(last=False)

    def forget(self, name: str) -> None:
        """Forget all tries of an account: it has another password."""
        self._accounts.forget(name)
        for pair in self._pairs.callers():
            if pair[0] == name:
                self._pairs.forget(pair)

    def waits(self, now: float) -> dict[str, float]:
        """Return the accounts for which a source has to wait, with the longest wait in seconds."""
        found: dict[str, float] = {}
        for name, source in self._pairs.callers():
            if wait_s := self._pairs.next_s((name, source), now):
                found[name] = max(wait_s, found.get(name, 0.0))
        return found


def source_of(address: str) -> str:
    """Return what counts as one source: an IPv4 address, or the network of an IPv6 one.

    A host has all addresses of its /64 network for itself.
    """
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return address
    if isinstance(found, ipaddress.IPv4Address):
        return str(found)
    return str(found.ipv4_mapped or ipaddress.ip_network((int(found) >> 64 << 64, 64)))
