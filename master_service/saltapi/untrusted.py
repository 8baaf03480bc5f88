"""What workers say is hostile input: how large it may be, and which words of it the database can keep. Pure.

Shapes are msgspec's to check. Here is what a proper shape can still hide: a report too large to be one, a number that
no column holds, a character that PostgreSQL refuses. One such answer must cost
its own worker's news, and nobody else's.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from worker_service.contract import ListReply, VMStatus

MOST_GENERATION: Final = 1_000_000_000
"""Far above what commands ever count up to, and room enough below what a column holds."""

_NUL: Final = b"\\u0000"
_TEXT: Final = 2000


def validate_status(status: VMStatus, limit: int) -> str:
    """What is wrong with a report of one VM; empty: nothing. `limit`: bytes of it as JSON."""
    try:
        told = msgspec.json.encode(status)
    except (ValueError, OverflowError, RecursionError) as err:
        return f"its report of a VM is no text: {err}"
    if len(told) > limit:
        return f"its report of one VM has {len(told)} bytes, {limit} are read"
    if _NUL in told:
        return "its report of a VM has a NUL in it"
    if not 0 <= status.generation <= MOST_GENERATION:
        return f"its report of a VM has the generation {status.generation}"
    return ""


def validate_list(reply: ListReply, limit: int) -> str:
    """The same for a whole list; `limit` is that of one VM."""
    for status in reply.vmachines:
        if why := validate_status(status, limit):
            return why
    if any(not 0 <= generation <= MOST_GENERATION for generation in reply.tombstones.values()):
        return "it tells of a destroy at a generation that no command had"
    try:
        rest = msgspec.json.encode((reply.foreign, reply.tombstones, reply.capacity, reply.version))
    except (ValueError, OverflowError, RecursionError) as err:
        return f"its list is no text: {err}"
    return "its list has a NUL in it" if _NUL in rest else ""


def sanitize_text(text: object) -> str:
    """A worker's sentence as it can be kept and shown."""
    return str(text).replace("\0", "").encode("utf-8", "replace").decode()[:_TEXT]


def limit_size(answer: Any, limit: int) -> Any:
    """One worker's decoded answer; a sentence in its place when it is larger than `limit` bytes or cannot be kept."""
    try:
        size = len(msgspec.json.encode(answer))
    except (ValueError, TypeError, OverflowError, RecursionError) as err:
        return f"with something that is no text: {err}"
    return answer if size <= limit else too_large(size, limit)


def too_large(size: int, limit: int) -> str:
    """The sentence that takes the place of an answer."""
    return f"with {size} bytes, of which at most {limit} are read (worker_reply_limit_mib)"
