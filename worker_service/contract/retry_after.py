"""The pause that an HTTP server asks for with Retry-After. Both services keep it. Pure.

It needs nothing but the standard library. It is not re-exported: most helpers do without it.
"""

from __future__ import annotations

import math
import re
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Final

MAX_PAUSE_S: Final = 600.0
"""Longest pause that a server gets."""

_SECONDS: Final = re.compile(r"[0-9]{1,9}")


def requested_pause_s(retry_after: str, now: datetime) -> float:
    """Return the seconds of a Retry-After, which has seconds or a date (RFC 9110, 10.2.3); 0 if it has neither."""
    if _SECONDS.fullmatch(retry_after):
        return float(retry_after)
    try:
        until = parsedate_to_datetime(retry_after)
    except ValueError:
        return 0.0
    return max(0.0, math.ceil((until.replace(tzinfo=until.tzinfo or UTC) - now).total_seconds()))
