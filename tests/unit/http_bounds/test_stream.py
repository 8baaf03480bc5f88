"""An answer of a known length: it is whole, or it is cut off; and its end is noticed either way."""

import asyncio

import pytest

from http_bounds.stream import LengthStream

CASES = [
    ([b"ab", b"cd"], 4, b"abcd", True),
    ([b"ab", b"cdef"], 4, b"abcd", True),
    ([b"ab"], 4, b"ab", False),
    ([b"ab", OSError("broken")], 4, b"ab", False),
    ([], 0, b"", True),
]


async def served(chunks, length, receive):
    """Run an answer; return its bytes, whether it said that it is whole, and how often its end was noticed."""
    sent, ends = [], []

    async def source():
        for chunk in chunks:
            if isinstance(chunk, Exception):
                raise chunk
            yield chunk

    async def send(message):
        await asyncio.sleep(0)
        sent.append(message)

    async def at_end():
        ends.append(1)

    stream = LengthStream(source(), length, status_code=200, headers={"ETag": "x"}, at_end=at_end)
    await stream({"type": "http"}, receive, send)
    bodies = [message for message in sent if message["type"] == "http.response.body"]
    whole = bool(bodies) and not bodies[-1]["more_body"]
    return b"".join(message["body"] for message in bodies), whole, len(ends)


@pytest.mark.parametrize(("chunks", "length", "body", "whole"), CASES)
async def test_answer_is_whole_or_cut_off(chunks, length, body, whole):
    assert await served(chunks, length, asyncio.Event().wait) == (body, whole, 1)


async def test_answer_ends_with_its_caller():
    async def gone():
        return {"type": "http.disconnect"}

    body, whole, ends = await served([b"ab"] * 1000, 2000, gone)
    assert (len(body) < 2000, whole, ends) == (True, False, 1)
