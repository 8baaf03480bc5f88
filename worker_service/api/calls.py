"""The verbs of the worker API: check, count and log each call, and run it in Salt's execution module."""

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
"""The verbs of this API, and the scope that each one needs."""

_WAITING: Final = frozenset({"destroy", "shutdown", "apply"})
"""Verbs that may take an hour. They have slots of their own, so that they delay no other call."""

METHODS: Final[Mapping[str, tuple[str, ...]]] = dict.fromkeys(SCOPE, ("GET", "POST")) | {"screen": ("POST",)}
"""The contract allows both methods. `screen` returns a ticket, so a link or a browser's prefetch must not call it."""

_SLOTS: Final = 16
_PATIENCE_S: Final = 30.0
_HEADERS: Final[Mapping[Code | None, Mapping[str, str]]] = {
    Code.NO_TOKEN: {"WWW-Authenticate": 'Bearer realm="saltern worker"'},
    Code.TOO_MANY: {"Retry-After": "1"},
}

Modules = Mapping[str, Callable[..., Any]]


class Calls:
    """Runs calls of the execution modules on threads of its own, with limited parallelism."""

    def __init__(self, modules: Modules, access: Access, worker: WorkerContext) -> None:
        self._modules = modules
        self._worker = worker
        self._access = access
        self._threads = ThreadPoolExecutor(2 * _SLOTS, thread_name_prefix="verb")
        self._slots = {waiting: asyncio.Semaphore(_SLOTS) for waiting in (True, False)}

    async def answer(self, request: Request) -> JSONResponse:
        """Answer `GET` and `POST /vmachines/<verb>`."""
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
            reply = await self._call(verb, given, token)
            if ticket and reply["success"]:
                reply = {**reply, "ticket": ticket}
            if verb == "agent_log" and reply["success"]:  # the page shows it in place of the console
                reply = {
                    **reply,
                    "may_see_screen": console_proxy.SCOPE in token.scopes and console_proxy.is_admin(token),
                }
        except SalternError as err:
            reply = {"success": False, "message": str(err), "code": err.code.value}
        status, code = _status(reply), reply.get("code")
        audit.write(status, code)
        results = reply.get("results") or ()  # one log line for each command of a batch
        for result in results:
            audit.verb, audit.vm = f"{verb} {result.get('verb', '')}", result.get("uuid", "")
            audit.write(_status(result), result.get("code"))
        if token is not None:
            for result in results or (reply,):
                what = result.get("verb", verb)
                self._worker.record_audit_event(
                    audit_event("worker-api", token.label, what, given, result, address=audit.address)
                )
        return JSONResponse(reply, status, _HEADERS.get(code))

    async def _call(self, verb: str, given: Mapping[str, Any], token: Token) -> dict[str, Any]:
        """Run the verb and return its reply, also a failure. Raises BadRequest and Refused."""
        function = self._modules[f"vmachines.{verb}"]
        validation.check_fitting(verb, function, **given)
        slots = self._slots[verb in _WAITING]
        try:
            await asyncio.wait_for(slots.acquire(), _PATIENCE_S)
        except TimeoutError:
            text = f"{_SLOTS} other calls have been running for {_PATIENCE_S:g} s. Try again later."
            raise Refused(text, code=Code.TOO_MANY) from None
        try:
            self._access.require_valid(token)  # its body and its turn may have taken a while
        except Refused:
            slots.release()
            raise
        work = asyncio.get_running_loop().run_in_executor(self._threads, functools.partial(function, **given))
        # The slot stays taken until the work is done, even if the caller disconnects.
        work.add_done_callback(lambda _: slots.release())
        reply: dict[str, Any] = await asyncio.shield(work)
        return reply


def _status(reply: Mapping[str, Any]) -> int:
    """Return the HTTP status of a reply."""
    return 200 if reply["success"] else HTTP_STATUS[Code(reply.get("code", Code.INTERNAL))]
