"""The application: its routes, and the master that runs behind them for as long as it is served."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import Depends, FastAPI
from fastapi.routing import APIRoute

from master_service import __version__
from master_service.api import (
    access,
    audit,
    console,
    docs,
    events,
    health,
    history,
    images,
    metrics,
    notices,
    operations,
    people,
    problems,
    queries,
    request_id,
    verbs,
    vmachines,
    workers,
)
from master_service.master import running
from master_service.salt_api import SaltApi
from master_service.settings import Settings


class _Application(FastAPI):
    def openapi(self) -> dict[str, Any]:
        """The OpenAPI document, made once."""
        if self.openapi_schema is None:
            self.openapi_schema = problems.described(super().openapi())
        return self.openapi_schema


def create_app(settings: Settings, salt: SaltApi | None = None) -> FastAPI:
    """The application. `salt`: in place of the salt-api of the settings, for tests."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with running(settings, salt) as master:
            app.state.master = master
            yield

    app = _Application(
        title="Saltern master",
        version=__version__,
        summary="Virtual machines on many hypervisor hosts through Salt",
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        dependencies=[Depends(access.permitted), Depends(queries.known)],
        generate_unique_id_function=_operation_id,
    )
    docs.install(app)
    problems.install(app)
    request_id.install(app)
    app.include_router(health.router)
    app.include_router(metrics.router)
    for part in (vmachines, verbs, console, history, workers, images, operations, events):
        app.include_router(part.router, prefix=access.PREFIX)
    app.include_router(console.screens, prefix=access.PREFIX)
    app.include_router(console.pages)
    for router in (people.users, people.tokens, people.secret, audit.router):
        app.include_router(router, prefix=access.PREFIX)
    for router in (notices.router, notices.contacts, notices.secret):
        app.include_router(router, prefix=access.PREFIX)
    return app


def _operation_id(route: APIRoute) -> str:
    """`list_vmachines`, `start_verbs`: stable names for generated clients, whatever paths become."""
    tag = str(route.tags[0]) if route.tags else "master"
    return f"{route.name.rstrip('_')}_{tag}"
