"""The logs of the worker's own processes. The watcher logs through its minion."""

from __future__ import annotations

import logging
import time

from worker_service.contract.uri_secrets import MaskingFormatter


def configure_logging() -> None:
    """Log lines with the time in UTC and without secrets of URIs."""
    logging.Formatter.converter = time.gmtime
    handler = logging.StreamHandler()
    handler.setFormatter(MaskingFormatter("%(asctime)s %(levelname)s %(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    # At INFO it writes each URL, and that of a redirect may be a secret as a whole.
    logging.getLogger("httpx2").setLevel(logging.WARNING)
