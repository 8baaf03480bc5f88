"""The client of the gate (`master_service.gate`), which is the master's only way to Salt.

Answers are checked by shape, never by HTTP status alone: an unknown function is a 200 with a sentence in it, an
absent minion is missing in a 200, and error pages are HTML. Source: salt/netapi/rest_cherrypy/app.py of 3008.3.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import httpx2
import msgspec
import structlog

from master_service.core.errors import SaltDenied, SaltError, SaltRequestTooLarge
from master_service.saltapi.untrusted import limit_size, too_large

log = structlog.get_logger()


@dataclass(frozen=True, kw_only=True, slots=True)
class SizeLimits:
    """Limits in bytes: of one worker's answer or one event, and of one whole answer of salt-api."""

    reply: int = 16 << 20
    answer: int = 256 << 20


@dataclass(frozen=True, kw_only=True, slots=True)
class Event:
    """One event of Salt's bus. If a minion fired it with `event.send`, its own data is in `data["data"]`."""

    tag: str
    data: Mapping[str, Any]

    @property
    def nonce(self) -> str:
        """The nonce of the job, if this is a job's return."""
        match self.data.get("metadata"):
            case {"nonce": str() as nonce}:
                return nonce
            case _:
                return ""


class SaltProfile(msgspec.Struct, frozen=True, kw_only=True):
    """How the Salt master confines accounts: as the gate's settings say, and as it was measured.

    `dedicated`: a blacklist refuses all functions but Saltern's to everybody. `shared`: only the gate confines.
    """

    chosen: str
    in_force: str


class SaltApi(Protocol):
    """Salt as the master uses it. Every call raises SaltError.

    It is SaltDenied when the account is refused, and SaltRequestTooLarge for more than fits into one request.
    """

    async def check(self) -> None:
        """Check now that salt-api answers and accepts the account."""

    async def profile(self) -> SaltProfile:
        """Return how the Salt master confines the account."""

    async def publish(self, workers: Sequence[str], fun: str, kwarg: Mapping[str, Any], nonce: str) -> str:
        """Start a Salt job on these workers and return its id. It may not arrive."""

    async def call(
        self, workers: Sequence[str], fun: str, kwarg: Mapping[str, Any], timeout_s: float, nonce: str
    ) -> dict[str, Any]:
        """Call a function on these workers; return what was answered within `timeout_s` in the name of each.

        Silent workers are missing. If an answer is too large or not text, a sentence replaces it, and other answers are
        not affected. Each answer is also an event, at once, which carries `nonce`.
        """

    def events(self) -> AbstractAsyncContextManager[AsyncIterator[Event]]:
        """Stream the events of workers and of our jobs from now on.

        Events are not repeated after a break, and a break is not visible.
        """

    async def close(self) -> None:
        """Close all connections."""


