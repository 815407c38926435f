"""Open Inference Protocol v2, as the clients of KServe, Triton and Seldon speak it.

A tensor is {"name", "datatype", "shape", "data": numbers, nested or flat}. Or, an extension, it has
"parameters": {"binary_data_size": n} in place of the data: its n bytes, little-endian, follow the
JSON, in the JSON's order, and the header Inference-Header-Content-Length says how long the JSON is
(in the body as it is once unpacked). Outputs come in this form where "binary_data_output" is true
among the request's parameters, or "binary_data" among those of an output, which goes first.

Two more of Triton's extensions: an output with the parameter "classification": k comes as its k
largest elements, "value:index:label"; and the model repository. A length of 0 in the header says
that the body is nothing but the bytes of the one input.
"""

from __future__ import annotations

import asyncio
import gzip
import itertools
import math
import zlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import numpy as np
import orjson
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

import tinygrad_ish
from tinygrad_ish.deploy.graph import ProgramError
from tinygrad_ish.deploy.runtime import ExportedProgram, Signature

from . import bodies
from .app import Endpoint, Handler, Server, healthz, json_response, readyz, requested
from .errors import ServeError
from .models import Version

__all__ = ["DATATYPES", "routes"]

HEADER = b"inference-header-content-length"
EXTENSIONS = ["binary_tensor_data", "classification", "model_repository"]
DATATYPES = {
    np.dtype(name): datatype
    for name, datatype in {
        "bool": "BOOL", "uint8": "UINT8", "int8": "INT8", "int16": "INT16", "int32": "INT32",
        "int64": "INT64", "float16": "FP16", "float32": "FP32", "float64": "FP64",
    }.items()
}  # fmt: skip
WIRE = {dtype: dtype.newbyteorder("<") for dtype in DATATYPES}
INSTEAD = f"binary data, or for null: Accept: {bodies.JSON}; nan=null"
SHORT, KEPT = 1024, 64  # bytes of JSON that are remembered, and how many for a program
IN_THREAD = 64 * 1024  # bytes of an answer from which on it is compressed beside the event loop


# --- infer -------------------------------------------------------------------------------------


class Wanted(NamedTuple):
    """How one output shall come."""

    number: int  # among the program's outputs
    binary: bool
    classes: int = 0  # so many of its largest elements; 0: the tensor


class Place(NamedTuple):
    """An input that is among the bytes behind the JSON."""

    signature: Signature
    shape: tuple[int, ...]
    start: int
    stop: int


class Asked(NamedTuple):
    """What the JSON of a request says, checked."""

    inputs: dict[str, np.ndarray | Place]
    nbytes: int  # that follow the JSON
    wanted: list[Wanted]
    ident: str | None = None
    seconds: float | None = None  # that it may take


_known: WeakKeyDictionary[ExportedProgram, dict[bytes, Asked]] = WeakKeyDictionary()


async def infer(server: Server, request: Request) -> Response:
    """The outputs for the inputs in the body."""
    version = await requested(server, request)
    assert version.program is not None
    body = await bodies.read_body(request, server.settings)
    program, length = version.program, bodies.header(request, HEADER)
    if length == "0":
        inputs = bodies.inputs_of(program, body, bodies.RAW, server.settings)
        asked = Asked({}, len(body), _wanted(program, None, {"binary_data_output": True}))
    else:
        head, tensors = _split(body, length)
        nulls = bodies.nulls(bodies.header(request, b"content-type"))
        asked = await bodies.parsed(
            server, request, head, _asked, program, head, server.settings.max_elements, nulls
        )
        inputs = _inputs(program, asked, tensors)
    outputs = await server.run(request, version, inputs, asked.seconds)
    about = {"model_name": version.name, "model_version": version.number}
    if asked.ident is not None:
        about["id"] = asked.ident
    nulls = bodies.nulls(bodies.header(request, b"accept"))
    return await _answer(request, *_encoded(program, about, asked.wanted, outputs, nulls))


def _split(body: bytes, length: str) -> tuple[bytes, memoryview]:
    """The JSON of a body, and what follows it."""
    if not length:
        return body, memoryview(b"")
    if len(length) < 19 and length.isdecimal() and int(length) <= len(body):
        return body[: int(length)], memoryview(body)[int(length) :]
    raise ServeError(
        "bad_request",
        "Inference-Header-Content-Length: expected the length of the JSON, within the unpacked "
        "body",
        expected=f"at most {len(body)}",
        got=length[:50],
    )


