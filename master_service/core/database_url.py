"""The URL of the database, with the driver that the master uses."""

from __future__ import annotations

from typing import Final

from sqlalchemy import URL, make_url
from sqlalchemy.exc import ArgumentError

_DRIVERS: Final = {"sqlite": "sqlite+aiosqlite", "postgresql": "postgresql+psycopg", "postgres": "postgresql+psycopg"}


def url_of(text: str, password: str | None = None) -> URL:
    """Return the URL of the database with its async driver, for `sqlite:///FILE` or `postgresql://USER@HOST/NAME`.

    Raises ValueError for any other URL.
    """
    try:
        url = make_url(text)
    except ArgumentError as err:
        raise ValueError("it is no URL; give sqlite:////FILE or postgresql://USER@HOST/NAME") from err
    url = url.set(drivername=_DRIVERS.get(url.drivername, url.drivername))
    if url.drivername not in _DRIVERS.values():
        raise ValueError(f"{url.drivername} is not supported; give sqlite:////FILE or postgresql://USER@HOST/NAME")
    return url if password is None else url.set(password=password)
