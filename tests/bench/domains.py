"""The time until libvirt reports a domain as running, with QEMU executing the guest."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import libvirt

_PATIENCE_S = 60
libvirt.registerErrorHandler(lambda *_: None, None)  # it would print each "not found", which is an answer here


def state(connection: libvirt.virConnect, name: str) -> int | None:
    """One of libvirt's VIR_DOMAIN_*, or None without such a domain."""
    try:
        return int(connection.lookupByName(name).state()[0])
    except libvirt.libvirtError:
        return None


def until_running(connection: libvirt.virConnect, name: str, act: Callable[[], object]) -> float:
    """Return the seconds from the start of `act` until the domain runs, which may be before `act` returns."""
    with ThreadPoolExecutor(1) as pool:
        begin = time.perf_counter()
        doing = pool.submit(act)
        while state(connection, name) != libvirt.VIR_DOMAIN_RUNNING:
            if time.perf_counter() - begin > _PATIENCE_S:
                raise SystemExit(f"{name} did not start: {doing}")
            time.sleep(0.002)
        taken = time.perf_counter() - begin
        doing.result()
    return taken
