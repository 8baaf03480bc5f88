"""The contract's parser of URIs, with the worker's error: a refusal names the URI."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import PurePosixPath
from typing import Final
from urllib.parse import quote

import msgspec

from worker_service.contract import uri as contract_uri
from worker_service.contract.uri import Form, InvalidUri, SaveTarget, Uri, blank_size, place
from worker_service.contract.uri_secrets import shown
from worker_service.core.errors import BadRequest

__all__ = [
    "MANIFEST_SUFFIX",
    "Form",
    "SaveTarget",
    "Uri",
    "beside",
    "blank_size",
    "manifest_place",
    "parse",
    "place",
    "save_form",
]


def parse(text: str) -> Uri:
    """Return the parts of a URI. Raises BadRequest."""
    with _refused(text):
        return contract_uri.parse(text)


MANIFEST_SUFFIX: Final = ".manifest.json"


def manifest_place(uri: Uri) -> Uri:
    """Return the place of the manifest of a saved image."""
    here = place(uri)
    return msgspec.structs.replace(here, text=here.text + MANIFEST_SUFFIX, path=here.path + MANIFEST_SUFFIX)


def beside(uri: Uri, key: str, sha256: str) -> Uri:
    """Return a place beside one whose file must stay. Each try to save the same bytes gets the same place."""
    path = PurePosixPath(uri.path)
    name = f"{path.stem}.conflict-{key[:8]}-{sha256[:12]}{path.suffix}"
    text = uri.text.rpartition("/")[0] + "/" + quote(name)
    return msgspec.structs.replace(uri, text=text, path=str(path.with_name(name)))


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
