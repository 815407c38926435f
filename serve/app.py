"""The application: ``create_app(["digits.msgpack", "models/"])``, a Starlette app to run or mount.

Every route is an ``Endpoint`` around a function from a request to a response; it alone knows about
request ids, errors and counting. What differs between protocols is in files of their own.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import os
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from typing import Any

import orjson
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route
from starlette.types import Receive, Scope, Send

from . import bodies
from .batching import Request as Job
from .errors import ServeError
from .metrics import Metrics
from .models import Catalog, Version
from .settings import Settings

__all__ = ["Endpoint", "Server", "create_app", "json_response", "requested"]

log = logging.getLogger("tinygrad_ish.serve")
Handler = Callable[["Server", Request], Awaitable[Response]]
_ID = re.compile(r"[\x21-\x7e]{1,128}")


class Server:
    """What the routes share: ``app.state.server``."""

    def __init__(self, catalog: Catalog, settings: Settings, metrics: Metrics) -> None:
        self.catalog = catalog
        self.settings = settings
        self.metrics = metrics
        self.draining = False
        self._ids = itertools.count()
        self._prefix = os.urandom(4).hex()

    def new_id(self) -> str:
        """An id for a request that came without."""
        return f"{self._prefix}-{next(self._ids):x}"

    async def run(
        self,
        request: Request,
        version: Version,
        inputs: list[Any],
        seconds: float | None = None,
    ) -> tuple[Any, ...]:
        """The outputs of a model for checked inputs, grouped with other requests; in so many
        ``seconds``, where the request's body says so."""
        assert version.batcher is not None and version.program is not None
        loop = asyncio.get_running_loop()
        batched = version.program.inputs[0].shape[:1] == (None,)
        rows = len(inputs[0]) if batched else 1
        limit = self.timeout(request)
        limit = limit if seconds is None else min(limit, seconds)
        job = Job(inputs, rows, loop.time() + limit, _left(request))
        return await version.batcher.submit(job)

    def timeout(self, request: Request) -> float:
        """Seconds that the request may take: the header Timeout-Ms, up to the setting."""
        given = request.headers.get("timeout-ms")
        if given is None:
            return self.settings.timeout
        try:
            return min(max(float(given), 0.0) / 1e3, self.settings.timeout)
        except ValueError:
            raise ServeError("bad_request", "Timeout-Ms: expected a number", got=given) from None


def _left(request: Request) -> Callable[[], Awaitable[None]]:
    async def disconnected() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    return disconnected


class Endpoint:
    """An ASGI application around a handler: ids, errors, counting."""

    def __init__(self, handler: Handler, name: str) -> None:
        self.handler = handler
        self.name = name

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        start = time.perf_counter()
        request = Request(scope, receive, send)
        server: Server = scope["app"].state.server
        given = request.headers.get("x-request-id", "")
        scope["state"]["request_id"] = ident = given if _ID.fullmatch(given) else server.new_id()
        try:
            response = await self.handler(server, request)
        except ServeError as error:
            response = error_response(error, ident)
        except asyncio.CancelledError:
            return  # the client has left: nobody reads an answer
        except Exception:
            log.exception("request %s to %s failed", ident, self.name)
            response = error_response(ServeError("model_failed", "an error in the server"), ident)
        response.raw_headers.append((b"x-request-id", ident.encode("ascii")))
        model = scope["path_params"].get("name") or ""
        server.metrics.answered(self.name, model, response.status_code, time.perf_counter() - start)
        await response(scope, receive, send)


def error_response(error: ServeError, ident: str | None = None) -> Response:
    """An error as an answer."""
    if error.__cause__ is not None:
        log.error("%s", error, exc_info=error.__cause__)
    return Response(
        orjson.dumps(error.body(ident), default=str),
        error.status,
        error.headers,
        "application/json",
    )


def json_response(content: Any, status: int = 200) -> Response:
    """Anything as JSON."""
    return Response(orjson.dumps(content), status, media_type="application/json")


# --- routes ------------------------------------------------------------------------------------


async def predict(server: Server, request: Request) -> Response:
    """The model's answer to the inputs in the body."""
    version = await requested(server, request)
    assert version.program is not None
    program = version.program
    kind = bodies.accepted(request.headers.get("accept", ""))
    body = await bodies.read_body(request, server.settings)
    content_type = request.headers.get("content-type", "")
    inputs = bodies.inputs_of(program, body, content_type, server.settings)
    outputs = bodies.outputs_by_name(program, await server.run(request, version, inputs))
    document: dict[str, Any] = {"model": version.name, "version": version.number}
    if program.labels is not None and kind != bodies.RAW:
        document["predictions"] = program.best(next(iter(outputs.values())))
    return Response(bodies.encode(document, outputs, kind), media_type=kind)


async def requested(server: Server, request: Request) -> Version:
    """The version that the path names, loaded. Raises ServeError."""
    if server.draining:
        raise ServeError("not_ready", "the server is shutting down")
    given = request.path_params
    return await server.catalog.loaded(given.get("name"), given.get("number"))


async def models(server: Server, request: Request) -> Response:
    """All models and their versions."""
    catalog = server.catalog
    return json_response({
        "default": catalog.default,
        "models": [
            {"name": name, "versions": [v.describe() for v in versions.values()]}
            for name, versions in catalog.models.items()
        ],
    })  # fmt: skip


async def healthz(server: Server, request: Request) -> Response:
    """Whether the process answers."""
    return json_response({"live": True})


async def readyz(server: Server, request: Request) -> Response:
    """Whether it takes requests: every model is loaded, and nobody has asked it to stop."""
    if server.draining or not server.catalog.ready:
        raise ServeError("not_ready", "shutting down" if server.draining else "models are loading")
    return json_response({"ready": True})


def routes() -> list[BaseRoute]:
    """Paths and what answers them."""
    found: list[tuple[str, str, Handler]] = [
        ("POST", "/predict", predict),
        ("POST", "/models/{name}/predict", predict),
        ("POST", "/models/{name}/versions/{number}/predict", predict),
        ("GET", "/models", models),
        ("GET", "/healthz", healthz),
        ("GET", "/readyz", readyz),
    ]
    from . import tfs, v2  # they import this module

    own = [Route(path, Endpoint(handler, path), methods=[method]) for method, path, handler in found]
    return [*own, *v2.routes(), *tfs.routes()]


def create_app(
    sources: Iterable[str | os.PathLike[str]] | str | os.PathLike[str],
    settings: Settings | None = None,
    *,
    device: Any = None,
    extra_routes: Sequence[BaseRoute] = (),
) -> Starlette:
    """The application around programs in files and model folders. Raises nothing: a model that
    cannot be loaded is listed with the reason, and /readyz says no."""
    settings = settings or Settings()
    metrics = Metrics()

    def observe(version: Version, rows: int, requests: int, seconds: float) -> None:
        metrics.ran(version.name, rows, requests, seconds)

    sources = [sources] if isinstance(sources, (str, os.PathLike)) else list(sources)
    server = Server(Catalog(sources, settings, observe, device), settings, metrics)

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        await server.catalog.start()
        try:
            yield
        finally:
            server.draining = True
            await server.catalog.close()

    app = Starlette(routes=[*routes(), *extra_routes], lifespan=lifespan)
    app.state.server = server
    return app
