"""The master over HTTP, and errors as one sentence with an exit code."""

from __future__ import annotations

from enum import IntEnum
from pathlib import Path
from typing import Any, Final

import httpx2

_ANSWER_S: Final = 15.0
TOKEN_FILES: Final = (Path("var/admin.token"), Path("/etc/saltern/admin.token"))
"""Where a token is looked for when none is given: a development stack in this folder, then an installed master."""


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
    """What ends the command: a sentence that says what to do, and the exit code."""

    def __init__(self, message: str, exit_code: Exit = Exit.FAILED) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class Client:
    """The master's API. Every call raises Failure."""

    def __init__(self, url: str, token: str) -> None:
        self._url = url.rstrip("/")
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._http = httpx2.Client(base_url=f"{self._url}/api/v1", headers=headers, trust_env=False)

    def get(self, path: str) -> Any:
        """The body of a GET."""
        return self._call("GET", path)

    def post(self, path: str, body: object = None, blocks_s: float = 0) -> Any:
        """The body of a POST. `blocks_s`: how long the master itself may wait before it answers."""
        return self._call("POST", path, body, blocks_s)

    def _call(self, method: str, path: str, body: object = None, blocks_s: float = 0) -> Any:
        try:
            response = self._http.request(method, path, json=body, timeout=_ANSWER_S + blocks_s)
        except (httpx2.InvalidURL, httpx2.UnsupportedProtocol) as err:
            raise Failure(f"{self._url} is not a URL ({err}). Give --url http://HOST:PORT.", Exit.USAGE) from err
        except httpx2.ConnectError as err:
            raise Failure(
                f"Nobody answers at {self._url} ({err}). Start the master (`make run` in a clone, "
                "`systemctl start saltern-master` where it is installed), or give --url."
            ) from err
        except httpx2.TimeoutException as err:
            raise Failure(f"The master at {self._url} did not answer in time. Its log says why.", Exit.TIMEOUT) from err
        except httpx2.HTTPError as err:
            raise Failure(f"The connection to {self._url} broke ({err}). Try again.") from err
        if response.is_success:
            return _json(response)
        raise Failure(_told(response), _BY_STATUS.get(response.status_code, Exit.FAILED))


def find_token(token: str | None, token_file: Path | None) -> str:
    """The token that was given, or that lies where one is usually kept; empty when there is none. Raises Failure."""
    if token:
        return token.strip()
    try:
        if token_file is not None:
            return token_file.read_text().strip()
    except OSError as err:
        raise Failure(f"Cannot read the token from {token_file}: {err.strerror}. Check --token-file.") from err
    for path in TOKEN_FILES:
        try:
            return path.read_text().strip()
        except OSError:
            continue
    return ""


def _json(response: httpx2.Response) -> Any:
    try:
        return response.json()
    except ValueError as err:
        raise Failure(f"{response.url} does not speak like a master of Saltern. Check --url.") from err


def _told(response: httpx2.Response) -> str:
    """The sentence of a problem+json, with its hint."""
    try:
        problem = response.json()
        detail, hint = str(problem["detail"]), str(problem.get("hint", ""))
    except (ValueError, KeyError, TypeError, AttributeError):
        return f"The master answered {response.status_code} without saying why. Check --url."
    if response.status_code == httpx2.codes.UNAUTHORIZED:
        hint = "Give --token-file FILE, or set SALTERN_TOKEN_FILE or SALTERN_TOKEN."
    stop = "" if not detail or detail.endswith((".", "!", "?")) else "."
    return f"{detail}{stop} {hint}".strip()