class GateClient:
    """The gate over HTTP, on its unix socket."""

    def __init__(self, path: Path, timeout_s: float, limits: SizeLimits | None = None) -> None:
        self._path = path
        self._limits = limits or SizeLimits()
        self._timeout_s = timeout_s
        self._http = httpx2.AsyncClient(
            base_url="http://gate", timeout=timeout_s, transport=httpx2.AsyncHTTPTransport(uds=str(path))
        )

    async def check(self) -> None:
        """Check that the gate answers, and that salt-api accepts its account."""
        await self._request("GET", "/check", None, 2 * self._timeout_s)

    async def profile(self) -> SaltProfile:
        """Return how the Salt master confines the account. The gate asks it now."""
        try:
            return msgspec.json.decode(
                await self._request("GET", "/profile", None, 2 * self._timeout_s), type=SaltProfile
            )
        except msgspec.MsgspecError as err:
            raise SaltError("The gate to Salt answered in an unknown shape.", "Upgrade it with the master.") from err

    async def publish(self, workers: Sequence[str], fun: str, kwarg: Mapping[str, Any], nonce: str) -> str:
        """Start a Salt job. Raises SaltError when no minion of these has an accepted key."""
        request = {"workers": list(workers), "fun": fun, "kwarg": dict(kwarg), "nonce": nonce}
        jid = _one_dict(await self._request("POST", "/publish", request, 2 * self._timeout_s)).get("jid")
        if not isinstance(jid, str):
            raise SaltError(
                f"Salt knows no minion named {' or '.join(workers)}.", "Accept its key: salt-key -a MINION."
            )
        return jid

    async def call(
        self, workers: Sequence[str], fun: str, kwarg: Mapping[str, Any], timeout_s: float, nonce: str
    ) -> dict[str, Any]:
        """Call a function. After `timeout_s` Salt asks the slow workers.

        It then waits for each of them as long as that minion says that it still works on the job. More workers than fit
        into one request are asked in several.
        """
        request = {
            "workers": list(workers), "fun": fun, "kwarg": dict(kwarg), "nonce": nonce, "timeout_s": timeout_s
        }  # fmt: skip
        try:
            answer = await self._request("POST", "/call", request, 2 * (timeout_s + self._timeout_s))
        except SaltRequestTooLarge:
            if len(workers) == 1:
                raise
            half = len(workers) // 2
            parts = (self.call(part, fun, kwarg, timeout_s, nonce) for part in (workers[:half], workers[half:]))
            return {worker: answer for part in await asyncio.gather(*parts) for worker, answer in part.items()}
        return _by_worker(answer, self._limits.reply)

    @asynccontextmanager
    async def events(self) -> AsyncIterator[AsyncIterator[Event]]:
        """Open the stream. The context is entered when the gate has answered."""
        # No read timeout: the bus may be quiet, and the reader has a watchdog.
        timeout = httpx2.Timeout(self._timeout_s, read=None)
        try:
            async with self._http.stream("GET", "/events", timeout=timeout) as response:
                if response.status_code != httpx2.codes.OK:
                    raise _error(response.status_code, await response.aread())
                yield _events_of(response, self._limits.reply)
        except httpx2.HTTPError as err:
            raise self._silent(err) from err

    async def close(self) -> None:
        """Close all connections."""
        await self._http.aclose()

    async def _request(self, method: str, path: str, body: object, timeout_s: float) -> bytes:
        read = bytearray()
        try:
            async with self._http.stream(method, path, json=body, timeout=timeout_s) as response:
                async for chunk in response.aiter_bytes():
                    read += chunk
                    if len(read) > self._limits.answer:
                        raise SaltError(
                            f"salt-api answered with more than {self._limits.answer} bytes.",
                            "Find the worker whose `vmachines.list` is so long, or raise answer_limit_mib.",
                        )
        except httpx2.HTTPError as err:
            raise self._silent(err) from err
        if response.status_code != httpx2.codes.OK:
            raise _error(response.status_code, bytes(read))
        return bytes(read)

    def _silent(self, err: Exception) -> SaltError:
        return SaltError(
            f"The gate to Salt at {self._path} does not answer: {str(err) or type(err).__name__}.",
            "Check that saltern-gate runs, and `gate_socket`.",
        )


def _error(status: int, body: bytes) -> SaltError:
    """Return the error of an answer of the gate."""
    try:
        message = json.loads(body)["message"]
    except (ValueError, KeyError, TypeError, RecursionError):
        message = f"The gate to Salt answered {status}."
    if status == httpx2.codes.CONTENT_TOO_LARGE:
        return SaltRequestTooLarge(message)
    return SaltDenied(message) if status == httpx2.codes.FORBIDDEN else SaltError(message)


def _one_dict(answer: bytes) -> dict[str, Any]:
    """Return the one entry of `{"return": [{...}]}`."""
    try:
        body = json.loads(answer)
    except (ValueError, RecursionError) as err:
        raise SaltError("salt-api answered with something other than JSON.") from err
    match body:
        case {"return": [dict() as one]}:
            return one
        case _:
            raise SaltError("salt-api answered in an unknown shape.")


def _by_worker(answer: bytes, limit: int) -> dict[str, Any]:
    """Return the one entry by worker. An answer that is too large or not text does not affect the others."""
    try:
        (entries,) = msgspec.json.decode(answer, type=_Raws).result
        return {
            worker: msgspec.json.decode(raw)
            if len(memoryview(raw)) <= limit
            else too_large(len(memoryview(raw)), limit)
            for worker, raw in entries.items()
        }
    except (msgspec.MsgspecError, ValueError, RecursionError):
        # Some answer cannot be decoded. Python's own decoder accepts more, and so finds out which.
        return {worker: limit_size(one, limit) for worker, one in _one_dict(answer).items()}


class _Raws(msgspec.Struct):
    result: list[dict[str, msgspec.Raw]] = msgspec.field(name="return")


async def _events_of(response: httpx2.Response, limit: int) -> AsyncIterator[Event]:
    """Yield the events of a stream of the gate: each is one line."""
    async for line in bounded_lines(response.aiter_bytes(), limit):
        try:
            body = json.loads(line)
        except (ValueError, RecursionError):
            continue
        match body:
            case {"tag": str() as tag, "data": dict() as data}:
                yield Event(tag=tag, data=data)


async def bounded_lines(chunks: AsyncIterator[bytes], limit: int) -> AsyncIterator[bytes]:
    """Yield the lines of a stream. A line longer than `limit` is skipped and never held whole."""
    held, too_long = bytearray(), False
    async for chunk in chunks:
        *ends, rest = chunk.split(b"\n")
        for end in ends:
            if too_long or len(held) + len(end) > limit:
                log.warning("event_too_large", limit=limit)
            else:
                yield bytes(held + end)
            held, too_long = bytearray(), False
        if too_long or len(held) + len(rest) > limit:
            held, too_long = bytearray(), True
        else:
            held += rest
