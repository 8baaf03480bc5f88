"""Shared by all routes: authentication, errors as problem+json, schemas, ETags, dry runs, idempotency keys."""
