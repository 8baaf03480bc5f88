"""The way of events from Salt's bus to the masters.

The Salt engine `saltern_events` (`states/_engines`) reads the bus inside the Salt master and writes it to a socket of
the gate. salt-api's own stream cannot serve: a newline in a tag forges events in it, and bytes in an event end it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Final

import msgspec
import structlog

from master_service.gate.event_filter import passed
from master_service.saltapi.client import bounded_lines

log = structlog.get_logger()

_MOST_WAITING: Final = 20_000
"""Events that wait for one slow master. One more ends its stream, and it opens a new one and polls."""
_JOB_S: Final = 900.0
"""How long the returns of a job are passed."""


class EventHub:
    """The engine on one side, any number of masters on the other."""

    def __init__(self, line_limit: int) -> None:
        self._line_limit = line_limit
        self._nonces: dict[str, float] = {}
        self._streams: set[asyncio.Queue[bytes | None]] = set()
        self._engine: asyncio.StreamWriter | None = None

    @property
    def connected(self) -> bool:
        """Return whether the engine is there."""
        return self._engine is not None

    def expect(self, nonce: str) -> None:
        """Pass the returns of a job that is about to be sent."""
        now = time.monotonic()
        for old in [old for old, until in self._nonces.items() if until < now]:
            del self._nonces[old]
        self._nonces[nonce] = now + _JOB_S

    async def engine(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve a connection of the engine. A newer one takes its place."""
        if self._engine is not None:
            self._engine.close()
            self._end_streams()  # there may be a gap between the two
        self._engine = writer
        log.info("engine_connected")
        try:
            async for line in bounded_lines(_chunks(reader), self._line_limit):
                self._publish(line)
        except (OSError, asyncio.IncompleteReadError) as err:
            log.warning("engine_connection_broke", error=str(err))
        finally:
            writer.close()
            if self._engine is writer:
                self._engine = None
                self._end_streams()
                log.warning("engine_disconnected")

    async def stream(self) -> AsyncIterator[bytes]:
        """Yield events from now on, each a line of JSON, until the engine disconnects."""
        waiting: asyncio.Queue[bytes | None] = asyncio.Queue()
        self._streams.add(waiting)
        try:
            while self.connected and (line := await waiting.get()) is not None:
                yield line
        finally:
            self._streams.discard(waiting)

    def _publish(self, line: bytes) -> None:
        event = passed(line, self._nonces.__contains__)
        if event is None:
            return
        encoded = msgspec.json.encode(event) + b"\n"
        for waiting in self._streams:
            if waiting.qsize() == _MOST_WAITING:
                log.warning("master_too_slow_for_events")
                waiting.put_nowait(None)
            elif waiting.qsize() < _MOST_WAITING:
                waiting.put_nowait(encoded)

    def _end_streams(self) -> None:
        for waiting in self._streams:
            waiting.put_nowait(None)


async def _chunks(reader: asyncio.StreamReader) -> AsyncIterator[bytes]:
    while chunk := await reader.read(1 << 16):
        yield chunk
