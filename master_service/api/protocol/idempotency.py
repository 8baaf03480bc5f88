"""`Idempotency-Key`: a request that is sent again is answered again, and done once.

A key belongs to one user and one request (method, path, query, body) for `idempotency_keep_s`. The answer to it is kept
when it is a success; what was refused changed nothing, and may be tried again with the same key. Not for routes whose
answers hold secrets: those would be stored. Of a request, which may hold a password, only a digest is kept, and its key
is the caller's token, which is kept nowhere: nobody who reads the database can try passwords on it.

Where a master was stopped in the middle nobody knows how far it came. Once that request cannot be going on any more the
same one is carried out anew, and meets what there is of the first as anything else that is there: a name is taken, a VM
is wanted so already.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable, Coroutine
from datetime import timedelta
from typing import Annotated, Any, Final

from fastapi import Depends, Header, Request, Response
from fastapi.routing import APIRoute

from master_service.api.protocol.auth import Caller, TheCaller, TheMaster
from master_service.api.protocol.dry_run import only_rehearsed
from master_service.core.errors import IdempotencyKeyInUse, IdempotencyKeyReused, NotFound
from master_service.core.settings import Settings
from master_service.services.vms import LONGEST_BLOCK_S
from master_service.store.idempotency import IdempotencyTtl, Reply

_KEPT_HEADERS: Final = ("content-type", "etag", "location")
_REPEATED: Final = "Idempotency-Replayed"
_WORK: Final = timedelta(seconds=60)
"""How long a request may take that waits for nothing."""


class _Answered(Exception):
    """There is an answer already: raised in a dependency, it is the only way to skip the handler."""

    def __init__(self, reply: Reply) -> None:
        super().__init__()
        self.reply = reply


class IdempotentRoute(APIRoute):
    """A route that knows `Idempotency-Key` where it changes something. Used as the `route_class` of a router."""

    def __init__(self, path: str, endpoint: Callable[..., Any], **options: Any) -> None:
        if options.get("methods") not in (["GET"], {"GET"}):
            options["dependencies"] = [*(options.get("dependencies") or ()), Depends(_reserve)]
        super().__init__(path, endpoint, **options)

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """FastAPI's handler, with the answer kept, or replaced by the one that was kept."""
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
                # An object is looked for before the key is: this very request may be what removed it.
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
            description="a word of your own for this change: sent again with the same request, it is done once",
        ),
    ] = None,
) -> None:
    if idempotency_key is None or only_rehearsed(request):
        return
    settings, fingerprint = master.context.settings, _fingerprint(request, await request.body())
    lives = IdempotencyTtl(answer=timedelta(seconds=settings.idempotency_keep_s), request=_longest(request, settings))
    now = master.context.clock()
    reply = await master.context.store.idempotency.reserve(caller.name, idempotency_key, fingerprint, now, lives)
    if reply is None:
        request.state.reserved = (caller.name, idempotency_key)
        return
    if reply.fingerprint != fingerprint:
        raise IdempotencyKeyReused(f"The Idempotency-Key {idempotency_key!r} was used for another request.")
    if reply.status is None:
        raise IdempotencyKeyInUse(
            f"The first request with the Idempotency-Key {idempotency_key!r} has not been answered yet."
        )
    raise _Answered(reply)


def _longest(request: Request, settings: Settings) -> timedelta:
    """How long this request may take: as long as it says itself that it waits, or as the settings say, and a bit."""
    try:
        waits_s = float(request.query_params.get("timeout_s", settings.block_timeout_s))
    except ValueError:
        waits_s = 0.0
    return _WORK + timedelta(seconds=waits_s if 0 <= waits_s <= LONGEST_BLOCK_S else LONGEST_BLOCK_S)


async def _kept(request: Request) -> Reply | None:
    """The answer that this very request, with its key, had before; None: it had none."""
    caller: Caller | None = getattr(request.state, "caller", None)
    key = request.headers.get("Idempotency-Key")
    if caller is None or key is None or only_rehearsed(request):
        return None
    reply = await request.app.state.master.context.store.idempotency.find(caller.name, key)
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
