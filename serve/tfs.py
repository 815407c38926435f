"""TensorFlow Serving's REST API: ``/v1/models/NAME[/versions/N]:predict`` and its neighbours.

``:predict`` takes "instances", an entry for each row, or "inputs", arrays by name, and answers in
kind with "predictions" or "outputs". ``:classify`` and ``:regress`` take "examples", objects by
feature, with what all of them share in "context". Where a program takes images, {"b64": text} in
the place of a row is one, encoded. There is one signature, "serving_default", and versions have no
labels. A number that is not finite is an error, as JSON has none; with
``Accept: application/json; nan=null`` it is null.
"""

from __future__ import annotations

import base64
import math
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import orjson
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from tinygrad_ish.deploy.inputs import InputError, decode_image
from tinygrad_ish.deploy.runtime import ExportedProgram, Signature

from . import bodies
from .app import Endpoint, Handler, Server, json_response, requested
from .errors import ServeError
from .models import Version
from .settings import Settings

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

Give = Callable[[ExportedProgram, "dict[str, np.ndarray]", int], Any]
Columns = tuple[str, "dict[str, Any]"]  # what clients call the rows, and inputs by name
Read = Callable[[ExportedProgram, "dict[str, Any]"], "tuple[Columns, Give]"]


# --- requests ----------------------------------------------------------------------------------


async def predict(server: Server, request: Request) -> Response:
    """Outputs for rows ("instances") or for arrays by name ("inputs")."""
    return await _run(server, request, "predict", _asked)


async def classify(server: Server, request: Request) -> Response:
    """For each example its classes, [label, probability], the most probable first."""
    return await _run(server, request, "classify", lambda p, d: (_examples(p, d), _classes))


async def regress(server: Server, request: Request) -> Response:
    """For each example a number."""
    return await _run(server, request, "regress", lambda p, d: (_examples(p, d), _values))


async def _run(server: Server, request: Request, verb: str, read: Read) -> Response:
    if "label" in request.path_params:
        raise ServeError(
            "model_not_found",
            "versions have no labels here: name a version, or none for the latest",
        )
    version = await requested(server, request)
    program = version.program
    assert program is not None
    body = await bodies.read_body(request, server.settings)
    nulls = bodies.nulls(bodies.header(request, b"content-type"))
    until = time.monotonic() + server.timeout(request)
    images = b"b64" in body or b"\\u" in body  # which are slow to decode
    inputs, give = await bodies.parsed(
        server, request, body, _taken, program, body, verb, read, server.settings, nulls, until,
        slow=images,
    )  # fmt: skip
    rows = len(inputs[0]) if inputs[0].ndim else 0
    outputs = bodies.outputs_by_name(program, await server.run(request, version, inputs))
    if not bodies.nulls(bodies.header(request, b"accept")):
        for name, x in outputs.items():
            bodies.check_finite(name, x, INSTEAD)
    content = orjson.dumps(give(program, outputs, rows), option=orjson.OPT_SERIALIZE_NUMPY)
    return Response(content, media_type=bodies.JSON)


def _taken(
    program: ExportedProgram, body: bytes, verb: str, read: Read, settings: Settings, nulls: bool,
    until: float,
) -> tuple[list[np.ndarray], Give]:  # fmt: skip
    """The program's inputs out of a body, and what the answer looks like."""
    (what, columns), give = read(program, _document(body, verb))
    given = {
        name: _decoded(program, rows, what, settings.max_elements, until)
        for name, rows in columns.items()
    }
    return bodies.take(program, given, settings, nulls), give


def _document(body: bytes, verb: str) -> dict[str, Any]:
    document = bodies.unpack(body)
    if type(document) is not dict:
        raise ServeError("bad_request", "the body must be an object")
    signature = document.get("signature_name")
    known = (SIGNATURE, f"tensorflow/serving/{verb}", "")
    if signature is not None and (type(signature) is not str or signature not in known):
        raise ServeError(
            "bad_request", "signature_name: there is one signature", expected=SIGNATURE,
            got=str(signature)[:100],
        )  # fmt: skip
    return document


def _asked(program: ExportedProgram, document: dict[str, Any]) -> tuple[Columns, Give]:
    if ("instances" in document) == ("inputs" in document):
        raise ServeError(
            "bad_request", 'expected either "instances", by rows, or "inputs", by columns'
        )
    if "inputs" in document:
        return ("inputs", bodies.named_inputs(program, document)), _named_outputs
    return _columns(program, document["instances"], "instances"), _predictions


def _examples(program: ExportedProgram, document: dict[str, Any]) -> Columns:
    """The inputs out of the examples, each with what is in the context."""
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
    return _columns(program, [{**shared, **example} for example in examples], "examples")


def _columns(program: ExportedProgram, rows: Any, what: str) -> Columns:
    """The inputs by name, out of rows: plain ones, or objects by input, or by feature."""
    names = [s.name for s in program.inputs]
    if any(s.shape[:1] != (None,) for s in program.inputs):
        raise ServeError(
            "bad_input", 'the model has inputs without rows: use "inputs"', expected=names
        )
    if type(rows) not in (list, np.ndarray) or not len(rows):
        raise ServeError("bad_request", f"{what}: expected an array of one row or more")
    if type(rows[0]) is not dict or _is_image(rows[0]):
        if len(names) > 1:
            raise ServeError("bad_input", f"{what}: expected objects by input", expected=names)
        return what, {names[0]: rows}
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
        return what, {names[0]: [[_only(row[key]) for key in keys] for row in rows]}
    return what, {name: [row[name] for row in rows] for name in names}


def _only(value: Any) -> Any:
    """A feature's number, which may stand in a list."""
    return value[0] if type(value) is list and len(value) == 1 else value


def _is_image(value: Any) -> bool:
    """Whether a value is {"b64": …}, TensorFlow Serving's form of bytes."""
    return type(value) is dict and list(value) == ["b64"]


def _decoded(
    program: ExportedProgram, rows: Any, what: str, max_elements: int, until: float
) -> Any:
    """Rows that are images as an array; other rows as they are. Raises ServeError, and that it is
    too late when ``time.monotonic()`` is past ``until``."""
    if type(rows) is not list or not any(map(_is_image, rows)):
        return rows
    if len(rows) * math.prod([n or 1 for n in program.inputs[0].shape]) > max_elements:
        raise ServeError("too_large", "too many numbers", expected=max_elements)
    images = []
    for n, row in enumerate(rows):
        if time.monotonic() > until:
            raise ServeError("deadline", "the images were not decoded within the deadline")
        try:
            images.append(decode_image(program, _bytes(row)))
        except InputError as error:
            raise ServeError("bad_input", f"{what}[{n}]: {error}", got=n) from None
    return np.concatenate(images)


def _bytes(row: Any) -> bytes:
    if not _is_image(row) or type(row["b64"]) is not str:
        raise InputError('expected {"b64": text}, an encoded image')
    try:
        return base64.b64decode(row["b64"], validate=True)
    except ValueError as error:
        raise InputError(f"b64: it is not valid base64: {error}") from None


# --- answers -----------------------------------------------------------------------------------


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
