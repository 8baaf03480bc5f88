"""The master's HTTP interface, under `/api/v1`: FastAPI, bearer token, problem+json. `create_app` makes it."""

from __future__ import annotations

from master_service.api.app import create_app

__all__ = ["create_app"]
