"""The verbs behind the HTTP door: each call checked, counted, carried to Salt's module, answered and written down."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

from fastapi import Request
from fastapi.responses import JSONResponse

from worker_service.api import console_proxy, request_body
from worker_service.api.access import Access, Audit, require_scope
from worker_service.api.auth import Token
from worker_service.contract import HTTP_STATUS, Code
from worker_service.core.errors import Refused, SalternError
from worker_service.operations import validation
from worker_service.state.audit_spool import audit_event
from worker_service.state.context import WorkerContext

SCOPE: Final[Mapping[str, str]] = {
    "start": "operate",
    "apply": "operate",
    "modify": "operate",
    "destroy": "operate",
    "suspend": "operate",
    "resume": "operate",
    "shutdown": "operate",
    "save_retry": "operate",
    "cache_clean": "operate",
    "cache_prefetch": "operate",
    "cache_pin": "operate",
    "cache_unpin": "operate",
    "status": "read",
    "list": "read",
    "version": "read",
    "plan": "read",
    "capabilities": "read",
    "agent_log": "read",
    "cache": "read",
    "screen": console_proxy.SCOPE,
}
"""The verbs behind this door, and the scope that each one needs."""

_WAITING: Final = frozenset({"destroy", "shutdown", "apply"})
"""Verbs that may wait for an hour. They have seats of their own, so that they keep no other call waiting."""

METHODS: Final[Mapping[str, tuple[str, ...]]] = dict.fromkeys(SCOPE, ("GET", "POST")) | {"screen": ("POST",)}
"""The contract has both for each verb. A ticket is its answer, which no link or prefetch may bring about."""

_SEATS: Final = 16
_PATIENCE_S: Final = 30.0
_HEADERS: Final[Mapping[Code | None, Mapping[str, str]]] = {
    Code.NO_TOKEN: {"WWW-Authenticate": 'Bearer realm="saltern worker"'},
    Code.TOO_MANY: {"Retry-After": "1"},
}

Modules = Mapping[str, Callable[..., Any]]


class Calls:
    """Carries calls to the modules on threads of its own, a bounded number at once."""

    def __init__(self, modules: Modules, access: Access, worker: WorkerContext) -> None:
        self._modules = modules
        self._worker = worker
        self._access = access
        self._threads = ThreadPoolExecutor(2 * _SEATS, thread_name_prefix="verb")
        self._seats = {waiting: asyncio.Semaphore(_SEATS) for waiting in (True, False)}

    async def answer(self, request: Request) -> JSONResponse:
        """The answer to `GET&POST /vmachines/<verb>`."""
        verb = request.url.path.rpartition("/")[2]
        audit = Audit(request, verb)
        token: Token | None = None
        given: Mapping[str, Any] = {}
        try:
            token = self._access.identify(request)
            audit.by = token.label
            require_scope(token, SCOPE[verb], verb)
            given = await request_body.read(request)
            audit.vm = str(given.get("uuid") or given.get("name") or "")
            given, ticket = console_proxy.with_ticket(token, given) if verb == "screen" else (given, None)
            reply = await self._call(verb, given)
            if ticket and reply["success"]:
                reply = {**reply, "ticket": ticket}
            if verb == "agent_log" and reply["success"]:  # which is shown in the place of the screen
                reply = {
                    **reply,
                    "may_see_screen": console_proxy.SCOPE in token.scopes and console_proxy.is_admin(token),
                }
        except SalternError as err:
            reply = {"success": False, "message": str(err), "code": err.code.value}
        status, code = _status(reply), reply.get("code")
        audit.write(status, code)
        results = reply.get("results") or ()  # each command of a batch did something to a VM of its own
        for result in results:
            audit.verb, audit.vm = f"{verb} {result.get('verb', '')}", result.get("uuid", "")
            audit.write(_status(result), result.get("code"))
        if token is not None:
            for done in results or (reply,):
                what = done.get("verb", verb)
                self._worker.record_audit_event(
                    audit_event("worker-api", token.label, what, given, done, address=audit.address)
                )
        return JSONResponse(reply, status, _HEADERS.get(code))

    async def _call(self, verb: str, given: Mapping[str, Any]) -> dict[str, Any]:
        """The verb's reply, whatever it says; raises BadRequest and Refused."""
        function = self._modules[f"vmachines.{verb}"]
        validation.check_fitting(verb, function, **given)
        seats = self._seats[verb in _WAITING]
        try:
            await asyncio.wait_for(seats.acquire(), _PATIENCE_S)
        except TimeoutError:
            text = f"{_SEATS} other calls have been at work for {_PATIENCE_S:g} s. Try again later."
            raise Refused(text, code=Code.TOO_MANY) from None
        work = asyncio.get_running_loop().run_in_executor(self._threads, functools.partial(function, **given))
        # The seat is taken until the work is done, also when the caller has gone away meanwhile.
        work.add_done_callback(lambda _: seats.release())
        reply: dict[str, Any] = await asyncio.shield(work)
        return reply


def _status(reply: Mapping[str, Any]) -> int:
    """HTTP's status beside a reply."""
    return 200 if reply["success"] else HTTP_STATUS[Code(reply.get("code", Code.INTERNAL))]
