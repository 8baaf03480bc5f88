"""The contract's parser of URIs, with the worker's error: a refusal names the URI."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from worker_service.contract import uri as contract_uri
from worker_service.contract.uri import Form, InvalidUri, SaveTarget, Uri, blank_size, place
from worker_service.contract.uri_secrets import shown
from worker_service.core.errors import BadRequest

__all__ = ["Form", "SaveTarget", "Uri", "blank_size", "parse", "place", "save_form"]


def parse(text: str) -> Uri:
    """Return the parts of a URI. Raises BadRequest."""
    with _refused(text):
        return contract_uri.parse(text)


def save_form(uri: Uri) -> Form:
    """Return the form that a target asks for. Raises BadRequest."""
    with _refused(str(uri)):
        return contract_uri.save_form(uri)


@contextmanager
def _refused(text: str) -> Iterator[None]:
    try:
        yield
    except InvalidUri as err:
        raise BadRequest(f"{shown(text)[:80]!r} cannot be used: {err}.") from None