def _asked(program: ExportedProgram, head: bytes, max_elements: int, nulls: bool) -> Asked:
    """What the JSON says. A client whose tensors follow it sends the same JSON again and again;
    to read it takes a tenth of what all of a small request does."""
    if len(head) > SHORT:
        return _read(program, head, max_elements, nulls)
    known = _known.setdefault(program, {})
    asked = known.get(head)
    if asked is None:
        asked = _read(program, head, max_elements, nulls)
        if asked.ident is None and all(type(x) is Place for x in asked.inputs.values()):
            if len(known) >= KEPT:
                del known[next(iter(known))]
            known[head] = asked
    return asked


def _read(program: ExportedProgram, head: bytes, max_elements: int, nulls: bool) -> Asked:
    """What the JSON says; with ``nulls``, null among its floats is NaN."""
    document = _expected(bodies.unpack(head), dict, "the body must be an object")
    signatures = {s.name: s for s in program.inputs}
    inputs: dict[str, np.ndarray | Place] = {}
    start = elements = 0
    for tensor in _expected(document.get("inputs"), list, "inputs: expected an array of tensors"):
        name = _name(tensor, signatures, inputs, "inputs")
        shape = _shape(tensor, signatures[name])
        elements += math.prod([n or 1 for n in shape])
        if elements > max_elements:
            raise ServeError("too_large", "too many numbers", expected=max_elements)
        nbytes = _parameters(tensor, f"input {name}").get("binary_data_size")
        if nbytes is None:
            inputs[name] = _listed(tensor, signatures[name], shape, nulls)
        else:
            _check_size(tensor, signatures[name], shape, nbytes)
            inputs[name] = Place(signatures[name], shape, start, start + nbytes)
            start += nbytes
    if len(inputs) < len(signatures):
        raise ServeError(
            "bad_input", "inputs are missing", expected=list(signatures), got=list(inputs)
        )
    parameters = _parameters(document, "the request")
    ident = document.get("id")
    if ident is not None:
        _expected(ident, str, "id: expected a string")
    wanted = _wanted(program, document.get("outputs"), parameters)
    return Asked(inputs, start, wanted, ident, _timeout(parameters))


def _inputs(program: ExportedProgram, asked: Asked, tensors: memoryview) -> list[np.ndarray]:
    """The program's inputs."""
    if asked.nbytes != len(tensors):
        raise ServeError(
            "bad_request",
            f"the inputs' binary_data_size are {asked.nbytes} in all, but {len(tensors)} bytes "
            "follow the JSON; is Inference-Header-Content-Length its length?",
            expected=asked.nbytes, got=len(tensors),
        )  # fmt: skip
    arrays = []
    for signature in program.inputs:
        found = asked.inputs[signature.name]
        arrays.append(_raw(found, tensors) if isinstance(found, Place) else found)
    try:
        return program.take(*arrays)
    except ProgramError as error:
        raise ServeError("bad_input", str(error)) from None


def _raw(place: Place, tensors: memoryview) -> np.ndarray:
    """An input out of the bytes."""
    dtype = place.signature.dtype
    data = bytes(tensors[place.start : place.stop])  # a copy, as kernels want it aligned
    if dtype.kind == "b" and data.translate(None, b"\0\1"):
        raise ServeError("bad_input", f"input {place.signature.name}: a BOOL is a byte of 0 or 1")
    return np.ndarray(place.shape, WIRE[dtype], data).astype(dtype, copy=False)


def _name(tensor: Any, known: Mapping[str, Any], taken: Mapping[str, Any], where: str) -> str:
    """The name in an entry of "inputs" or "outputs"."""
    name = tensor.get("name") if type(tensor) is dict else None
    if type(name) is not str:
        raise ServeError("bad_request", f"{where}: expected objects with a name")
    if name not in known or name in taken:
        how = "twice" if name in known else "which the model does not have"
        raise ServeError(
            "bad_input", f"{where}: {name[:100]!r}, {how}", expected=list(known), got=name[:100]
        )
    return name


