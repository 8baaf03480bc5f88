"""An answer of a known length whose bytes come from elsewhere, and may end early.

An answer that ends early is cut off, so that its caller notices: it never ends as if it were whole.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import aclosing
from typing import Final

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

_LOG: Final = logging.getLogger("saltern.http")


class LengthStream(Response):
    """Send exactly `length` bytes, or cut the connection off.

    Args:
        chunks: the bytes; closed at the end.
        length: their number.
        at_end: called once when all is over, whether the answer was whole or not.
    """

    def __init__(
        self,
        chunks: AsyncIterator[bytes],
        length: int,
        *,
        status_code: int,
        headers: Mapping[str, str],
        at_end: Callable[[], Awaitable[None]],
    ) -> None:
        fixed = {"Content-Length": str(length), "Cache-Control": "no-store"}
        super().__init__(status_code=status_code, headers={**headers, **fixed}, media_type="application/octet-stream")
        self._chunks = chunks
        self._length = length
        self._at_end = at_end

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the answer until it is whole, its bytes end, or its caller is gone."""
        del scope
        tasks = {asyncio.create_task(_caller_gone(receive)), asyncio.create_task(self._send(send))}
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            ends = await asyncio.gather(*tasks, return_exceptions=True)
            await self._at_end()
        for end in ends:
            if isinstance(end, Exception):
                _LOG.warning("a download was cut off: %s", end)

    async def _send(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        left = self._length
        async with aclosing(self._chunks) as chunks:  # type: ignore[type-var]
            async for chunk in chunks:
                part = chunk[:left]
                left -= len(part)
                if part:
                    await send({"type": "http.response.body", "body": part, "more_body": True})
                if not left:
                    break
        if not left:
            await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _caller_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
