"""`Idempotency-Key`: a repeated request is carried out once and gets the same answer again.

A key belongs to one user and one request (method, path, query, body) for `idempotency_keep_s`. The answer is stored if
the request succeeded. A refused request changed nothing and can be retried with the same key. Routes whose answers have
secrets do not take part, because the answer would be stored. A request may have a password, so only an HMAC of it is
stored. The HMAC's key is the caller's token, which is not stored, so the database does not allow guessing passwords.

After a master has stopped during a request, its progress is unknown. When the request can no longer be in progress, a
repetition is carried out again. Its result then depends on what the first one did: a name may be taken, or the desired
state may already be set.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable, Coroutine
from datetime import timedelta
from typing import Annotated, Any, Final

from fastapi import Depends, Header, Request, Response

from master_service.api.protocol.auth import Caller, PermittedRoute, TheCaller, TheMaster
from master_service.api.protocol.dry_run import is_dry_run
from master_service.core.errors import IdempotencyKeyInUse, IdempotencyKeyReused, NotFound
from master_service.core.settings import Settings
from master_service.services.vms import LONGEST_BLOCK_S
from master_service.store.idempotency import IdempotencyTtl, Reply

_KEPT_HEADERS: Final = ("content-type", "etag", "location")
_REPEATED: Final = "Idempotency-Replayed"
_WORK: Final = timedelta(seconds=60)
"""The longest duration of a request that does not block."""


class _Answered(Exception):
    """A stored answer exists. Raising in a dependency is the only way to skip the handler."""

    def __init__(self, reply: Reply) -> None:
        super().__init__()
        self.reply = reply


class IdempotentRoute(PermittedRoute):
    """A route with `Idempotency-Key` for changes. Used as the `route_class` of a router."""

    def __init__(self, path: str, endpoint: Callable[..., Any], **options: Any) -> None:
        if options.get("methods") not in (["GET"], {"GET"}):
            options["dependencies"] = [*(options.get("dependencies") or ()), Depends(_reserve)]
        super().__init__(path, endpoint, **options)

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Return FastAPI's handler, which stores its answer or gives the stored one."""
        handle = super().get_route_handler()

        async def handler(request: Request) -> Response:
            kept = False
            try:
                response = await handle(request)
                kept = await _keep(request, response)
            except _Answered as answered:
                kept = True
                return _repeated(answered.reply)
            except NotFound:
                # The object is looked up before the key, and the first request may have removed it.
                if (reply := await _kept(request)) is None:
                    raise
                return _repeated(reply)
            else:
                return response
            finally:
                if not kept and (reserved := _reserved(request)):
                    await request.app.state.master.context.store.idempotency.release(*reserved)

        return handler


async def _reserve(
    request: Request,
    master: TheMaster,
    caller: TheCaller,
    idempotency_key: Annotated[
        str | None,
        Header(
            min_length=1,
            max_length=255,
            pattern="^[!-~]+$",
            description="a unique word for this change: a repeated request with it is carried out once",
        ),
    ] = None,
) -> None:
    if idempotency_key is None or is_dry_run(request):
        return
    settings, fingerprint = master.context.settings, _fingerprint(request, await request.body())
    ttl = IdempotencyTtl(answer=timedelta(seconds=settings.idempotency_keep_s), request=_longest(request, settings))
    now = master.context.clock()
    reply = await master.context.store.idempotency.reserve(caller.account_id, idempotency_key, fingerprint, now, ttl)
    if reply is None:
        request.state.reserved = (caller.account_id, idempotency_key)
        return
    if reply.fingerprint != fingerprint:
        raise IdempotencyKeyReused(f"The Idempotency-Key {idempotency_key!r} was used for another request.")
    if reply.status is None:
        raise IdempotencyKeyInUse(
            f"The first request with the Idempotency-Key {idempotency_key!r} has not been answered yet."
        )
    raise _Answered(reply)


def _longest(request: Request, settings: Settings) -> timedelta:
    """Return the longest duration of this request: its own wait or that of the settings, and `_WORK`."""
    try:
        wait_s = float(request.query_params.get("timeout_s", settings.block_timeout_s))
    except ValueError:
        wait_s = 0.0
    return _WORK + timedelta(seconds=wait_s if 0 <= wait_s <= LONGEST_BLOCK_S else LONGEST_BLOCK_S)


async def _kept(request: Request) -> Reply | None:
    """Return the stored answer of this request with its key, or None."""
    caller: Caller | None = getattr(request.state, "caller", None)
    key = request.headers.get("Idempotency-Key")
    if caller is None or key is None or is_dry_run(request):
        return None
    reply = await request.app.state.master.context.store.idempotency.find(caller.account_id, key)
    same = reply is not None and reply.fingerprint == _fingerprint(request, await request.body())
    return reply if same and reply.status is not None else None


def _repeated(reply: Reply) -> Response:
    return Response(reply.body, reply.status or 200, reply.headers | {_REPEATED: "true"})


def _reserved(request: Request) -> tuple[str, str] | None:
    found: tuple[str, str] | None = getattr(request.state, "reserved", None)
    return found


async def _keep(request: Request, response: Response) -> bool:
    reserved = _reserved(request)
    if reserved is None or response.status_code >= 400:
        return False
    headers = {name: response.headers[name] for name in _KEPT_HEADERS if name in response.headers}
    body = bytes(response.body).decode()
    reply = Reply(fingerprint="", status=response.status_code, headers=headers, body=body)
    await request.app.state.master.context.store.idempotency.keep(*reserved, reply)
    return True


def _fingerprint(request: Request, body: bytes) -> str:
    head = f"{request.method} {request.url.path}?{request.url.query}\n"
    token = request.headers.get("Authorization", "")
    return hmac.new(token.encode(), head.encode() + body, hashlib.sha256).hexdigest()
