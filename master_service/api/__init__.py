"""The master's HTTP API under `/api/v1`: FastAPI, bearer tokens, problem+json. `create_app` creates it."""

from __future__ import annotations

from master_service.api.app import create_app

__all__ = ["create_app"]
