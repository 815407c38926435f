"""TensorFlow Serving's REST API: ``/v1/models/NAME[/versions/N]:predict`` and its neighbours.

``:predict`` takes "instances", an entry for each row, or "inputs", arrays by name, and answers in
kind with "predictions" or "outputs". ``:classify`` and ``:regress`` take "examples", objects by
feature, with what all of them share in "context". There is one signature, "serving_default", and
versions have no labels. A number that is not finite is an error, as JSON has none; with
``Accept: application/json; nan=null`` it is null.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import orjson
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from tinygrad_ish.deploy.runtime import ExportedProgram, Signature

from . import bodies
from .app import Endpoint, Handler, Server, json_response, requested
from .errors import ServeError
from .models import Version

__all__ = ["routes"]

SIGNATURE = "serving_default"
INSTEAD = f"null: Accept: {bodies.JSON}; nan=null"
DTYPES = {
    np.dtype(name): f"DT_{name.upper()}"
    for name in ("bool", "uint8", "int8", "int16", "int32", "int64")
} | {
    np.dtype(np.float16): "DT_HALF",
    np.dtype(np.float32): "DT_FLOAT",
    np.dtype(np.float64): "DT_DOUBLE",
}
STATES = {"available": "START", "loading": "LOADING", "ready": "AVAILABLE", "failed": "END"}

Take = Callable[[ExportedProgram], "dict[str, Any]"]
Give = Callable[[ExportedProgram, "dict[str, np.ndarray]", int], Any]


# --- requests ----------------------------------------------------------------------------------


async def predict(server: Server, request: Request) -> Response:
    """Outputs for rows ("instances") or for arrays by name ("inputs")."""
    document = await _document(server, request, "predict")
    if ("instances" in document) == ("inputs" in document):
        raise ServeError(
            "bad_request", 'expected either "instances", by rows, or "inputs", by columns'
        )
    if "inputs" in document:
        return await _run(
            server, request, lambda p: bodies.named_inputs(p, document), _named_outputs
        )
    rows = document["instances"]
    return await _run(server, request, lambda p: _columns(p, rows, "instances"), _predictions)


async def classify(server: Server, request: Request) -> Response:
    """For each example its classes, [label, probability], the most probable first."""
    rows = _examples(await _document(server, request, "classify"))
    return await _run(server, request, lambda p: _columns(p, rows, "examples"), _classes)


async def regress(server: Server, request: Request) -> Response:
    """For each example a number."""
    rows = _examples(await _document(server, request, "regress"))
    return await _run(server, request, lambda p: _columns(p, rows, "examples"), _values)


async def _document(server: Server, request: Request, verb: str) -> dict[str, Any]:
    document = bodies.unpack(await bodies.read_body(request, server.settings))
    if type(document) is not dict:
        raise ServeError("bad_request", "the body must be an object")
    signature = document.get("signature_name")
    if signature not in (SIGNATURE, f"tensorflow/serving/{verb}", "", None):
        raise ServeError(
            "bad_request", "signature_name: there is one signature", expected=SIGNATURE,
            got=str(signature)[:100],
        )  # fmt: skip
    return document


def _examples(document: dict[str, Any]) -> list[dict[str, Any]]:
    """The examples, each with what is in the context."""
    shared, examples = document.get("context", {}), document.get("examples")
    if (
        type(shared) is not dict
        or type(examples) is not list
        or not all(type(e) is dict and not shared.keys() & e.keys() for e in examples)
    ):
        raise ServeError(
            "bad_request",
            'expected "examples", an array of objects by feature (and "context", an object of '
            "others)",
        )
    return [{**shared, **example} for example in examples]


def _columns(program: ExportedProgram, rows: Any, what: str) -> dict[str, Any]:
    """The inputs by name, out of rows: plain ones, or objects by input, or by feature."""
    names = [s.name for s in program.inputs]
    if any(s.shape[:1] != (None,) for s in program.inputs):
        raise ServeError(
            "bad_input", 'the model has inputs without rows: use "inputs"', expected=names
        )
    if type(rows) is not list or not rows:
        raise ServeError("bad_request", f"{what}: expected an array of one row or more")
    if type(rows[0]) is not dict:
        if len(names) > 1:
            raise ServeError("bad_input", f"{what}: expected objects by input", expected=names)
        return {names[0]: rows}
    features = program.features
    by_feature = features is not None and rows[0].keys() == set(features)
    keys = features if features is not None and by_feature else names
    for n, row in enumerate(rows):
        if type(row) is not dict or row.keys() != set(keys):
            got = (
                [key[:100] for key in sorted(row)[:100]]
                if type(row) is dict
                else type(row).__name__
            )
            raise ServeError(
                "bad_input", f"{what}[{n}]: expected an object of {', '.join(keys)}",
                expected=keys, got=got,
            )  # fmt: skip
    if by_feature:
        return {names[0]: [[_only(row[key]) for key in keys] for row in rows]}
    return {name: [row[name] for row in rows] for name in names}


def _only(value: Any) -> Any:
    """A feature's number, which may stand in a list."""
    return value[0] if type(value) is list and len(value) == 1 else value


