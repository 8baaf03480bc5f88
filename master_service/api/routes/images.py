"""`/api/v1/images`: list, prefetch, pin and remove base images in the caches of workers."""

from __future__ import annotations

from dataclasses import asdict
from datetime import datetime
from typing import Annotated, Any

from fastapi import APIRouter, Query, Response
from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from master_service.api.protocol.auth import TheCaller, TheMaster, User
from master_service.api.protocol.dry_run import DryRun
from master_service.api.protocol.errors import RESPONSES, responses
from master_service.api.protocol.idempotency import IdempotentRoute
from master_service.api.protocol.schemas import Text
from master_service.policy import validation
from master_service.policy.audit import Actor
from master_service.policy.images import Copy, State, uris_for
from master_service.policy.permissions import Reach
from master_service.services.images import Verb
from master_service.services.master import Master

router = APIRouter(prefix="/images", tags=["images"], responses=RESPONSES, route_class=IdempotentRoute)
_CHANGES = {**responses(422, 503)}


def _uri(value: str) -> str:
    if value.startswith("blank:"):
        raise ValueError("a blank disk is created on its worker; give the URI of an image")
    return validation.validate_image_uri(value)


WorkerIds = list[Annotated[Text, Field(min_length=1, max_length=255)]] | None
WORKERS: Any = Field(None, min_length=1, max_length=1000, description="minion ids; default: all that answer")


class OneImage(BaseModel):
    """An image, and the workers of the request."""

    model_config = ConfigDict(strict=True, extra="forbid")

    uri: Annotated[str, AfterValidator(_uri)]
    workers: WorkerIds = WORKERS


class Prefetch(OneImage):
    """An image to fetch before a VM needs it."""

    pin: bool = Field(False, description="whether it stays until it is unpinned")


class SomeWorkers(BaseModel):
    """The workers of a request about no particular image."""

    model_config = ConfigDict(strict=True, extra="forbid")

    workers: WorkerIds = WORKERS


class CopyView(BaseModel):
    """An image on one worker."""

    worker: str
    state: State = Field(description="`waiting`: ordered, and not fetched now; `unknown`: the worker did not answer")
    size: int | None = Field(description="bytes in the cache")
    done: int = Field(description="bytes fetched so far")
    total: int | None = Field(description="bytes to fetch; null: the source does not say")
    tries: int = Field(description="failed tries")
    problem: str = Field(description="why the last try failed")
    pinned: bool
    last_used: datetime | None
    used_by: list[str] = Field(description="VMs on its disk")


class ImageView(BaseModel):
    """A base image in the cache of at least one worker. The workers are shown to those who may see them."""

    uri: str
    workers: list[str]
    size: int | None = Field(None, description="bytes in the cache; only with `sizes`")
    pinned: list[str] | None = Field(None, description="workers on which it stays; only with `sizes`")
    pinned_by: str | None = Field(None, description="the account that pinned it through the master; only with `sizes`")
    copies: list[CopyView] | None = Field(None, description="its state on each worker; only with `sizes`")


class AnswerView(BaseModel):
    """The answer of one worker."""

    worker: str
    success: bool
    message: str
    code: str = Field(description="why it was refused; empty for a success")


class ImageChange(BaseModel):
    """The answers of the workers. In a dry run: the workers that would be asked."""

    dry_run: bool
    uri: str
    workers: list[AnswerView]


class RemovedImage(BaseModel):
    """An image that was removed, or would be."""

    uris: list[str]
    size: int = Field(description="bytes")


class CleanedView(AnswerView):
    """What one worker removed, or would remove."""

    images: list[RemovedImage]
    size: int = Field(description="bytes that become free")


class Cleaning(BaseModel):
    """The images that were removed. In a dry run: those that would be."""

    dry_run: bool
    workers: list[CleanedView]