def _shape(tensor: dict[str, Any], signature: Signature) -> tuple[int, ...]:
    shape, datatype = tensor.get("shape"), tensor.get("datatype")
    if type(shape) is not list or not all(type(n) is int and n >= 0 for n in shape):
        raise ServeError(
            "bad_request",
            f"input {signature.name}: expected a shape, an array of whole numbers from 0 on",
        )
    if datatype != DATATYPES[signature.dtype]:
        raise ServeError(
            "bad_input",
            f"input {signature.name}: expected datatype {DATATYPES[signature.dtype]}, "
            f"got {str(datatype)[:50]}",
            expected=DATATYPES[signature.dtype],
            got=str(datatype)[:50],
        )
    return tuple(shape)


def _listed(
    tensor: dict[str, Any], signature: Signature, shape: tuple[int, ...], nulls: bool
) -> np.ndarray:
    """An input out of the JSON."""
    name = signature.name
    if "shared_memory_region" in _parameters(tensor, f"input {name}"):
        raise ServeError("bad_input", f"input {name}: there is no shared memory here; send it")
    data = tensor.get("data")
    if type(data) not in (list, np.ndarray):
        raise ServeError(
            "bad_request", f"input {name}: expected data, an array, or binary_data_size"
        )
    if signature.dtype == np.float16:
        raise ServeError(
            "bad_input", f"input {name}: FP16 has no form in JSON; send it as binary data"
        )
    array = bodies.values(data, signature, nulls)
    if array.shape != shape:
        if array.ndim != 1 or array.size != math.prod(shape):
            raise ServeError(
                "bad_input", f"input {name}: its data are not of its shape", expected=list(shape),
                got=list(array.shape),
            )  # fmt: skip
        array = array.reshape(shape)
    return array


def _check_size(
    tensor: dict[str, Any], signature: Signature, shape: tuple[int, ...], nbytes: Any
) -> None:
    name, size = signature.name, math.prod(shape) * signature.dtype.itemsize
    if "data" in tensor:
        raise ServeError("bad_request", f"input {name}: it has both data and binary_data_size")
    if type(nbytes) is not int or nbytes != size:
        raise ServeError(
            "bad_input", f"input {name}: binary_data_size is not that of its datatype and shape",
            expected=size, got=str(nbytes)[:50],
        )  # fmt: skip


def _wanted(program: ExportedProgram, outputs: Any, parameters: dict[str, Any]) -> list[Wanted]:
    """The outputs that are asked for, in their order; all, where none is."""
    binary = _flag(parameters, "binary_data_output", False)
    if outputs is None or (type(outputs) is list and not outputs):
        return [Wanted(number, binary) for number in range(len(program.outputs))]
    numbers = {s.name: number for number, s in enumerate(program.outputs)}
    wanted: dict[str, Wanted] = {}
    for output in _expected(outputs, list, "outputs: expected an array"):
        name = _name(output, numbers, wanted, "outputs")
        own = _parameters(output, f"output {name}")
        if "shared_memory_region" in own:
            raise ServeError("bad_input", f"output {name}: there is no shared memory here")
        classes = own.get("classification", 0)
        if type(classes) is not int or classes < 0:
            raise ServeError("bad_request", "classification: expected a number from 1 on")
        if classes:
            _check_classes(program.outputs[numbers[name]])
        wanted[name] = Wanted(numbers[name], _flag(own, "binary_data", binary), classes)
    return list(wanted.values())


def _check_classes(signature: Signature) -> None:
    if len(signature.shape) != 2 or signature.dtype.kind != "f":
        raise ServeError(
            "bad_input",
            f"output {signature.name}: classification is for floats of shape [batch, classes]",
        )


def _parameters(of: dict[str, Any], what: str) -> dict[str, Any]:
    parameters = of.get("parameters")
    if parameters is None:
        return {}
    return _expected(parameters, dict, f"{what}: parameters: expected an object")


def _flag(parameters: dict[str, Any], name: str, default: bool) -> bool:
    return _expected(parameters.get(name, default), bool, f"{name}: expected true or false")


