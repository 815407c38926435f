"""The application: ``create_app(["digits.msgpack", "models/"])``, a Starlette app to run or mount.

Every route is an ``Endpoint`` around a function from a request to a response; it alone knows about
request ids, errors and counting. What differs between protocols is in files of their own.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import itertools
import logging
import os
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import orjson
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route
from starlette.types import Receive, Scope, Send

from . import auth, bodies, logs
from .batching import Request as Job
from .errors import Disconnected, ServeError
from .metrics import LEFT, Metrics
from .models import Catalog, Version
from .settings import Settings

if TYPE_CHECKING:
    from .together import Together

__all__ = ["Endpoint", "Server", "create_app", "json_response", "requested"]

log = logging.getLogger("tinygrad_ish.serve")
Handler = Callable[["Server", Request], Awaitable[Response]]
_ID = re.compile(rb"[\x21-\x7e]{1,128}")


class Server:
    """What the routes share: ``app.state.server``."""

    def __init__(self, catalog: Catalog, settings: Settings, metrics: Metrics) -> None:
        self.catalog = catalog
        self.settings = settings
        self.metrics = metrics
        self.leaving = False  # asked to stop: not ready, and still at work
        self.draining = False  # takes no new work
        self.together: Together | None = None  # with other workers
        self.keys = auth.Keys(settings.keys) if settings.keys else None
        self.access = logs.AccessLog() if settings.access_log else None
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
        now = loop.time()
        job = Job(inputs, rows, now + limit, _left(request))
        outputs = await version.batcher.submit(job)
        self.metrics.queued(version.name, job.started - now)
        return outputs

    def timeout(self, request: Request) -> float:
        """Seconds that the request may take to be read out of its body, and then to be answered:
        the header Timeout-Ms, up to the setting."""
        given = bodies.header(request, b"timeout-ms")
        if not given:
            return self.settings.timeout
        try:
            seconds = float(given) / 1e3
            if seconds >= 0:  # not NaN
                return min(seconds, self.settings.timeout)
            raise ValueError
        except ValueError:
            raise ServeError(
                "bad_request", "Timeout-Ms: expected a number from 0 on", got=given[:50]
            ) from None


def _left(request: Request) -> Callable[[], Awaitable[None]]:
    async def disconnected() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    return disconnected


class Endpoint:
    """An ASGI application around a handler: ids, keys, errors, counting."""

    def __init__(self, handler: Handler, name: str) -> None:
        self.handler = handler
        self.name = name
        self.needs = auth.scope_of(name)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        start = time.perf_counter()
        request = Request(scope, receive, send)
        server: Server = scope["app"].state.server
        ident = identify(server, scope)
        if not server.catalog.started:
            server.catalog.begin()
        try:
            if server.keys is not None and self.needs is not None:
                server.keys.check(scope["headers"], self.needs)
            response = await self.handler(server, request)
        except ServeError as error:
            response = error_response(error, ident)
        except Disconnected:
            finish(server, scope, self.name, LEFT, start)
            return
        except Exception:
            log.exception("%s failed", self.name, extra={"request_id": ident})
            response = error_response(ServeError("model_failed", "an error in the server"), ident)
        response.raw_headers.append((b"x-request-id", ident.encode("ascii")))
        finish(server, scope, self.name, response.status_code, start)
        await response(scope, receive, send)


def identify(server: Server, scope: Scope) -> str:
    """The id of a request: the client's, its trace's, or a new one."""
    state = scope.setdefault("state", {})
    ident = trace = None
    for name, value in scope["headers"]:
        if name == b"x-request-id" and _ID.fullmatch(value):
            ident = value.decode("ascii")
        elif name == b"traceparent":
            state["trace_id"] = trace = logs.trace_of(value)
    state["request_id"] = ident = ident or trace or server.new_id()
    return ident


def finish(server: Server, scope: Scope, route: str, status: int, start: float) -> None:
    """Count an answer, and log it where that is asked for."""
    seconds = time.perf_counter() - start
    model = scope["state"].get("model")
    if model is None:
        name = scope.get("path_params", {}).get("name")
        model = name if name in server.catalog.models else ""
    server.metrics.answered(route, model, status, seconds)
    if server.access is not None:
        server.access.add(scope, route, status, seconds)


def error_response(error: ServeError, ident: str | None = None) -> Response:
    """An error as an answer."""
    if error.__cause__ is not None:
        log.error("%s", error, exc_info=error.__cause__, extra={"request_id": ident})
    return Response(error.json(ident), error.status, error.headers, "application/json")


def json_response(content: Any, status: int = 200) -> Response:
    """Anything as JSON."""
    return Response(orjson.dumps(content), status, media_type="application/json")


# --- routes ------------------------------------------------------------------------------------


async def predict(server: Server, request: Request) -> Response:
    """The model's answer to the inputs in the body."""
    version = await requested(server, request)
    assert version.program is not None
    program = version.program
    accept = bodies.header(request, b"accept")
    kind = bodies.accepted(accept)
    inputs = await bodies.inputs_from(server, request, program)
    outputs = bodies.outputs_by_name(program, await server.run(request, version, inputs))
    document: dict[str, Any] = {"model": version.name, "version": version.number}
    if program.labels is not None and kind != bodies.RAW:
        document["predictions"] = program.best(next(iter(outputs.values())))
    return Response(bodies.encode(document, outputs, kind, bodies.nulls(accept)), media_type=kind)


