"""The page at ``/``: its files, sent as they are, and the figures that it shows.

``page/`` holds HTML, CSS and JavaScript as written by hand. They load nothing from elsewhere, and
the Content-Security-Policy forbids it; what they ask is the API of this server.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from .app import Endpoint, Server, json_response
from .errors import ServeError

__all__ = ["HEADERS", "routes"]

TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",  # asked each time, and answered 304
}


class File(NamedTuple):
    """A file as it is sent."""

    content: bytes
    media_type: str
    etag: str


def _read(folder: Path) -> Mapping[str, File]:
    found = {}
    for path in sorted(folder.iterdir()):
        if path.suffix in TYPES:
            content = path.read_bytes()
            etag = f'"{hashlib.sha256(content).hexdigest()[:16]}"'
            found[path.name] = File(content, TYPES[path.suffix], etag)
    return MappingProxyType(found)


FILES = _read(Path(__file__).parent / "page")


async def page(server: Server, request: Request) -> Response:
    """A file of the page; index.html where none is named."""
    name = request.path_params.get("file", "index.html")
    file = FILES.get(name)
    if file is None:
        raise ServeError("not_found", "the page has no such file", expected=list(FILES))
    headers = {**HEADERS, "ETag": file.etag}
    if file.etag in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers=headers)
    return Response(file.content, headers=headers, media_type=file.media_type)


async def stats(server: Server, request: Request) -> Response:
    """What the page's charts show: the figures of the last seconds."""
    server.metrics.measure(server.catalog)
    return json_response(server.metrics.stats())


def routes() -> list[BaseRoute]:
    """/, the files it loads, and the figures it shows."""
    found = (("/", page), ("/page/{file}", page), ("/stats", stats))
    return [Route(path, Endpoint(handler, path), methods=["GET"]) for path, handler in found]
