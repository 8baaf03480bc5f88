"""The logs of the worker's own processes. The watcher logs through its minion."""

from __future__ import annotations

import logging
import time

from worker_service.contract.uri_secrets import MaskingFormatter


def configure_logging() -> None:
    """Log lines with the time in UTC and without secrets of URIs. At INFO an HTTP client writes each URL."""
    logging.Formatter.converter = time.gmtime
    handler = logging.StreamHandler()
    handler.setFormatter(MaskingFormatter("%(asctime)s %(levelname)s %(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler])