async def requested(server: Server, request: Request) -> Version:
    """The version that the path names, loaded. Raises ServeError."""
    if server.draining:
        raise ServeError("not_ready", "the server is shutting down")
    given = request.path_params
    version = await server.catalog.loaded(given.get("name"), given.get("number"))
    request.scope["state"]["model"] = version.name
    assert version.batcher is not None
    version.batcher.check_open(asyncio.get_running_loop().time() + server.timeout(request))
    return version


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
    if server.leaving or not server.catalog.ready:
        raise ServeError("not_ready", "shutting down" if server.leaving else "models are loading")
    return json_response({"ready": True})


async def metrics(server: Server, request: Request) -> Response:
    """The counts, for Prometheus."""
    loop = asyncio.get_running_loop()
    await loop.run_in_executor(None, importlib.import_module, "prometheus_client")
    server.metrics.measure(server.catalog)
    text, kind = server.metrics.expose(server.catalog, request.headers.get("accept", ""))
    return Response(text, headers={"Content-Type": kind})


async def refused(request: Request, error: Exception) -> Response:
    """Paths and methods that there are none of, in the shape of all errors."""
    assert isinstance(error, HTTPException)
    server: Server = request.app.state.server
    start, ident = time.perf_counter(), identify(server, request.scope)
    code = {405: "method_not_allowed", 404: "not_found"}.get(error.status_code, "bad_request")
    headers = dict(error.headers or {})
    response = error_response(ServeError(code, error.detail, headers=headers), ident)
    response.headers["x-request-id"] = ident
    finish(server, request.scope, "none", response.status_code, start)
    return response


def routes() -> list[BaseRoute]:
    """Paths and what answers them."""
    found: list[tuple[str, str, Handler]] = [
        ("POST", "/predict", predict),
        ("POST", "/models/{name}/predict", predict),
        ("POST", "/models/{name}/versions/{number}/predict", predict),
        ("GET", "/models", models),
        ("GET", "/healthz", healthz),
        ("GET", "/readyz", readyz),
        ("GET", "/metrics", metrics),
    ]
    from . import explain, openapi, page, tfs, v2  # they import this module

    own = [
        Route(path, Endpoint(handler, path), methods=[method]) for method, path, handler in found
    ]
    others = [m.routes() for m in (explain, openapi, page, v2, tfs)]
    every = [*own, *itertools.chain(*others)]
    # They are tried in their order, a microsecond each: first what a server is for.
    return sorted(every, key=lambda r: not getattr(r, "path", "").endswith(("predict", "infer")))


def create_app(
    sources: Iterable[str | os.PathLike[str]] | str | os.PathLike[str],
    settings: Settings | None = None,
    *,
    device: Any = None,
    extra_routes: Sequence[BaseRoute] = (),
    counts: Metrics | None = None,
) -> Starlette:
    """The application around programs in files and model folders. A model that cannot be loaded is
    listed with the reason, and /readyz says no. ``counts`` are those shared with other processes.

    Raises SettingsError for a file of keys that cannot be read.
    """
    settings = settings or Settings()
    counts = counts or Metrics()

    def observe(version: Version, rows: int, requests: int, seconds: float) -> None:
        counts.ran(version.name, rows, requests, seconds)

    sources = [sources] if isinstance(sources, (str, os.PathLike)) else list(sources)
    server = Server(Catalog(sources, settings, observe, device), settings, counts)

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        await server.catalog.start()
        following = None
        if server.together is not None:
            await server.together.follow()  # before it serves
            following = asyncio.get_running_loop().create_task(server.together.run())
        try:
            yield
        finally:
            server.leaving = server.draining = True
            if following is not None:
                following.cancel()
            await server.catalog.close()

    app = Starlette(
        routes=[*routes(), *extra_routes],
        lifespan=lifespan,
        middleware=auth.cross_origin(settings),
        exception_handlers={HTTPException: refused},
    )
    app.router.redirect_slashes = False
    app.state.server = server
    return app
