"""The address of a VM's network card: the same in each of its runs, and no other VM of the worker has it."""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from itertools import count

from worker_service.state.record import Record


def mac_address(uuid: str, number: int = 0) -> str:
    """Return a locally administered address for a VM. `number` counts those that others had already."""
    digest = hashlib.sha256(f"{uuid}{number or ''}".encode()).digest()
    return "52:54:00:" + ":".join(f"{byte:02x}" for byte in digest[:3])


def mac_of(record: Record) -> str:
    """Return the address of a VM."""
    return record.mac or mac_address(record.uuid)


def free_mac(record: Record, taken: Collection[str]) -> str:
    """Return the address of a VM, or its next one if another VM has that. Addresses have 24 bits of their own."""
    if mac_of(record) not in taken:
        return mac_of(record)
    return next(mac for number in count(1) if (mac := mac_address(record.uuid, number)) not in taken)
