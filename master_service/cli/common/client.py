"""Client of the master's HTTP API. Each error is one sentence with an exit code."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from enum import IntEnum
from typing import Any, Final

import httpx2

_ANSWER_S: Final = 15.0
_SILENCE_S: Final = 60.0
"""The longest silence of an event stream. The master sends a comment every 15 s."""


class Exit(IntEnum):
    """Exit codes."""

    OK = 0
    FAILED = 1
    USAGE = 2
    NOT_FOUND = 3
    TIMEOUT = 4
    DENIED = 5


_BY_STATUS: Final = {400: Exit.USAGE, 401: Exit.DENIED, 403: Exit.DENIED, 404: Exit.NOT_FOUND, 422: Exit.USAGE}


class Failure(Exception):
    """Ends the command with a sentence that says what to do, and with an exit code.

    `of_file`: the sentence is about a file of VMs, so it names parameters and no options.
    """

    of_file = False

    def __init__(self, message: str, exit_code: Exit = Exit.FAILED) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class Client:
    """The master's API. Every call raises Failure. `withheld`: why a token that was found is not sent."""

    def __init__(self, url: str, token: str, answer_s: float = _ANSWER_S, withheld: str = "") -> None:
        self._url = url.rstrip("/")
        self._withheld = withheld
        self._answer_s = answer_s
        headers = {"User-Agent": "saltern-cli"} | ({"Authorization": f"Bearer {token}"} if token else {})
        self._http = httpx2.Client(base_url=f"{self._url}/api/v1", headers=headers, trust_env=False)

    def get(self, path: str) -> Any:
        """Return the body of a GET."""
        return _json(self._send("GET", path))

    def pages(self, path: str) -> list[Any]:
        """Return all entries of a paged list."""
        found: list[Any] = []
        cursor: str | None = path
        while cursor is not None:
            response = self._send("GET", cursor)
            found += _json(response)
            following = response.headers.get("X-Next-Cursor")
            sign = "&" if "?" in path else "?"
            cursor = f"{path}{sign}cursor={following}" if following else None
        return found

    def outside(self, path: str) -> Any:
        """Return the body of a GET outside /api/v1, such as /readyz, also with status 503."""
        return _json(self._send("GET", f"{self._url}{path}", accept=frozenset({503})))

    def post(self, path: str, body: object = None, blocks_s: float = 0) -> Any:
        """Return the body of a POST. The master itself may wait for `blocks_s` before it answers."""
        return self._change("POST", path, body, blocks_s)

    def patch(self, path: str, body: object, etag: str | None = None, blocks_s: float = 0) -> Any:
        """Return the body of a PATCH. `etag` is the expected version; None allows any. `blocks_s`: as for POST."""
        return self._change("PATCH", path, body, blocks_s, headers={"If-Match": etag or "*"})

    def put(self, path: str, body: object) -> Any:
        """Return the body of a PUT."""
        return self._change("PUT", path, body)

    def delete(self, path: str) -> Any:
        """Return the body of a DELETE."""
        return self._change("DELETE", path)

    def events(self, path: str, last_id: str | None = None) -> Iterator[tuple[str, str, Any]]:
        """Yield (id, name, data) of each event from now on, or after `last_id`, until the stream ends."""
        headers = {"Last-Event-ID": last_id} if last_id else {}
        timeout = httpx2.Timeout(self._answer_s, read=_SILENCE_S)
        with self._failures(), self._http.stream("GET", path, headers=headers, timeout=timeout) as response:
            if not response.is_success:
                response.read()
                raise self._failure(response)
            for event in httpx2.EventSource(response):
                yield event.id or "", event.event, event.json()

    @contextmanager
    def stream(self, path: str, headers: Mapping[str, str]) -> Iterator[httpx2.Response]:
        """Yield the answer to a GET whose body is read piece by piece."""
        timeout = httpx2.Timeout(self._answer_s, read=_SILENCE_S)
        with self._failures(), self._http.stream("GET", path, headers=headers, timeout=timeout) as response:
            if not response.is_success:
                response.read()
                raise self._failure(response)
            yield response

    def _change(
        self, method: str, path: str, body: object = None, blocks_s: float = 0, headers: Mapping[str, str] | None = None
    ) -> Any:
        # The key allows sending a change again whose answer was lost, without carrying it out twice.
        keyed = {"Idempotency-Key": str(uuid.uuid4()), **(headers or {})}
        return _json(self._send(method, path, body, blocks_s, headers=keyed))

    def _send(  # noqa: PLR0913 - what makes a request
        self,
        method: str,
        path: str,
        body: object = None,
        blocks_s: float = 0,
        *,
        headers: Mapping[str, str] | None = None,
        accept: frozenset[int] = frozenset(),
    ) -> httpx2.Response:
        with self._failures():
            timeout = self._answer_s + blocks_s
            try:
                response = self._http.request(method, path, json=body, timeout=timeout, headers=headers)
            except (httpx2.RemoteProtocolError, httpx2.ReadError):  # the master was restarted: try again
                response = self._http.request(method, path, json=body, timeout=timeout, headers=headers)
        if response.is_success or response.status_code in accept:
            return response
        raise self._failure(response)

    def _failure(self, response: httpx2.Response) -> Failure:
        message = _error_message(response)
        if self._withheld and response.status_code == httpx2.codes.UNAUTHORIZED:
            message = f"{self._withheld} {message}"
        return Failure(message, _BY_STATUS.get(response.status_code, Exit.FAILED))

    @contextmanager
    def _failures(self) -> Iterator[None]:
        """Raise connection errors as Failure."""
        try:
            yield
        except (httpx2.InvalidURL, httpx2.UnsupportedProtocol) as err:
            raise Failure(f"{self._url} is not a URL ({err}). Give --url http://HOST:PORT.", Exit.USAGE) from err
        except httpx2.ConnectError as err:
            raise Failure(
                f"No master answers at {self._url} ({err}). Start the master (`make run` in a clone, "
                "`systemctl start saltern-master` where it is installed), or give --url."
            ) from err
        except httpx2.TimeoutException as err:
            raise Failure(
                f"The master at {self._url} did not answer in time. Its log shows why.", Exit.TIMEOUT
            ) from err
        except httpx2.HTTPError as err:
            raise Failure(f"The connection to {self._url} broke ({err}). Try again.") from err


def _json(response: httpx2.Response) -> Any:
    if not response.content:
        return None
    try:
        return response.json()
    except ValueError as err:
        raise Failure(f"{response.url} does not answer like a Saltern master. Check --url.") from err


def _error_message(response: httpx2.Response) -> str:
    """Return the sentence of a problem+json, with its hint."""
    try:
        problem = response.json()
        detail, hint = str(problem["detail"]), str(problem.get("hint", ""))
        if fields := problem.get("errors"):  # the messages of the fields already say what to do
            return "; ".join(f"{str(each['field']).partition('.')[0]}: {each['message']}" for each in fields) + "."
    except (ValueError, KeyError, TypeError, AttributeError):
        what = response.reason_phrase or "nothing"
        return f"What answers at {response.url.host} says {what!r}, not as a Saltern master does. Check --url."
    if response.status_code == httpx2.codes.UNAUTHORIZED:
        if response.request.method == "POST" and response.request.url.path.endswith("/v1/tokens"):
            return f"{detail} {hint}".strip()  # a login: another token would not help
        hint = "`saltern login USER`, or give --token-file FILE, or set SALTERN_TOKEN_FILE or SALTERN_TOKEN."
    stop = "" if not detail or detail.endswith((".", "!", "?")) else "."
    return f"{detail}{stop} {hint}".strip()
