"""What all routes share: authentication, errors as problem+json, schemas, ETags, dry runs, idempotency keys."""
