"""The description of all routes, at ``/openapi.json``: OpenAPI 3.1, with what each loaded model
takes. The table OPERATIONS says what is true of each route; a test asks the server whether it is.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

import tinygrad_ish
from tinygrad_ish.deploy.runtime import Signature

from . import bodies
from .app import Endpoint, Server, json_response
from .errors import CODES
from .models import Version

__all__ = ["OPERATIONS", "describe", "routes"]

Schema = dict[str, Any]
NONE: Mapping[str, Any] = MappingProxyType({})

BINARY: Schema = {"type": "string", "format": "binary"}
ANYTHING: Schema = {}
STRING: Schema = {"type": "string"}
NUMBER: Schema = {"type": "number"}


def _object(required: Mapping[str, Schema], optional: Mapping[str, Schema] = NONE) -> Schema:
    return {
        "type": "object",
        "properties": {**required, **optional},
        "required": list(required),
    }


def _array(items: Schema) -> Schema:
    return {"type": "array", "items": items}


# --- what is said and answered -------------------------------------------------------------------

SIGNATURES = _array(
    _object({"name": STRING, "dtype": STRING, "shape": _array({"type": "integer"})})
)
VERSION = _object(
    {"version": STRING, "state": {"enum": ["available", "loading", "ready", "failed"]}},
    {
        "reason": STRING, "inputs": SIGNATURES, "outputs": SIGNATURES, "metadata": _object({}),
        "labels": {"type": ["array", "null"], "items": STRING},
        "features": {"type": ["array", "null"], "items": STRING},
        "explains": {"type": "boolean"}, "grouped": {"type": "boolean"},
        "nbytes": {"type": "integer"},
    },
)  # fmt: skip
MODELS = _object(
    {
        "default": {"type": ["string", "null"]},
        "models": _array(_object({"name": STRING, "versions": _array(VERSION)})),
    }
)
BEST: Schema = {**_array({"type": ["string", "number"]}), "minItems": 2, "maxItems": 2}
PREDICTION = _object(
    {"model": STRING, "version": STRING, "outputs": _object({})},
    {"predictions": _array(_array(BEST))},
)
EXPLANATION = _object(
    {"model": STRING, "version": STRING, "method": STRING, "target": _array({"type": "integer"}),
     "attributions": _object({})},
    {"labels": _array(STRING), "steps": {"type": "integer"},
     "completeness": {"type": ["array", "null"], "items": _object(
         {"sum": NUMBER, "score_difference": NUMBER, "gap": NUMBER})}},
)  # fmt: skip
OPTIONS: dict[str, Schema] = {
    "method": {"enum": ["integrated_gradients", "gradient"]},
    "target": {"description": "A class, by number or label; or one for each row."},
    "steps": {"type": "integer", "minimum": 1, "maximum": 512},
    "baseline": {"description": "prepared, input, or inputs to begin at."},
}
DATATYPE = {"enum": ["BOOL", "UINT8", "INT8", "INT16", "INT32", "INT64", "FP16", "FP32", "FP64"]}
SIZE: Schema = {"type": "integer", "minimum": 0}
SIZES = _array(SIZE)
TENSOR = _object(
    {"name": STRING, "datatype": DATATYPE, "shape": SIZES},
    {
        "data": {"type": "array"},
        "parameters": _object({}, {"binary_data_size": {"type": "integer"}}),
    },
)
INFER = _object(
    {"inputs": _array(TENSOR)},
    {
        "id": {"type": ["string", "null"]},
        "parameters": {"type": ["object", "null"]},
        "outputs": {
            "type": ["array", "null"],
            "items": _object({"name": STRING}, {"parameters": {"type": ["object", "null"]}}),
        },
    },
)
INFERRED = _object(
    {"model_name": STRING, "model_version": STRING,
     "outputs": _array(_object(
         {"name": STRING, "datatype": {"enum": [*DATATYPE["enum"], "BYTES"]}, "shape": SIZES},
         {"data": {"type": "array"}, "parameters": _object({})}))},
    {"id": STRING},
)  # fmt: skip
DESCRIBED = _array(
    _object({"name": STRING, "datatype": DATATYPE, "shape": _array({"type": "integer"})})
)
METADATA = _object(
    {"name": STRING, "versions": _array(STRING), "platform": STRING, "inputs": DESCRIBED,
     "outputs": DESCRIBED}
)  # fmt: skip
INDEX = _array(_object({"name": STRING, "version": STRING, "state": STRING, "reason": STRING}))
LOADED = _object({"name": STRING, "state": {"enum": ["READY", "UNAVAILABLE"]}})
ROWS = {
    "type": "object",
    "properties": {"instances": {"type": "array", "minItems": 1}, "signature_name": STRING},
    "oneOf": [{"required": ["instances"]}, {"required": ["inputs"]}],
}
ROWS_ANSWER = {
    "type": "object",
    "properties": {"predictions": {"type": "array"}},
    "oneOf": [{"required": ["predictions"]}, {"required": ["outputs"]}],
}
EXAMPLES = _object({"examples": _array({"type": "object"})}, {"context": {"type": "object"}})
RESULTS = _object({"results": {"type": "array"}})
STATUS = _object(
    {"model_version_status": _array(_object({"version": STRING, "state": STRING, "status": _object(
        {"error_code": STRING, "error_message": STRING})}))}
)  # fmt: skip
FIGURES = {name: {"type": ["number", "null"]} for name in ("p50_ms", "p99_ms")}
COUNTS = {
    "requests": {"type": "integer"},
    "requests_per_second": NUMBER,
    "statuses": {"type": "object", "additionalProperties": {"type": "integer"}},
    **FIGURES,
}
STATS = _object(
    {
        "uptime": NUMBER, "seconds": NUMBER, "connections": {"type": "integer"}, **COUNTS,
        "models": {"type": "object", "additionalProperties": _object({
            **COUNTS,
            **{f"{part}_{name}": schema for part in ("queue", "compute")
               for name, schema in FIGURES.items()},
            "batches_per_second": NUMBER, "rows_per_second": NUMBER, "queue": {"type": "integer"},
            "batch_sizes": _array(_array({"type": "integer"})),
        })},
    }
)  # fmt: skip


# --- the routes ----------------------------------------------------------------------------------

MODEL = ("model_not_found", "not_ready")
BODY = ("bad_request", "request_timeout", "too_large", "unsupported_media_type")
RUN = (*MODEL, *BODY, "bad_input", "not_acceptable", "overloaded", "model_failed", "deadline")
ALL_FORMATS = (bodies.JSON, bodies.MSGPACK, bodies.RAW)
INPUTS = "inputs"  # stands for the schemas of the loaded models' inputs


class Operation(NamedTuple):
    """What is true of a route. ``takes`` and ``gives`` are schemas by media type."""

    summary: str
    tag: str
    gives: dict[str, Any]
    takes: Mapping[str, Any] = NONE
    codes: tuple[str, ...] = ()
    query: Mapping[str, Schema] = NONE
    empty: bool = False  # the body may be left out
    unchanged: bool = False  # 304 for what the client has


def _json(schema: Schema) -> dict[str, Any]:
    return {bodies.JSON: schema}


def _formats(schema: Schema) -> dict[str, Any]:
    return {bodies.JSON: schema, bodies.MSGPACK: BINARY, bodies.RAW: BINARY}


TAKEN = {
    bodies.JSON: INPUTS, bodies.MSGPACK: BINARY, bodies.RAW: BINARY, "image/png": BINARY,
    "image/jpeg": BINARY, "text/csv": STRING,
}  # fmt: skip
PAGE = dict.fromkeys(("text/html", "text/css", "text/javascript", "image/svg+xml"), STRING)

PREDICT = Operation("Answer", "predict", _formats(PREDICTION), TAKEN, RUN)
EXPLAIN = Operation(
    "Say how much each input number did for the answer", "explain", _formats(EXPLANATION), TAKEN,
    (*RUN, "not_explainable"), OPTIONS,
)  # fmt: skip
V1, V2, OPERATE = "TensorFlow Serving", "Open Inference Protocol v2", "operate"
LABELS = ("model_not_found", *BODY)

# (method, path without /versions/{number})
OPERATIONS: dict[tuple[str, str], Operation] = {
    ("POST", "/predict"): PREDICT,
    ("POST", "/models/{name}/predict"): PREDICT,
    ("POST", "/explain"): EXPLAIN,
    ("POST", "/models/{name}/explain"): EXPLAIN,
    ("GET", "/models"): Operation("All models and versions", "models", _json(MODELS)),
    ("GET", "/healthz"): Operation(
        "Whether the process answers", OPERATE, _json(_object({"live": {"const": True}}))
    ),
    ("GET", "/readyz"): Operation(
        "Whether it takes requests", OPERATE, _json(_object({"ready": {"const": True}})),
        codes=("not_ready",),
    ),
    ("GET", "/metrics"): Operation(
        "Counts for Prometheus", OPERATE,
        {"text/plain": STRING, "application/openmetrics-text": STRING},
    ),
    ("GET", "/stats"): Operation("Figures of the last seconds", OPERATE, _json(STATS)),
    ("GET", "/openapi.json"): Operation("This document", OPERATE, _json({"type": "object"})),
    ("GET", "/"): Operation("A page to try the models", "page", PAGE, unchanged=True),
    ("GET", "/page/{file}"): Operation(
        "A file of the page", "page", PAGE, codes=("not_found",), unchanged=True
    ),
    ("POST", "/v2/models/{name}/infer"): Operation(
        "Answer", V2, {bodies.JSON: INFERRED, bodies.RAW: BINARY},
        {bodies.JSON: INFER, bodies.RAW: BINARY}, RUN,
    ),
    ("GET", "/v2"): Operation(
        "About the server", V2,
        _json(_object({"name": STRING, "version": STRING, "extensions": _array(STRING)})),
    ),
    ("GET", "/v2/health/live"): Operation(
        "Whether the process answers", V2, _json(_object({"live": {"const": True}}))
    ),
    ("GET", "/v2/health/ready"): Operation(
        "Whether it takes requests", V2, _json(_object({"ready": {"const": True}})),
        codes=("not_ready",),
    ),
    ("GET", "/v2/models/{name}"): Operation(
        "What a model takes and gives", V2, _json(METADATA), codes=MODEL
    ),
    ("GET", "/v2/models/{name}/ready"): Operation(
        "Whether a model answers", V2,
        _json(_object({"name": STRING, "ready": {"const": True}})), codes=MODEL,
    ),
    ("POST", "/v2/repository/index"): Operation(
        "All models and versions", V2, _json(INDEX),
        _json(_object({}, {"ready": {"type": "boolean"}})), BODY, empty=True,
    ),
    ("POST", "/v2/repository/models/{name}/load"): Operation(
        "Load a model", V2, _json(LOADED), _json({"type": "object"}),
        (*MODEL, *BODY, "forbidden", "conflict"), empty=True,
    ),
    ("POST", "/v2/repository/models/{name}/unload"): Operation(
        "Unload a model", V2, _json(LOADED), _json({"type": "object"}),
        (*MODEL, *BODY, "forbidden", "conflict"), empty=True,
    ),
    ("POST", "/v1/models/{name}:predict"): Operation(
        "Answer rows, or columns", V1, _json(ROWS_ANSWER), _json(ROWS), RUN
    ),
    ("POST", "/v1/models/{name}:classify"): Operation(
        "Classes of examples", V1, _json(RESULTS), _json(EXAMPLES), RUN
    ),
    ("POST", "/v1/models/{name}:regress"): Operation(
        "A number for each example", V1, _json(RESULTS), _json(EXAMPLES), RUN
    ),
    **{
        ("POST", f"/v1/models/{{name}}/labels/{{label}}:{verb}"): Operation(
            "Versions have no labels here: never found", V1, {}, _json({"type": "object"}), LABELS
        )
        for verb in ("predict", "classify", "regress")
    },
    ("GET", "/v1/models/{name}"): Operation(
        "The state of a model's versions", V1, _json(STATUS), codes=MODEL
    ),
    ("GET", "/v1/models/{name}/metadata"): Operation(
        "What a model takes and gives", V1, _json({"type": "object"}), codes=MODEL
    ),
}  # fmt: skip


# --- the document --------------------------------------------------------------------------------


def describe(routes: list[BaseRoute], server: Server, url: str = "/") -> dict[str, Any]:
    """The document, of these routes and the models that are loaded now."""
    loaded = {
        name: version
        for name, versions in server.catalog.models.items()
        for version in versions.values()
        if version.program is not None
    }
    paths: dict[str, Any] = {}
    for route in routes:
        if isinstance(route, Route) and isinstance(route.endpoint, Endpoint):
            for method in sorted((route.methods or set()) - {"HEAD"}):
                found = OPERATIONS.get((method, route.path.replace("/versions/{number}", "")))
                if found is not None:
                    needs = route.endpoint.needs if server.keys is not None else None
                    about = _operation(found, route.path, loaded, needs)
                    paths.setdefault(route.path, {})[method.lower()] = about
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "tinygrad_ish",
            "version": tinygrad_ish.__version__,
            "description": "Models behind HTTP. All errors have one shape, with a stable code.",
        },
        "servers": [{"url": url}],
        "paths": paths,
        "components": {
            "schemas": {
                "Error": _object(
                    {"error": STRING, "code": {"enum": list(CODES)}},
                    {"expected": ANYTHING, "got": ANYTHING, "request_id": STRING},
                ),
                **{_component(name): _inputs(version) for name, version in loaded.items()},
            },
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "key": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
            },
        },
    }


def _operation(
    operation: Operation, path: str, loaded: dict[str, Version], needs: str | None
) -> dict[str, Any]:
    codes = [*operation.codes, *(("unauthorized", "forbidden") if needs else ())]
    responses: dict[str, Any] = {}
    if operation.gives:
        responses["200"] = {
            "description": "The answer.",
            "headers": {"X-Request-Id": {"schema": STRING}},
            "content": {kind: {"schema": schema} for kind, schema in operation.gives.items()},
        }
    if operation.unchanged:
        responses["304"] = {"description": "The client has it."}
    for status in sorted({CODES[code][0] for code in codes}):
        meanings = {f"{c}: {CODES[c][1]}" for c in codes if CODES[c][0] == status}
        responses[str(status)] = {
            "description": " ".join(sorted(meanings)),
            "content": _json({"schema": {"$ref": "#/components/schemas/Error"}}),
        }
    about: dict[str, Any] = {
        "summary": operation.summary,
        "tags": [operation.tag],
        "parameters": _parameters(operation, path, loaded),
        "responses": responses,
    }
    if operation.takes:
        about["requestBody"] = {
            "required": not operation.empty,
            "content": {
                kind: {"schema": _taken(operation, schema, loaded)}
                for kind, schema in operation.takes.items()
            },
        }
    if needs:
        about["security"] = [{"bearer": []}, {"key": []}]
        about["description"] = f"The key must have the scope {needs}."
    return about


def _taken(operation: Operation, schema: Any, loaded: dict[str, Version]) -> Schema:
    if schema is not INPUTS:
        found: Schema = schema
        return found
    inputs = [{"$ref": f"#/components/schemas/{_component(name)}"} for name in loaded]
    return {
        **_object({"inputs": ANYTHING}, operation.query),
        **({"anyOf": inputs} if inputs else {}),
    }


def _parameters(operation: Operation, path: str, loaded: dict[str, Version]) -> list[Any]:
    def one(name: str, where: str, schema: Schema, about: str = "") -> dict[str, Any]:
        told = {"description": about} if about else {}
        return {"name": name, "in": where, "required": where == "path", "schema": schema, **told}

    known: dict[str, Schema] = {}
    if loaded:
        known["name"] = {"enum": sorted(loaded)}
        known["number"] = {"enum": sorted({v.number for v in loaded.values()})}
    found = [one(n, "path", known.get(n, STRING)) for n in re.findall(r"{(\w+)}", path)]
    found += [one(name, "query", STRING) for name in operation.query]
    found.append(one("X-Request-Id", "header", STRING, "Comes back, and stands in the logs."))
    if "deadline" in operation.codes:
        found.append(
            one("Timeout-Ms", "header", {**NUMBER, "minimum": 0}, "How long an answer is of use.")
        )
    return found


def _component(model: str) -> str:
    """A name that OpenAPI allows for the inputs of a model."""
    return "Inputs." + re.sub(r"[^A-Za-z0-9._-]", "_", model)


def _inputs(version: Version) -> Schema:
    """The body that asks a model: rows of its one input, or all inputs by name."""
    assert version.program is not None
    by_name = {s.name: _tensor(s) for s in version.program.inputs}
    whole: Schema = _object(by_name)
    if len(by_name) == 1:
        whole = {"anyOf": [*by_name.values(), whole]}
    return {"description": f"What {version.name} takes.", **_object({"inputs": whole})}


def _tensor(signature: Signature) -> Schema:
    dtype = signature.dtype
    schema: Schema = dict(NUMBER)
    if dtype.kind == "b":
        schema = {"type": "boolean"}
    elif dtype.kind in "iu":
        least = -(2 ** (8 * dtype.itemsize - 1)) if dtype.kind == "i" else 0
        schema = {
            "type": "integer",
            "minimum": least,
            "maximum": least + 2 ** (8 * dtype.itemsize) - 1,
        }
    for n in reversed(signature.shape):
        size = {"minItems": 1} if n is None else {"minItems": n, "maxItems": n}
        schema = {**_array(schema), **size}
    return schema


# --- the route -----------------------------------------------------------------------------------


async def openapi(server: Server, request: Request) -> Response:
    """The document."""
    url = request.scope.get("root_path") or "/"
    return json_response(describe(request.app.routes, server, url))


def routes() -> list[BaseRoute]:
    """/openapi.json."""
    return [Route("/openapi.json", Endpoint(openapi, "/openapi.json"), methods=["GET"])]
