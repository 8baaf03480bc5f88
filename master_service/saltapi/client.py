"""The client of salt-api (rest_cherrypy), with an account that may call `vmachines.*` and little else.

Answers are checked by shape, never by HTTP status alone: an unknown function is a 200 with a sentence in it, an
absent minion is missing in a 200, and error pages are HTML. Source: salt/netapi/rest_cherrypy/app.py of 3008.3.
"""

from __future__ import annotations

import asyncio
import json
import math
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final, Protocol

import httpx2
import msgspec
import structlog

from master_service.core.errors import SaltDenied, SaltError
from master_service.saltapi.untrusted import limit_size, too_large

log = structlog.get_logger()

_REFRESH_S: Final = 60.0
"""A token is replaced this long before salt-api says that it expires."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SizeLimits:
    """Limits in bytes: of one worker's answer or one event, and of one whole answer of salt-api."""

    reply: int = 16 << 20
    answer: int = 256 << 20


@dataclass(frozen=True, kw_only=True, slots=True)
class _Answer:
    status: int
    path: str
    body: bytes


@dataclass(frozen=True, kw_only=True, slots=True)
class Event:
    """One event of Salt's bus. If a minion fired it with `event.send`, its own data is in `data["data"]`."""

    tag: str
    data: Mapping[str, Any]

    @property
    def mark(self) -> str:
        """The mark that `call` gave to the job, if this is a job's return."""
        match self.data.get("metadata"):
            case {"mark": str() as mark}:
                return mark
            case _:
                return ""


class SaltApi(Protocol):
    """Salt as the master uses it. Every call raises SaltError, or SaltDenied when the account is refused."""

    async def login(self) -> None:
        """Ensure that there is a token that salt-api accepts."""

    async def check(self) -> None:
        """Check now that salt-api answers and accepts the account."""

    async def publish(self, worker_ids: Sequence[str], fun: str, kwarg: Mapping[str, Any]) -> str:
        """Start a Salt job on these minions and return its id. It may not arrive."""

    async def call(
        self, target: str | Sequence[str], fun: str, kwarg: Mapping[str, Any], timeout_s: float, mark: str = ""
    ) -> dict[str, Any]:
        """Call a function on all minions of a glob or list; return their answers within `timeout_s` by minion id.

        Silent minions are missing. If an answer is too large or not text, a sentence replaces it, and other answers are
        not affected. Each answer is also an event, at once, which carries `mark`.
        """

    def events(self) -> AbstractAsyncContextManager[AsyncIterator[Event]]:
        """Stream all events from now on. Events are not repeated after a break, and a break is not visible."""

    async def close(self) -> None:
        """Close all connections."""


