"""The application: its routes, and the master that runs while it is served."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, Final

from fastapi import Depends, FastAPI
from fastapi.routing import APIRoute
from starlette.types import ASGIApp

from http_bounds.guard import Guard
from master_service import __version__
from master_service.api.protocol import auth, errors, hosts, request_id, strict_query
from master_service.api.protocol.audience import Audience
from master_service.api.protocol.client_address import ClientAddress
from master_service.api.routes import (
    audit,
    console,
    disks,
    events,
    health,
    history,
    images,
    metrics,
    notices,
    operations,
    users,
    vm_actions,
    vmachines,
    workers,
)
from master_service.core.settings import Settings
from master_service.saltapi.client import SaltApi
from master_service.services.master import running
from web_assets import api_docs

BODY_BYTES: Final = 512 << 10
"""The largest body. A VM with as many keys as it may have needs nearly as much."""


class _Application(FastAPI):
    def __init__(self, settings: Settings, **options: Any) -> None:
        super().__init__(**options)
        self._settings = settings

    def build_middleware_stack(self) -> ASGIApp:
        """Return the application with its bounds around all of it, so that answers to bugs have their headers too."""
        guarded = Guard(
            Audience(super().build_middleware_stack()),
            refuse=partial(hosts.refusal, names=self._settings.host_names),
            most_body=BODY_BYTES,
            too_large=errors.body_too_large,
        )
        return ClientAddress(request_id.around(guarded), self._settings.trusted_proxies)

    def openapi(self) -> dict[str, Any]:
        """Return the OpenAPI document, built once."""
        if self.openapi_schema is None:
            self.openapi_schema = auth.described(errors.described(super().openapi()))
        return self.openapi_schema


def create_app(settings: Settings, salt: SaltApi | None = None) -> FastAPI:
    """Create the application. Tests pass `salt` instead of the salt-api of the settings."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with running(settings, salt) as master:
            app.state.master = master
            yield

    app = _Application(
        settings,
        title="Saltern master",
        version=__version__,
        summary="Virtual machines on many hypervisor hosts through Salt",
        description="Press **Authorize** and enter a token. Then choose an operation and press **Try it out**. "
        "A program sends the token in the header `Authorization: Bearer TOKEN`.",
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        dependencies=[Depends(auth.permitted), Depends(strict_query.known)],
        generate_unique_id_function=_operation_id,
    )
    api_docs.install(app)
    errors.install(app)
    app.include_router(health.router)
    app.include_router(metrics.router)
    for part in (vmachines, vm_actions, console, disks, history, workers, images, operations, events):
        app.include_router(part.router, prefix=auth.PREFIX)
    app.include_router(console.sockets, prefix=auth.PREFIX)
    app.include_router(console.pages)
    for router in (users.users, users.tokens, users.secret, audit.router):
        app.include_router(router, prefix=auth.PREFIX)
    for router in (notices.router, notices.acks, notices.contacts, notices.secret):
        app.include_router(router, prefix=auth.PREFIX)
    return app


def _operation_id(route: APIRoute) -> str:
    """Return a stable name for generated clients, such as `list_vmachines` or `start_verbs`."""
    tag = str(route.tags[0]) if route.tags else "master"
    return f"{route.name.rstrip('_')}_{tag}"
