"""`/api/v1/images`: list, prefetch, pin and unpin base images in the caches of workers."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Response
from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from master_service.api.protocol.auth import TheMaster, User
from master_service.api.protocol.dry_run import DryRun
from master_service.api.protocol.errors import RESPONSES, responses
from master_service.api.protocol.idempotency import IdempotentRoute
from master_service.api.protocol.schemas import Text
from master_service.policy import validation
from master_service.policy.audit import Actor
from master_service.services.images import Verb
from master_service.services.master import Master

router = APIRouter(prefix="/images", tags=["images"], responses=RESPONSES, route_class=IdempotentRoute)
_CHANGES = {**responses(422, 503)}


def _uri(value: str) -> str:
    if value.startswith("blank:"):
        raise ValueError("a blank disk is created on its worker; give the URI of an image")
    return validation.validate_image_uri(value)


class OneImage(BaseModel):
    """An image, and the workers of the request."""

    model_config = ConfigDict(strict=True, extra="forbid")

    uri: Annotated[str, AfterValidator(_uri)]
    workers: list[Annotated[Text, Field(min_length=1, max_length=255)]] | None = Field(
        None, min_length=1, max_length=1000, description="minion ids; default: all that answer"
    )


class Prefetch(OneImage):
    """An image to fetch before a VM needs it."""

    pin: bool = Field(False, description="whether it stays until it is unpinned")


class ImageView(BaseModel):
    """A base image in the cache of at least one worker."""

    uri: str
    workers: list[str]
    size: int | None = Field(None, description="bytes in the cache; only with `sizes`")
    pinned: list[str] | None = Field(None, description="workers on which it stays; only with `sizes`")


class AnswerView(BaseModel):
    """The answer of one worker."""

    worker: str
    success: bool
    message: str


class ImageChange(BaseModel):
    """The answers of the workers. In a dry run: the workers that would be asked."""

    dry_run: bool
    uri: str
    workers: list[AnswerView]


@router.get("", responses=responses(503))
async def list_(
    master: TheMaster,
    sizes: Annotated[
        bool, Query(description="ask the workers now for sizes and pins; seconds, not milliseconds")
    ] = False,
) -> list[ImageView]:
    """List base images in the caches of workers, by URI, from the last report of each worker."""
    found: dict[str, list[str]] = {}
    workers = await master.context.store.queries.workers()
    for worker in workers:
        for uri in worker.capacity.images if worker.capacity else ():
            found.setdefault(uri, []).append(worker.id)
    known = await master.images.sizes(await master.images.select_workers(None)) if sizes else {}
    return [ImageView(uri=uri, workers=found[uri], **known.get(uri, {})) for uri in sorted(found)]


@router.post("", responses={**_CHANGES, 202: {"model": ImageChange, "description": "The workers were asked"}})
async def prefetch(body: Prefetch, master: TheMaster, user: User, response: Response, dry: DryRun) -> ImageChange:
    """Fetch an image before a VM needs it. 202: the workers fetch it in the background."""
    if not dry:
        response.status_code = 202
    return await _ask(master, "prefetch", body, user, dry=dry, pin=body.pin)


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
    views = [AnswerView(worker=one.worker, success=one.success, message=one.message) for one in answers]
    return ImageChange(dry_run=dry, uri=body.uri, workers=views)