class RestSalt:
    """salt-api over HTTP."""

    def __init__(
        self, url: str, username: str, password: str, timeout_s: float, limits: SizeLimits | None = None
    ) -> None:
        self._limits = limits or SizeLimits()
        self._username = username
        self._password = password
        self._timeout_s = timeout_s
        self._token = ""
        self._expires = 0.0
        self._login = asyncio.Lock()
        self._http = httpx2.AsyncClient(
            base_url=url, timeout=timeout_s, headers={"Accept": "application/json"}, trust_env=False
        )

    async def login(self) -> None:
        """Ensure that there is a token. A new one is fetched shortly before the old one expires."""
        async with self._login:
            if not self._token or time.time() > self._expires - _REFRESH_S:
                await self._fetch_token()

    async def check(self) -> None:
        """Check salt-api with `GET /`, which costs it little. A token from an earlier login may be out of date."""
        await self.login()
        try:
            response = await self._http.get("/", timeout=self._timeout_s)
        except httpx2.HTTPError as err:
            raise SaltError(f"salt-api at {self._http.base_url} does not answer: {_http_error_message(err)}.") from err
        _expect_ok(response.status_code, "/")

    async def publish(self, worker_ids: Sequence[str], fun: str, kwarg: Mapping[str, Any]) -> str:
        """Start a Salt job (`local_async`). Raises SaltError when no minion of these has an accepted key."""
        low = {"client": "local_async", "tgt": list(worker_ids), "tgt_type": "list", "fun": fun, "kwarg": dict(kwarg)}
        answer = _one_dict(await self._run(low, self._timeout_s))
        jid = answer.get("jid")
        if not isinstance(jid, str):
            raise SaltError(
                f"Salt knows no minion named {' or '.join(worker_ids)}.", "Accept its key: salt-key -a MINION."
            )
        return jid

    async def call(
        self, target: str | Sequence[str], fun: str, kwarg: Mapping[str, Any], timeout_s: float, mark: str = ""
    ) -> dict[str, Any]:
        """Call a function on all minions of a glob or list (`local`). After `timeout_s` Salt asks the slow ones.

        It then waits for each of them as long as that minion says that it still works on the job.
        """
        low = {
            "client": "local",
            "tgt": target if isinstance(target, str) else list(target),
            "tgt_type": "glob" if isinstance(target, str) else "list",
            "fun": fun,
            "kwarg": dict(kwarg),
            "timeout": math.ceil(timeout_s),  # Salt silently uses its own `timeout` in place of a float
            "metadata": {"mark": mark},
        }
        return _by_worker(await self._run(low, 2 * timeout_s + self._timeout_s), self._limits.reply)

    @asynccontextmanager
    async def events(self) -> AsyncIterator[AsyncIterator[Event]]:
        """Open the stream of `GET /events`. The context is entered when salt-api has answered."""
        await self.login()
        # No read timeout: the bus may be quiet, and the reader has a watchdog.
        timeout = httpx2.Timeout(self._timeout_s, read=None)
        try:
            async with self._http.stream(
                "GET", "/events", headers={"X-Auth-Token": self._token}, timeout=timeout
            ) as response:
                if response.status_code == httpx2.codes.UNAUTHORIZED:
                    self._token = ""
                    raise SaltDenied("salt-api ended our session; the next try logs in again.")
                _expect_ok(response.status_code, "/events")
                yield _events_of(response, self._limits.reply)
        except httpx2.HTTPError as err:
            raise SaltError(
                f"The event stream of salt-api at {self._http.base_url} broke: {_http_error_message(err)}."
            ) from err

    async def close(self) -> None:
        """Close all connections."""
        await self._http.aclose()

    async def _run(self, low: Mapping[str, Any], timeout_s: float) -> _Answer:
        """Run one lowstate. Logs in again once when the token is not accepted: salt-api may have restarted."""
        await self.login()
        response = await self._post("/", [low], timeout_s)
        if response.status == httpx2.codes.UNAUTHORIZED:
            self._token = ""
            await self.login()
            response = await self._post("/", [low], timeout_s)
        if response.status in (httpx2.codes.UNAUTHORIZED, httpx2.codes.FORBIDDEN):
            raise SaltDenied(f"salt-api does not let {self._username} run {low['fun']}.")
        return response

    async def _fetch_token(self) -> None:
        body = {"eauth": "sharedsecret", "username": self._username, "password": self._password}
        response = await self._post("/login", body, self._timeout_s)
        if response.status == httpx2.codes.UNAUTHORIZED:
            raise SaltDenied(f"salt-api refuses the login of {self._username}.")
        answer = _one_dict(response)
        token, expire = answer.get("token"), answer.get("expire")
        if not isinstance(token, str) or not isinstance(expire, int | float):
            raise SaltError("salt-api answered a login without a token.")
        self._token, self._expires = token, float(expire)

    async def _post(self, path: str, body: object, timeout_s: float) -> _Answer:
        headers = {"X-Auth-Token": self._token} if path != "/login" else {}
        read = bytearray()
        try:
            async with self._http.stream("POST", path, json=body, headers=headers, timeout=timeout_s) as response:
                async for chunk in response.aiter_bytes():
                    read += chunk
                    if len(read) > self._limits.answer:
                        raise SaltError(
                            f"salt-api answered with more than {self._limits.answer} bytes.",
                            "Find the worker whose `vmachines.list` is so long, or raise answer_limit_mib.",
                        )
        except httpx2.HTTPError as err:
            raise SaltError(f"salt-api at {self._http.base_url} does not answer: {_http_error_message(err)}.") from err
        return _Answer(status=response.status_code, path=path, body=bytes(read))


def _http_error_message(err: Exception) -> str:
    return str(err) or type(err).__name__


def _expect_ok(status: int, path: str) -> None:
    if status != httpx2.codes.OK:
        raise SaltError(f"salt-api answered {status} to {path}.")


def _one_dict(answer: _Answer) -> dict[str, Any]:
    """Return the one entry of `{"return": [{...}]}`."""
    _expect_ok(answer.status, answer.path)
    try:
        body = json.loads(answer.body)
    except (ValueError, RecursionError) as err:
        raise SaltError("salt-api answered with something other than JSON.") from err
    match body:
        case {"return": [dict() as one]}:
            return one
        case _:
            raise SaltError("salt-api answered in an unknown shape.")


def _by_worker(answer: _Answer, limit: int) -> dict[str, Any]:
    """Return the one entry by worker. An answer that is too large or not text does not affect the others."""
    _expect_ok(answer.status, answer.path)
    try:
        (entries,) = msgspec.json.decode(answer.body, type=_Raws).result
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
    """Yield the events of a stream of rest_cherrypy: each is one `data:` line."""
    async for line in _lines(response.aiter_bytes(), limit):
        if not line.startswith(b"data:"):
            continue
        try:
            body = json.loads(line.removeprefix(b"data:"))
        except (ValueError, RecursionError):
            continue
        match body:
            case {"tag": str() as tag, "data": dict() as data}:
                yield Event(tag=tag, data=data)


async def _lines(chunks: AsyncIterator[bytes], limit: int) -> AsyncIterator[bytes]:
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
