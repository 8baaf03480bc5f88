"""The client of salt-api (rest_cherrypy). Only the gate has it, because only the gate knows the password.

Source of the forms: salt/netapi/rest_cherrypy/app.py of 3008.3.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import httpx2
import msgspec

from master_service.core.errors import SaltDenied, SaltError, SaltRequestTooLarge

_REFRESH_S: Final = 60.0
"""A token is replaced this long before salt-api says that it expires."""

_PROBE: Final[Mapping[str, Any]] = {
    "client": "local_async",
    "tgt": ["no-minion-has-this-name"],
    "tgt_type": "list",
    "fun": ["saltutil.find_job", "test.true"],
    "arg": [["0"], []],
}
"""Salt's ACL lets it pass. The blacklist of the profile `dedicated` refuses it, before Salt looks for minions."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """The largest answer of salt-api, and the largest request that it takes, in bytes."""

    answer: int = 256 << 20
    request: int = 1 << 20


class RestCherrypy:
    """A session of one account at salt-api."""

    def __init__(self, url: str, username: str, password: str, timeout_s: float, limits: Limits | None = None) -> None:
        self._username = username
        self._password = password
        self._timeout_s = timeout_s
        self._limits = limits or Limits()
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
            response = await self._http.get("/")
        except httpx2.HTTPError as err:
            raise self._silent(err) from err
        _expect_ok(response.status_code, "/")

    async def is_confined(self) -> bool:
        """Return whether the Salt master refuses a list of functions of which the account may run only one.

        So it is measured what is in force, whichever files the Salt master has read. The job would go to no minion.
        """
        await self.login()  # a refused login says nothing about functions
        try:
            await self.run(_PROBE, 0)
        except SaltDenied:
            return True
        return False

    async def run(self, low: Mapping[str, Any], wait_s: float) -> bytes:
        """Run one request, for which Salt may take `wait_s`, and return the answer. Raises SaltError.

        Logs in again once if the token is not accepted: salt-api may have restarted.
        """
        await self.login()
        status, body = await self._post("/", [low], wait_s + self._timeout_s)
        if status == httpx2.codes.UNAUTHORIZED:
            self._token = ""
            await self.login()
            status, body = await self._post("/", [low], wait_s + self._timeout_s)
        if status in (httpx2.codes.UNAUTHORIZED, httpx2.codes.FORBIDDEN):
            raise SaltDenied(f"salt-api does not let {self._username} run {low['fun']}.")
        _expect_ok(status, "/")
        return body

    @property
    def request_limit(self) -> int:
        """Return the size of the largest request in bytes."""
        return self._limits.request

    def require_fits(self, size: int) -> None:
        """Raise SaltRequestTooLarge for a larger request. salt-api may break the connection in place of an answer."""
        if size > self._limits.request:
            raise SaltRequestTooLarge(
                f"A request of {size} bytes is more than salt-api takes, which is {self._limits.request} bytes."
            )

    async def close(self) -> None:
        """Close all connections."""
        await self._http.aclose()

    async def _fetch_token(self) -> None:
        login = {"eauth": "sharedsecret", "username": self._username, "password": self._password}
        status, body = await self._post("/login", login, self._timeout_s)
        if status == httpx2.codes.UNAUTHORIZED:
            raise SaltDenied(f"salt-api refuses the login of {self._username}.")
        _expect_ok(status, "/login")
        try:
            answer = json.loads(body)
        except (ValueError, RecursionError) as err:
            raise SaltError("salt-api answered with something other than JSON.") from err
        match answer:
            case {"return": [{"token": str() as token, "expire": int() | float() as expire}]}:
                self._token, self._expires = token, float(expire)
            case _:
                raise SaltError("salt-api answered a login without a token.")

    async def _post(self, path: str, body: object, timeout_s: float) -> tuple[int, bytes]:
        headers = {"Content-Type": "application/json"} | ({"X-Auth-Token": self._token} if path != "/login" else {})
        encoded, read = msgspec.json.encode(body), bytearray()
        self.require_fits(len(encoded))
        try:
            async with self._http.stream("POST", path, content=encoded, headers=headers, timeout=timeout_s) as response:
                async for chunk in response.aiter_bytes():
                    read += chunk
                    if len(read) > self._limits.answer:
                        raise SaltError(
                            f"salt-api answered with more than {self._limits.answer} bytes.",
                            "Find the worker whose `vmachines.list` is so long, or raise answer_limit_mib.",
                        )
        except httpx2.HTTPError as err:
            raise self._silent(err) from err
        if response.status_code == httpx2.codes.CONTENT_TOO_LARGE:
            raise SaltRequestTooLarge(f"A request of {len(encoded)} bytes is more than salt-api takes.")
        return response.status_code, bytes(read)

    def _silent(self, err: Exception) -> SaltError:
        return SaltError(f"salt-api at {self._http.base_url} does not answer: {str(err) or type(err).__name__}.")


def _expect_ok(status: int, path: str) -> None:
    if status != httpx2.codes.OK:
        raise SaltError(f"salt-api answered {status} to {path}.")