def _timeout(parameters: dict[str, Any]) -> float | None:
    """Seconds; the protocol's clients give microseconds, and 0 for none."""
    given = parameters.get("timeout", 0)
    if type(given) is not int or given < 0:
        raise ServeError("bad_request", "timeout: expected microseconds, a whole number")
    return given / 1e6 or None


def _expected(value: Any, kind: type, message: str) -> Any:
    if type(value) is not kind:
        raise ServeError("bad_request", message)
    return value


# --- the answer --------------------------------------------------------------------------------


def _encoded(
    program: ExportedProgram,
    document: dict[str, Any],
    wanted: list[Wanted],
    outputs: tuple[np.ndarray, ...],
    nulls: bool,
) -> tuple[bytes, int | None]:
    """The body, and how much of it is JSON if something follows."""
    tensors, parts = [], []
    for number, binary, classes in wanted:
        signature, x = program.outputs[number], outputs[number]
        datatype = DATATYPES[signature.dtype]
        if classes:
            datatype, x = "BYTES", _classes(x, classes, program.labels if not number else None)
        tensor: dict[str, Any] = {"name": signature.name, "datatype": datatype, "shape": x.shape}
        if binary:
            raw = _strings(x) if classes else x.astype(WIRE[x.dtype], copy=False).tobytes()
            tensor["parameters"] = {"binary_data_size": len(raw)}
            parts.append(raw)
        elif classes:
            tensor["data"] = x.ravel().tolist()
        else:
            tensor["data"] = _numbers(signature, x, nulls)
        tensors.append(tensor)
    head = orjson.dumps({**document, "outputs": tensors}, option=orjson.OPT_SERIALIZE_NUMPY)
    return (b"".join((head, *parts)), len(head)) if parts else (head, None)


def _numbers(signature: Signature, x: np.ndarray, nulls: bool) -> np.ndarray:
    """What JSON says of an output: its elements in a row."""
    if signature.dtype == np.float16:
        raise ServeError(
            "not_acceptable",
            f"output {signature.name}: FP16 has no form in JSON; ask for binary data",
        )
    if not nulls:
        bodies.check_finite(signature.name, x, INSTEAD)
    return x.ravel()


def _strings(x: np.ndarray) -> bytes:
    """BYTES: each with its length before it."""
    encoded = [text.encode() for text in x.ravel().tolist()]
    return b"".join([len(e).to_bytes(4, "little") + e for e in encoded])


def _classes(x: np.ndarray, count: int, labels: list[str] | None) -> np.ndarray:
    """The largest elements of each row as "value:index:label"."""
    order = np.argsort(-x, axis=1, kind="stable")[:, :count]
    texts = np.empty(order.shape, object)
    for row, rank in itertools.product(*map(range, order.shape)):
        k = order[row, rank]
        texts[row, rank] = f"{x[row, k]}:{k}" + (f":{labels[k]}" if labels else "")
    return texts


async def _answer(request: Request, body: bytes, length: int | None) -> Response:
    """The body in a response, compressed if the client names one way to do that. A list of several
    is what its library can read, not a wish: compressing floats takes longer than sending them."""
    headers = {} if length is None else {HEADER.decode(): str(length)}
    encoding = bodies.header(request, b"accept-encoding")
    if encoding in _COMPRESSORS:
        headers["content-encoding"] = encoding
        compress = _COMPRESSORS[encoding]
        if len(body) < IN_THREAD:
            body = compress(body)
        else:
            body = await asyncio.get_running_loop().run_in_executor(None, compress, body)
    return Response(body, headers=headers, media_type=bodies.RAW if length else bodies.JSON)


_COMPRESSORS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": lambda body: gzip.compress(body, 1, mtime=0),
    "deflate": lambda body: zlib.compress(body, 1),
}


# --- what there is -----------------------------------------------------------------------------


async def server_metadata(server: Server, request: Request) -> Response:
    """Name, version, extensions."""
    about = {"name": "tinygrad_ish", "version": tinygrad_ish.__version__, "extensions": EXTENSIONS}
    return json_response(about)


async def model_metadata(server: Server, request: Request) -> Response:
    """What the model takes and gives."""
    version = await requested(server, request)
    program = version.program
    assert program is not None
    versions = server.catalog.models[version.name].values()
    return json_response({
        "name": version.name,
        "versions": [v.number for v in versions if v.state != "failed"],
        "platform": "tinygrad_ish",
        "inputs": [_described(s) for s in program.inputs],
        "outputs": [_described(s) for s in program.outputs],
    })  # fmt: skip


