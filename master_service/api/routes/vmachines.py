"""`/api/v1/vmachines`: create, list, show and modify VMs. `vm_actions.py` has their verbs."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import Annotated, Any, Final
from urllib.parse import urlencode

from fastapi import APIRouter, Query, Request, Response

from master_service.api.protocol.auth import TheCaller, TheMaster, User
from master_service.api.protocol.dry_run import DryRun, DryRunResponse, describe_change, dry_run_response
from master_service.api.protocol.errors import RESPONSES, responses
from master_service.api.protocol.etag import IfMatch, IfMatchRequired, put_etag
from master_service.api.protocol.idempotency import IdempotentRoute
from master_service.api.protocol.schemas import CreateVM, ModifyVM, VMView
from master_service.api.protocol.vm_filter import Labels, Statuses, VMFilter
from master_service.api.routes.vm_actions import Timeout, answer_accepted, view, vm_after
from master_service.core.errors import BadRequest
from master_service.planning.status import MasterStatus, SoughtStatus, sought_status
from master_service.planning.user_actions import pending_settings
from master_service.planning.vm import VM
from master_service.store import queries

router = APIRouter(
    prefix="/vmachines",
    tags=["vmachines"],
    responses=RESPONSES,
    route_class=IdempotentRoute,
)

MAX_LIMIT: Final = 1000
_LINK = {
    "Link": {"description": '`<…>; rel="next"` while there are more', "schema": {"type": "string"}},
    "X-Next-Cursor": {"description": "`cursor` of the next page, while there is one", "schema": {"type": "string"}},
}


@router.post(
    "",
    status_code=201,
    responses={
        201: {"headers": {"Location": {"description": "the URL of the VM", "schema": {"type": "string"}}}},
        200: {"model": DryRunResponse, "description": "The result of a dry run"},
        **responses(422, 429, 507),
    },
)
async def create(
    body: CreateVM, master: TheMaster, user: User, response: Response, dry: DryRun
) -> VMView | DryRunResponse:
    """Create a VM and start it. Answers at once, with status `pending`."""
    vm = await master.vms.create(body.spec(), user, body.worker, body.labels, protected=body.protected)
    if dry:
        response.status_code = 200
        return await describe_change(master, None, vm)
    response.headers["Location"] = f"/api/v1/vmachines/{vm.uuid}"
    put_etag(response, vm)
    return view(master, vm)


@router.get("", responses={200: {"headers": _LINK}})
async def list_(  # noqa: PLR0913, PLR0917 - one parameter per part of the request
    master: TheMaster,
    caller: TheCaller,
    request: Request,
    response: Response,
    status: Statuses = None,
    owner: Annotated[str | None, Query(max_length=63)] = None,
    worker: Annotated[str | None, Query(max_length=255)] = None,
    name: Annotated[str | None, Query(max_length=63, description="the whole name")] = None,
    q: Annotated[str, Query(max_length=63, description="part of the name, or the beginning of the uuid")] = "",
    label: Labels = None,
    cursor: Annotated[str | None, Query(max_length=512, description="X-Next-Cursor of the previous page")] = None,
    limit: Annotated[int, Query(ge=1, le=MAX_LIMIT, description="entries at most")] = MAX_LIMIT,
) -> list[VMView]:
    """List the VMs that the caller may see, by name, one page at a time.

    Destroyed VMs are included only with `status=destroyed`. Pages are by keys, so VMs that are created or destroyed
    between two requests neither repeat nor hide others.
    """
    statuses = frozenset(sought_status(word) for word in status or ())
    query = queries.Query(
        owner=owner,
        owner_id=caller.only_id,
        worker=worker,
        name=name,
        text=q,
        destroyed=any(sought.status is MasterStatus.DESTROYED for sought in statuses),
        after=_position(cursor) if cursor else None,
    )
    found, more = await master.context.store.queries.page(query, _kept(statuses, label or []), limit)
    if more:
        following = _cursor(found[-1])
        others = [(key, value) for key, value in request.query_params.multi_items() if key != "cursor"]
        response.headers["X-Next-Cursor"] = following
        response.headers["Link"] = f'<{request.url.path}?{urlencode([*others, ("cursor", following)])}>; rel="next"'
    return [view(master, vm) for vm in found]


@router.get("/{id_or_name}")
async def show(id_or_name: str, master: TheMaster, response: Response) -> VMView:
    """Show one VM by uuid or name; a destroyed one only by uuid. The ETag is the version of its desired state."""
    vm = await master.vms.get(id_or_name)
    put_etag(response, vm)
    return view(master, vm)


_LATER: Final[dict[int | str, dict[str, Any]]] = {
    202: {
        "model": VMView,
        "description": "Its worker has not answered yet: `pending` names the parameters",
        "headers": {"Location": {"description": "its operation, with its state", "schema": {"type": "string"}}},
    }
}


@router.patch("/{id_or_name}", responses={**_LATER, **responses(412, 422, 428, 429)}, operation_id="patch_vmachine")
async def patch(  # noqa: PLR0913, PLR0917 - as above
    id_or_name: str,
    body: ModifyVM,
    master: TheMaster,
    user: User,
    response: Response,
    if_match: IfMatchRequired,
    dry: DryRun,
    timeout_s: Timeout = None,
) -> VMView | DryRunResponse:
    """Change where disks are saved when the VM halts, the CD, the labels, or the protection. Requires If-Match.

    Blocks until its worker has accepted the change; after the timeout answers 202. Answers 409 with the worker's
    message if it refuses: then the former values are in force.
    """
    return await modify(id_or_name, body, master, user, response, if_match, dry, timeout_s)


@router.post("/{id_or_name}/modify", responses={**_LATER, **responses(412, 422, 429)})
async def modify(  # noqa: PLR0913, PLR0917 - as above
    id_or_name: str,
    body: ModifyVM,
    master: TheMaster,
    user: User,
    response: Response,
    if_match: IfMatch,
    dry: DryRun,
    timeout_s: Timeout = None,
) -> VMView | DryRunResponse:
    """Change a VM as PATCH does, but If-Match is optional: the contract's `modify`."""
    change = partial(master.vms.modify, id_or_name, body.settings(), user, if_match)
    request = partial(change, body.labels, protected=body.protected)
    if dry:
        return await dry_run_response(master, id_or_name, vm_after(request))
    limit_s = master.context.settings.block_timeout_s if timeout_s is None else timeout_s
    with master.waits.taken(user.name) if limit_s else nullcontext():
        modified = await request()
        vm = await master.vms.confirm(modified, limit_s)
    if pending_settings(vm):
        answer_accepted(response, modified)
    put_etag(response, vm)
    return view(master, vm)


def _kept(statuses: frozenset[SoughtStatus], labels: list[str]) -> Callable[[VM], bool]:
    """Return the part of the filter that no column of the database has."""
    return VMFilter(statuses=statuses, labels=labels).fits_now


def _cursor(vm: VM) -> str:
    """Encode the end of a page as one word that is opaque to clients."""
    return base64.urlsafe_b64encode(json.dumps([vm.desired.name, vm.uuid]).encode()).decode().rstrip("=")


def _position(cursor: str) -> tuple[str, str]:
    try:
        padded = cursor + "=" * (-len(cursor) % 4)
        match json.loads(base64.b64decode(padded, altchars=b"-_", validate=True)):
            case [str() as name, str() as uuid] if "\0" not in name + uuid:
                return name, uuid
    except (binascii.Error, ValueError):
        pass
    raise BadRequest([("cursor", "give X-Next-Cursor of the previous page, unchanged")])
