"""Checks of untrusted input from workers: its size, and values that the database cannot store. Pure.

msgspec checks the shape. A valid shape may still hold a report that is too large, a number that no column can store, or
a character that PostgreSQL refuses. Such an answer is dropped, and must not affect other workers.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from worker_service.contract import ListReply, VMStatus
from worker_service.contract.uri_secrets import masked

MOST_GENERATION: Final = 1_000_000_000
"""Far above the number of commands that a VM ever gets, and well below the limit of a column."""

_NUL: Final = b"\\u0000"
_TEXT: Final = 2000


def validate_status(status: VMStatus, limit: int) -> str:
    """Return what is wrong with a report of one VM, or "". `limit`: bytes of it as JSON."""
    try:
        encoded = msgspec.json.encode(status)
    except (ValueError, OverflowError, RecursionError) as err:
        return f"its report of a VM is not text: {err}"
    if len(encoded) > limit:
        return f"its report of one VM has {len(encoded)} bytes, {limit} are read"
    if _NUL in encoded:
        return "its report of a VM has a NUL in it"
    if not 0 <= status.generation <= MOST_GENERATION:
        return f"its report of a VM has the generation {status.generation}"
    return ""


def validate_list(reply: ListReply, limit: int) -> str:
    """Return what is wrong with a whole list, or "". `limit`: bytes of one VM's report."""
    for status in reply.vmachines:
        if why := validate_status(status, limit):
            return why
    if any(not 0 <= generation <= MOST_GENERATION for generation in reply.tombstones.values()):
        return "it reports a destroy at a generation that no command had"
    try:
        rest = msgspec.json.encode((reply.foreign, reply.tombstones, reply.capacity, reply.version))
    except (ValueError, OverflowError, RecursionError) as err:
        return f"its list is not text: {err}"
    return "its list has a NUL in it" if _NUL in rest else ""


def sanitize_text(text: object) -> str:
    """Return a worker's sentence without secrets, and without characters that cannot be stored or shown."""
    return masked(str(text)[: 2 * _TEXT].replace("\0", "")).encode("utf-8", "replace").decode()[:_TEXT]


def limit_size(answer: Any, limit: int) -> Any:
    """Return a worker's decoded answer, or a sentence if it is larger than `limit` bytes or cannot be stored."""
    try:
        size = len(msgspec.json.encode(answer))
    except (ValueError, TypeError, OverflowError, RecursionError) as err:
        return f"with something that is not text: {err}"
    return answer if size <= limit else too_large(size, limit)


def too_large(size: int, limit: int) -> str:
    """Return the sentence that replaces an answer of this size."""
    return f"with {size} bytes, of which at most {limit} are read (worker_reply_limit_mib)"