def _described(signature: Signature) -> dict[str, Any]:
    shape = [-1 if n is None else n for n in signature.shape]
    return {"name": signature.name, "datatype": DATATYPES[signature.dtype], "shape": shape}


async def model_ready(server: Server, request: Request) -> Response:
    """Whether the model answers: it is loaded, or will be as soon as it is asked."""
    name, number = request.path_params["name"], request.path_params.get("number")
    version = server.catalog.find(name, number)
    if server.leaving or version.state not in ("ready", "available"):
        reason = "the server is shutting down" if server.leaving else version.reason
        raise ServeError("not_ready", f"{name} {version.number}: {reason or version.state}")
    return json_response({"name": name, "ready": True})


# --- the model repository ----------------------------------------------------------------------


async def index(server: Server, request: Request) -> Response:
    """All versions of all models, or with {"ready": true} those that are loaded."""
    only = _flag(await _optional(server, request), "ready", False)
    versions = [v for by_number in server.catalog.models.values() for v in by_number.values()]
    return json_response([_entry(v) for v in versions if v.state == "ready" or not only])


def _entry(version: Version) -> dict[str, str]:
    state = {"ready": "READY", "loading": "LOADING"}.get(version.state, "UNAVAILABLE")
    reason = version.reason or ("not loaded" if state == "UNAVAILABLE" else "")
    return {"name": version.name, "version": version.number, "state": state, "reason": reason}


async def load(server: Server, request: Request) -> Response:
    """Load a model's latest version, if settings.management allows it."""
    _check_management(server)
    if _parameters(await _optional(server, request), "the request"):
        raise ServeError(
            "bad_request", "models come from the server's own folders: no parameters are taken"
        )
    await server.catalog.refresh()
    await _by_hand(server, request, "load")
    return json_response({"name": request.path_params["name"], "state": "READY"})


async def unload(server: Server, request: Request) -> Response:
    """Unload all versions of a model, if settings.management allows it."""
    _check_management(server)
    await _optional(server, request)  # unload_dependents: no model has any
    await _by_hand(server, request, "unload")
    return json_response({"name": request.path_params["name"], "state": "UNAVAILABLE"})


async def _by_hand(server: Server, request: Request, action: str) -> None:
    """Load or unload the model of the path, in all workers."""
    name = request.path_params["name"]
    server.catalog.find_any(name)
    if server.together is not None:
        await server.together.ask(action, name, server.timeout(request))
    elif action == "load":
        await server.catalog.load(name)
    else:
        await server.catalog.unload(name)


def _check_management(server: Server) -> None:
    if not server.settings.management:
        raise ServeError(
            "forbidden", "loading and unloading over HTTP is off; the setting is management"
        )


async def _optional(server: Server, request: Request) -> dict[str, Any]:
    """The object in a body that may be empty."""
    body = await bodies.read_body(request, server.settings)
    if not body:
        return {}
    document: dict[str, Any] = _expected(
        bodies.unpack(body), dict, "the body must be empty or an object"
    )
    return document


def routes() -> list[BaseRoute]:
    """Paths and what answers them."""
    model, repository = "/v2/models/{name}", "/v2/repository"
    found: list[tuple[str, str, Handler]] = [
        ("POST", f"{model}/infer", infer),
        ("POST", f"{model}/versions/{{number}}/infer", infer),
        ("GET", "/v2", server_metadata),
        ("GET", "/v2/health/live", healthz),
        ("GET", "/v2/health/ready", readyz),
        ("GET", model, model_metadata),
        ("GET", f"{model}/versions/{{number}}", model_metadata),
        ("GET", f"{model}/ready", model_ready),
        ("GET", f"{model}/versions/{{number}}/ready", model_ready),
        ("POST", f"{repository}/index", index),
        ("POST", f"{repository}/models/{{name}}/load", load),
        ("POST", f"{repository}/models/{{name}}/unload", unload),
    ]
    return [
        Route(path, Endpoint(handler, path), methods=[method]) for method, path, handler in found
    ]
