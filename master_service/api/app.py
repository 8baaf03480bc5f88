"""The application: its routes, and the master that runs behind them for as long as it is served."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI

from master_service import __version__
from master_service.api import events, health, problems, vmachines, workers
from master_service.master import running
from master_service.salt_api import SaltApi
from master_service.settings import Settings


def create_app(settings: Settings, salt: SaltApi | None = None) -> FastAPI:
    """The application. `salt`: in place of the salt-api of the settings, for tests."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with running(settings, salt) as master:
            app.state.master = master
            yield

    app = FastAPI(
        title="Saltern master",
        version=__version__,
        summary="Virtual machines on many hypervisor hosts through Salt",
        lifespan=lifespan,
    )
    problems.install(app)
    app.include_router(health.router)
    for part in (vmachines, workers, events):
        app.include_router(part.router, prefix="/api/v1")
    return app