@router.get("", responses=responses(429, 503))
async def list_(
    master: TheMaster,
    caller: TheCaller,
    sizes: Annotated[
        bool, Query(description="ask the workers now for sizes, pins, users and prefetches; seconds, not milliseconds")
    ] = False,
) -> list[ImageView]:
    """List base images in the caches of workers, by URI, from the last report of each worker.

    A user who may not see workers gets the images that are public, and those of their own VMs, without the workers.
    """
    if caller.reach is not Reach.ALL:
        with master.waits.taken(caller.name):
            copies = await master.images.copies(await master.images.select_workers(None))
        allowed = uris_for(copies, caller.name)
        return [ImageView(uri=uri, workers=[], size=size) for uri, size in sorted(allowed.items())]
    found: dict[str, list[str]] = {}
    workers = await master.context.store.queries.workers()
    for worker in workers:
        for uri in worker.capacity.images if worker.capacity else ():
            found.setdefault(uri, []).append(worker.id)
    if not sizes:
        return [ImageView(uri=uri, workers=found[uri]) for uri in sorted(found)]
    by_uri: dict[str, list[Copy]] = {uri: [] for uri in found}
    for copy in await master.images.copies(await master.images.select_workers(None)):
        by_uri.setdefault(copy.uri, []).append(copy)
    pinned_by = await master.images.pinned_by([uri for uri, copies in by_uri.items() if any(c.pinned for c in copies)])
    return [_view(uri, found.get(uri, []), by_uri[uri], pinned_by.get(uri)) for uri in sorted(by_uri)]


@router.get("/copies", responses=responses(503))
async def copies(
    master: TheMaster,
    uri: Annotated[str, Query(max_length=2048), AfterValidator(_uri)],
    worker: Annotated[list[str] | None, Query(max_length=1000, description="may be repeated; default: all")] = None,
) -> list[CopyView]:
    """Ask workers for one image: whether it is in the cache, on its way, failed, or absent."""
    found = await master.images.copies_of(uri, await master.images.select_workers(worker))
    return [_copy_view(copy) for copy in found]


@router.post("", responses={**_CHANGES, 202: {"model": ImageChange, "description": "The workers were asked"}})
async def prefetch(body: Prefetch, master: TheMaster, user: User, response: Response, dry: DryRun) -> ImageChange:
    """Fetch an image before a VM needs it. 202: the workers fetch it in the background."""
    if not dry:
        response.status_code = 202
    return await _ask(master, "prefetch", body, user, dry=dry, pin=body.pin)


@router.post("/cancel", responses=_CHANGES)
async def cancel(body: OneImage, master: TheMaster, user: User, dry: DryRun) -> ImageChange:
    """Stop fetching an image that was ordered before a VM needs it."""
    return await _ask(master, "cancel", body, user, dry=dry)


@router.post("/clean", responses=_CHANGES)
async def clean(body: SomeWorkers, master: TheMaster, user: User, dry: DryRun) -> Cleaning:
    """Remove images that no VM uses and that are not pinned. A dry run asks the workers what they would remove."""
    found = await master.images.clean(await master.images.select_workers(body.workers), user)
    views = [
        CleanedView(
            **asdict(one.answer),
            images=[RemovedImage(**image) for image in one.images],
            size=sum(image["size"] for image in one.images),
        )
        for one in found
    ]
    return Cleaning(dry_run=dry, workers=views)


@router.post("/pin", responses=_CHANGES)
async def pin(body: OneImage, master: TheMaster, user: User, dry: DryRun) -> ImageChange:
    """Keep an image in the caches that have it."""
    return await _ask(master, "pin", body, user, dry=dry)


@router.post("/unpin", responses=_CHANGES)
async def unpin(body: OneImage, master: TheMaster, user: User, dry: DryRun) -> ImageChange:
    """Allow the removal of an image that no VM uses."""
    return await _ask(master, "unpin", body, user, dry=dry)


async def _ask(  # noqa: PLR0913 - what three routes share
    master: Master, verb: Verb, body: OneImage, user: Actor, *, dry: bool, pin: bool = False
) -> ImageChange:
    workers = await master.images.select_workers(body.workers)
    answers = await master.images.ask(verb, body.uri, workers, user, pin=pin)
    return ImageChange(dry_run=dry, uri=body.uri, workers=[AnswerView(**asdict(one)) for one in answers])


def _view(uri: str, workers: list[str], copies: list[Copy], pinned_by: str | None) -> ImageView:
    cached = [copy for copy in copies if copy.state == "cached"]
    return ImageView(
        uri=uri,
        workers=sorted({*workers, *(copy.worker for copy in cached)}),
        size=max((copy.size or 0 for copy in cached), default=None),
        pinned=[copy.worker for copy in cached if copy.pinned],
        pinned_by=pinned_by,
        copies=[_copy_view(copy) for copy in copies],
    )


def _copy_view(copy: Copy) -> CopyView:
    return CopyView(
        worker=copy.worker,
        state=copy.state,
        size=copy.size,
        done=copy.done,
        total=copy.total,
        tries=copy.tries,
        problem=copy.problem,
        pinned=copy.pinned,
        last_used=copy.last_used,
        used_by=list(copy.used_by),
    )
