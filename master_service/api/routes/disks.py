"""Saved disks of VMs, relayed from their workers to the owner.

The master makes a ticket for each download, registers its digest at the worker through Salt, and presents the secret to
the worker's API over TLS, as for consoles. No user learns the secret, so no user can open the worker past the master.
"""

from __future__ import annotations

import asyncio
import re
import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack
from typing import Annotated, Final, Literal

import httpx2
from fastapi import APIRouter, Header, Response
from pydantic import BaseModel

from http_bounds.stream import LengthStream
from master_service.api.protocol.auth import Caller, PermittedRoute, TheCaller, TheMaster, User
from master_service.api.protocol.errors import RESPONSES, responses
from master_service.core.errors import Conflict, MasterError, SaltError
from master_service.planning.outcomes import Outcome
from master_service.planning.vm import VM
from master_service.policy.audit import Actor, AuditEntry
from master_service.policy.permissions import DOWNLOADS_DISK, Verdict, verdict
from master_service.policy.worker_address import console_url, disk_url
from master_service.runtime.worker_calls import call
from master_service.services.console_tickets import url_in_reply
from master_service.services.master import Master
from worker_service.contract.tickets import DOWNLOAD_FEATURE, make

router = APIRouter(prefix="/vmachines", tags=["vmachines"], responses=RESPONSES, route_class=PermittedRoute)

_OPEN_S: Final = 10.0
_SILENCE_S: Final = 60.0
_LOOK_S: Final = 2.0
"""Interval of the checks whether the caller may still read the disk."""
_PASSED: Final[Mapping[str, re.Pattern[str]]] = {
    "etag": re.compile(r'"[0-9a-f]{64}"'),
    "repr-digest": re.compile(r"sha-256=:[A-Za-z0-9+/=]{44}:"),
    "content-range": re.compile(r"bytes [0-9]{1,18}-[0-9]{1,18}/[0-9]{1,18}"),
}
"""The headers that the master passes on, and their shape: a worker is not trusted with others."""
_LENGTH: Final = re.compile(r"[0-9]{1,18}")
_NOTHING: Final = "Nothing was downloaded."
_REFUSAL_BYTES: Final = 64 << 10


class _Refusal(BaseModel):
    """The part of a worker's refusal that the master passes on."""

    message: str


