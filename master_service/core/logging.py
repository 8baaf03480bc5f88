"""Logging: structlog to stderr, one line per event, readable on a terminal and otherwise JSON."""

from __future__ import annotations

import logging
import sys
from typing import Any

import structlog
from asgi_correlation_id import correlation_id
from structlog.typing import EventDict

from master_service.core.audience import full_text
from worker_service.contract.printable import printable_lines
from worker_service.contract.uri_secrets import MaskingFormatter, masked_values


def configure(level: str) -> None:
    """Set up logging for the process. `level` is debug, info, warning or error."""
    number = logging.getLevelNamesMapping()[level.upper()]
    on_terminal = sys.stderr.isatty()
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            _add_request_id,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            _mask,
            _make_full,
            *(
                (_make_printable, structlog.dev.ConsoleRenderer())
                if on_terminal
                else (structlog.processors.JSONRenderer(),)
            ),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(MaskingFormatter("%(levelname)s %(name)s %(message)s"))
    logging.basicConfig(level=max(number, logging.INFO), handlers=[handler])
    # At INFO each writes a line per request or job. Our own events have the same, with the VM's uuid.
    for chatty in ("httpx2", "httpcore2", "apscheduler", "alembic", "uvicorn.access"):
        logging.getLogger(chatty).setLevel(logging.WARNING)


def _make_printable(_logger: object, _method: str, event: EventDict) -> EventDict:
    """Escape what could control a terminal. The JSON of logs in files escapes it anyway."""
    return {key: _printable_value(value) for key, value in event.items()}


def _printable_value(value: Any) -> Any:
    return printable_lines(value) if isinstance(value, str) else value


def _add_request_id(_logger: object, _method: str, event: EventDict) -> EventDict:
    if request_id := correlation_id.get():
        event["request"] = request_id
    return event


def _make_full(_logger: object, _method: str, event: EventDict) -> EventDict:
    """Give texts with two forms in full: whoever reads the log may see the workers."""
    return {key: full_text(value) if isinstance(value, str) else value for key, value in event.items()}


def _mask(_logger: object, _method: str, event: EventDict) -> EventDict:
    """Mask secrets in URIs, in every value of a line."""
    return {key: masked_values(value) for key, value in event.items()}
