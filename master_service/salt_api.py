"""The only door to Salt: salt-api (rest_cherrypy), with an account that may call `vmachines.*` and little else.

Its answers are checked by shape, never by HTTP status alone: an unknown function is a 200 with a sentence in it, an
absent minion is missing in a 200, and error pages are HTML. Source: salt/netapi/rest_cherrypy/app.py of 3008.3.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final, Protocol

import httpx2

from master_service.errors import SaltDenied, SaltError

_REFRESH_S: Final = 60.0
"""A token is replaced this long before salt-api says that it expires."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Event:
    """One event of Salt's bus. For what a minion fired with `event.send`, its own data is in `data["data"]`."""

    tag: str
    data: Mapping[str, Any]


class SaltApi(Protocol):
    """What the master needs of Salt. Every call raises SaltError, or SaltDenied when the account is refused."""

    async def login(self) -> None:
        """Make sure that there is a token that salt-api accepts."""

    async def publish(self, worker_ids: Sequence[str], fun: str, kwarg: Mapping[str, Any]) -> str:
        """Start a Salt job on these minions and return its id. Says nothing about whether it arrived."""

    async def call(self, target: str, fun: str, kwarg: Mapping[str, Any], timeout_s: float) -> dict[str, Any]:
        """Ask all minions of a glob; what each answered within `timeout_s`, by minion id. The silent are missing."""

    def events(self) -> AbstractAsyncContextManager[AsyncIterator[Event]]:
        """All events from now on. Nothing is repeated after a break, and nothing says that there was one."""

    async def close(self) -> None:
        """Close all connections."""


class RestSalt:
    """salt-api over HTTP."""

    def __init__(self, url: str, username: str, password: str, timeout_s: float) -> None:
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
        """Make sure that there is a token; a fresh one is fetched shortly before the old one expires."""
        async with self._login:
            if not self._token or time.time() > self._expires - _REFRESH_S:
                await self._fetch_token()

    async def publish(self, worker_ids: Sequence[str], fun: str, kwarg: Mapping[str, Any]) -> str:
        """Start a Salt job (`local_async`). Raises SaltError when no minion of these has an accepted key."""
        low = {"client": "local_async", "tgt": list(worker_ids), "tgt_type": "list", "fun": fun, "kwarg": dict(kwarg)}
        answer = await self._run(low, self._timeout_s)
        jid = answer.get("jid")
        if not isinstance(jid, str):
            raise SaltError(
                f"Salt knows no minion named {' or '.join(worker_ids)}.", "Accept its key: salt-key -a MINION."
            )
        return jid

    async def call(self, target: str, fun: str, kwarg: Mapping[str, Any], timeout_s: float) -> dict[str, Any]:
        """Ask all minions of a glob (`local`). After `timeout_s` Salt asks the slow ones whether they work on it."""
        low = {
            "client": "local",
            "tgt": target,
            "tgt_type": "glob",
            "fun": fun,
            "kwarg": dict(kwarg),
            "timeout": timeout_s,
        }
        return await self._run(low, 2 * timeout_s + self._timeout_s)

    @asynccontextmanager
    async def events(self) -> AsyncIterator[AsyncIterator[Event]]:
        """The stream of `GET /events`; entered once salt-api has answered."""
        await self.login()
        # No read timeout: a quiet bus is silent, and whoever reads has a watchdog of his own.
        timeout = httpx2.Timeout(self._timeout_s, read=None)
        try:
            async with self._http.stream(
                "GET", "/events", headers={"X-Auth-Token": self._token}, timeout=timeout
            ) as response:
                if response.status_code == httpx2.codes.UNAUTHORIZED:
                    self._token = ""
                    raise SaltDenied("salt-api ended our session; the next try logs in again.")
                _expect_ok(response)
                yield _events_of(response)
        except httpx2.HTTPError as err:
            raise SaltError(f"The event stream of salt-api at {self._http.base_url} broke: {_told(err)}.") from err

    async def close(self) -> None:
        """Close all connections."""
        await self._http.aclose()

    async def _run(self, low: Mapping[str, Any], timeout_s: float) -> dict[str, Any]:
        """One lowstate, one answer. Logs in again once when the token is not accepted: salt-api may have restarted."""
        await self.login()
        response = await self._post("/", [low], timeout_s)
        if response.status_code == httpx2.codes.UNAUTHORIZED:
            self._token = ""
            await self.login()
            response = await self._post("/", [low], timeout_s)
        if response.status_code in (httpx2.codes.UNAUTHORIZED, httpx2.codes.FORBIDDEN):
            raise SaltDenied(f"salt-api does not let {self._username} run {low['fun']}.")
        return _one_dict(response)

    async def _fetch_token(self) -> None:
        body = {"eauth": "sharedsecret", "username": self._username, "password": self._password}
        response = await self._post("/login", body, self._timeout_s)
        if response.status_code == httpx2.codes.UNAUTHORIZED:
            raise SaltDenied(f"salt-api refuses the login of {self._username}.")
        answer = _one_dict(response)
        token, expire = answer.get("token"), answer.get("expire")
        if not isinstance(token, str) or not isinstance(expire, int | float):
            raise SaltError("salt-api answered a login without a token.")
        self._token, self._expires = token, float(expire)

    async def _post(self, path: str, body: object, timeout_s: float) -> httpx2.Response:
        headers = {"X-Auth-Token": self._token} if path != "/login" else {}
        try:
            return await self._http.post(path, json=body, headers=headers, timeout=timeout_s)
        except httpx2.HTTPError as err:
            raise SaltError(f"salt-api at {self._http.base_url} does not answer: {_told(err)}.") from err


def _told(err: Exception) -> str:
    return str(err) or type(err).__name__


def _expect_ok(response: httpx2.Response) -> None:
    if response.status_code != httpx2.codes.OK:
        raise SaltError(f"salt-api answered {response.status_code} to {response.request.url.path}.")


def _one_dict(response: httpx2.Response) -> dict[str, Any]:
    """The one entry of `{"return": [{...}]}`."""
    _expect_ok(response)
    try:
        body = response.json()
    except ValueError as err:
        raise SaltError("salt-api answered with something else than JSON.") from err
    match body:
        case {"return": [dict() as answer]}:
            return answer
        case _:
            raise SaltError("salt-api answered in an unknown shape.")


async def _events_of(response: httpx2.Response) -> AsyncIterator[Event]:
    # No limit on the size of one event: the return of a `list` with a thousand VMs is one.
    async for sent in httpx2.EventSource(response, max_event_size=None):
        try:
            body = json.loads(sent.data)
        except ValueError:
            continue
        match body:
            case {"tag": str() as tag, "data": dict() as data}:
                yield Event(tag=tag, data=data)