@router.get(
    "/{id_or_name}/disks/{disk}",
    response_class=Response,
    responses={
        200: {"content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}},
        206: {"description": "The rest of it, behind the offset of `Range`"},
        **responses(429, 503),
    },
)
async def download(  # noqa: PLR0913, PLR0917 - one parameter per part of the request
    id_or_name: str,
    disk: Literal["hda", "hdb"],
    master: TheMaster,
    user: User,
    caller: TheCaller,
    range_: Annotated[str | None, Header(alias="Range", max_length=64, description="bytes=OFFSET-")] = None,
    if_range: Annotated[str | None, Header(max_length=80, description="the ETag of the first part")] = None,
) -> Response:
    """Download a saved disk of a halted VM. `Repr-Digest` and the ETag have its SHA-256. `Range` mends a break."""
    vm = await master.vms.get(id_or_name)
    slots = AsyncExitStack()
    slots.enter_context(master.downloads.taken(user.name))
    try:
        url, secret = await _admit(master, vm, disk, user)
        part = {"Range": range_, "If-Range": if_range} if range_ and if_range else {}
        answer = await _open(slots, master, url, {"Authorization": f"Ticket {secret}", **part})
    except BaseException as err:
        await slots.aclose()
        if isinstance(err, MasterError):
            await _note(master, user, vm, Outcome.REFUSED, f"{disk}: {err}")
        raise
    await _note(master, user, vm, Outcome.DONE, disk)
    headers = {name: value for name, shape in _PASSED.items() if shape.fullmatch(value := answer.headers.get(name, ""))}
    name = f"{vm.desired.name}-{disk}"
    return LengthStream(
        _relay(answer, master, caller, vm.uuid),
        int(answer.headers["content-length"]),
        status_code=answer.status_code,
        headers={**headers, "Content-Disposition": f'attachment; filename="{name}"'},
        at_end=slots.aclose,
    )


async def _admit(master: Master, vm: VM, disk: str, user: Actor) -> tuple[str, str]:
    """Register a ticket at the worker of a VM; return the address of the disk there, and the secret."""
    name, worker = vm.desired.name, vm.desired.worker
    if worker is None:
        raise Conflict(f"{name} has no worker yet, so it has no disk.", "Its disk is saved when it halts.")
    capacity = vm.worker.capacity if vm.worker else None
    if capacity is not None and DOWNLOAD_FEATURE not in capacity.features:
        raise Conflict(f"{worker} is too old to send disks.", f"Upgrade it: salt {worker} state.apply worker.")
    secret, key = make()
    request = {"uuid": vm.uuid, "ticket_sha256": key, "user": user.name, "disk": disk}
    settings = master.context.settings
    answers = await call(master.context, [worker], "vmachines.screen", request, settings.poll_timeout_s)
    reported = url_in_reply(answers.get(worker), worker, name, _NOTHING)
    enrolled = vm.worker.api_url if vm.worker else ""
    try:
        console = console_url(worker, vm.uuid, enrolled=enrolled, reported=reported, allowed=settings.console_workers)
    except ValueError as err:
        raise Conflict(str(err), "Only an administrator can do that.") from err
    return disk_url(console, vm.uuid, disk), secret


async def _open(slots: AsyncExitStack, master: Master, url: str, headers: Mapping[str, str]) -> httpx2.Response:
    """Ask the worker for the disk; closed with `slots`. Raises Conflict if it refuses, SaltError if it is silent."""
    secure = url.startswith("https:")
    ca_file = master.context.settings.console_ca_file
    context = ssl.create_default_context(cafile=ca_file) if secure else ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    timeout = httpx2.Timeout(_OPEN_S, read=_SILENCE_S)
    try:
        client = await slots.enter_async_context(httpx2.AsyncClient(verify=context, trust_env=False, timeout=timeout))
        stream = client.stream("GET", url, headers={**headers, "Accept-Encoding": "identity"})
        answer = await slots.enter_async_context(stream)
        if answer.status_code in (200, 206) and _LENGTH.fullmatch(answer.headers.get("content-length", "")):
            return answer
        raise Conflict(await _refusal_message(answer), _NOTHING)
    except httpx2.HTTPError as err:
        raise SaltError(
            f"The worker does not send the disk at {url}: {err}.", "Check that its API runs, and check console_ca_file."
        ) from err


async def _refusal_message(answer: httpx2.Response) -> str:
    body = b""
    async for chunk in answer.aiter_raw():
        body += chunk
        if len(body) > _REFUSAL_BYTES:
            break
    try:
        return str(_Refusal.model_validate_json(body).message)[:1000]
    except ValueError:
        return f"Its worker answered {answer.status_code}."


async def _relay(answer: httpx2.Response, master: Master, caller: Caller, uuid: str) -> AsyncIterator[bytes]:
    """Yield what the worker sends, as long as the caller may read the disk."""
    clock = asyncio.get_running_loop().time
    look_at = clock() + _LOOK_S
    async for chunk in answer.aiter_raw():
        if clock() >= look_at:
            if not await _may_read(master, caller, uuid):
                return
            look_at = clock() + _LOOK_S
        yield chunk


async def _may_read(master: Master, caller: Caller, uuid: str) -> bool:
    """Return whether the caller may still read the disk, by their token, their role and the VM's owner."""
    store, now = master.context.store, master.context.clock()
    if not await store.tokens.still_opens(caller.token_id, caller.account_id, caller.role, now):
        return False
    vm = await store.queries.vm(uuid)
    own = vm is not None and vm.desired.owner_id == caller.account_id
    return vm is not None and verdict(DOWNLOADS_DISK, caller.role, own=own) is Verdict.ALLOWED


async def _note(master: Master, actor: Actor, vm: VM, outcome: Outcome, detail: str) -> None:
    entry = AuditEntry(
        at=master.context.clock(),
        actor=actor,
        verb="download",
        kind="vm",
        target=vm.desired.name,
        uuid=vm.uuid,
        outcome=outcome,
        detail=detail,
    )
    await master.context.store.audit.add(entry)