# --- answers -----------------------------------------------------------------------------------


async def _run(server: Server, request: Request, take: Take, give: Give) -> Response:
    if "label" in request.path_params:
        raise ServeError(
            "model_not_found",
            "versions have no labels here: name a version, or none for the latest",
        )
    version = await requested(server, request)
    program = version.program
    assert program is not None
    nulls = bodies.nulls(bodies.header(request, b"content-type"))
    inputs = bodies.take(program, take(program), server.settings, nulls)
    rows = len(inputs[0]) if inputs[0].ndim else 0
    outputs = bodies.outputs_by_name(program, await server.run(request, version, inputs))
    if not bodies.nulls(bodies.header(request, b"accept")):
        for name, x in outputs.items():
            bodies.check_finite(name, x, INSTEAD)
    content = orjson.dumps(give(program, outputs, rows), option=orjson.OPT_SERIALIZE_NUMPY)
    return Response(content, media_type=bodies.JSON)


def _named_outputs(program: ExportedProgram, outputs: dict[str, np.ndarray], rows: int) -> Any:
    listed = {name: bodies.listable(x) for name, x in outputs.items()}
    return {"outputs": listed if len(listed) > 1 else next(iter(listed.values()))}


def _predictions(program: ExportedProgram, outputs: dict[str, np.ndarray], rows: int) -> Any:
    for name, x in outputs.items():
        if x.shape[:1] != (rows,):
            raise ServeError(
                "bad_input", f'output {name} has no row for each instance: use "inputs"'
            )
    if len(outputs) == 1:
        return {"predictions": bodies.listable(next(iter(outputs.values())))}
    columns = zip(*[x.tolist() for x in outputs.values()], strict=True)
    return {"predictions": [dict(zip(outputs, row, strict=True)) for row in columns]}


def _classes(program: ExportedProgram, outputs: dict[str, np.ndarray], rows: int) -> Any:
    name, x = next(iter(outputs.items()))
    if x.ndim != 2 or len(x) != rows:
        raise ServeError("bad_input", f"output {name} has no classes: use :predict")
    if program.labels is not None:
        return {"results": program.best(x)}
    return {"results": [[("", score) for score in row] for row in x.tolist()]}


def _values(program: ExportedProgram, outputs: dict[str, np.ndarray], rows: int) -> Any:
    name, x = next(iter(outputs.items()))
    if x.shape not in ((rows,), (rows, 1)):
        raise ServeError("bad_input", f"output {name} is not one number a row: use :predict")
    return {"results": x.ravel().tolist()}


# --- what there is -----------------------------------------------------------------------------


async def status(server: Server, request: Request) -> Response:
    """The state of a version, or of all versions of a model."""
    name, number = request.path_params["name"], request.path_params.get("number")
    versions = list(server.catalog.find_any(name).values())
    if number is not None:
        versions = [server.catalog.find(name, number)]
    return json_response({"model_version_status": [_status(v) for v in versions]})


def _status(version: Version) -> dict[str, Any]:
    code = "FAILED_PRECONDITION" if version.state == "failed" else "OK"
    return {
        "version": version.number,
        "state": STATES[version.state],
        "status": {"error_code": code, "error_message": version.reason},
    }


async def metadata(server: Server, request: Request) -> Response:
    """What the model takes and gives, as TensorFlow describes a signature."""
    version = await requested(server, request)
    program = version.program
    assert program is not None
    signature = {
        "inputs": {s.name: _tensor_info(s) for s in program.inputs},
        "outputs": {s.name: _tensor_info(s) for s in program.outputs},
        "method_name": "tensorflow/serving/predict",
    }
    return json_response({
        "model_spec": {"name": version.name, "signature_name": "", "version": version.number},
        "metadata": {"signature_def": {"signature_def": {SIGNATURE: signature}}},
    })  # fmt: skip


def _tensor_info(signature: Signature) -> dict[str, Any]:
    sizes = ["-1" if n is None else str(n) for n in signature.shape]
    return {
        "name": signature.name,
        "dtype": DTYPES[signature.dtype],
        "tensor_shape": {"dim": [{"size": n, "name": ""} for n in sizes], "unknown_rank": False},
    }


def routes() -> list[BaseRoute]:
    """Paths and what answers them."""
    model = "/v1/models/{name}"
    version, label = model + "/versions/{number}", model + "/labels/{label}"
    verbs: dict[str, Handler] = {"predict": predict, "classify": classify, "regress": regress}
    found: list[tuple[str, str, Handler]] = [
        ("POST", f"{base}:{verb}", handler)
        for verb, handler in verbs.items()
        for base in (model, version, label)
    ]
    found += [
        ("GET", model, status),
        ("GET", version, status),
        ("GET", f"{model}/metadata", metadata),
        ("GET", f"{version}/metadata", metadata),
    ]
    return [
        Route(path, Endpoint(handler, path), methods=[method]) for method, path, handler in found
    ]
