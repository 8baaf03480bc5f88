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
    hide_urls()


def hide_urls() -> None:
    """Keep the HTTP client's lines out of every log: each has a URL, which may have a signature of any name."""
    logging.getLogger("httpx2").setLevel(logging.WARNING)
