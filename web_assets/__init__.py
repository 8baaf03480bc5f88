"""Shared by the pages of both services: JavaScript of other projects, the page of the API, and headers.

`devstack` fetches the JavaScript from npm at pinned digests, into folders that git ignores. Its licences lie beside it.
A wheel that is built afterwards contains it.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Final

NOVNC: Final = Path(__file__).parent / "novnc"
"""noVNC: a VNC client that shows a VM's console in the browser."""

SWAGGER_UI: Final = Path(__file__).parent / "swagger_ui"
"""Swagger UI: shows an OpenAPI document, and calls its operations."""

PAGE_HEADERS: Final[Mapping[str, str]] = {
    "Cache-Control": "no-store",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Content-Security-Policy": "default-src 'none'; style-src 'self'; script-src 'self'; "
    "connect-src 'self'; img-src data:; form-action 'none'; frame-ancestors 'none'; base-uri 'none'",
}
"""Headers of each page and its files."""
