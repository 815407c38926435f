"""What a request's body says, and how an answer is written, for the routes of our own.

A body is JSON or msgpack ({"inputs": rows}, or {"inputs": {name: rows, …}}), raw little-endian
numbers of the one input, an image, or CSV. In msgpack a tensor may also be {"dtype", "shape",
"data": bytes}. Answers are JSON, msgpack, or the raw numbers of the first output.
"""

from __future__ import annotations

import asyncio
import math
import zlib
from collections.abc import Mapping
from typing import Any

import msgpack
import numpy as np
import orjson
from starlette.requests import Request

from tinygrad_ish.deploy.graph import ProgramError
from tinygrad_ish.deploy.inputs import InputError, decode
from tinygrad_ish.deploy.runtime import ExportedProgram, Signature

from .errors import ServeError
from .settings import Settings

__all__ = ["accepted", "check_finite", "encode", "inputs_of", "listable", "outputs_by_name",
           "read_body", "take", "values"]  # fmt: skip

JSON, MSGPACK, RAW = "application/json", "application/msgpack", "application/octet-stream"
DEPTH = 64


# --- reading -----------------------------------------------------------------------------------


async def read_body(request: Request, settings: Settings) -> bytes:
    """The body, unpacked if it is compressed. Raises ServeError for one that is too large or too
    slow, before it is held."""
    length = request.headers.get("content-length")
    if length is not None and (not length.isdecimal() or int(length) > settings.max_body):
        raise _too_large(settings.max_body, length)
    deadline = asyncio.get_running_loop().time() + settings.body_timeout
    chunks, size, more = [], 0, True
    while more:
        message = await _received(request, deadline)
        if message["type"] == "http.disconnect":
            raise asyncio.CancelledError
        chunk, more = message.get("body", b""), message.get("more_body", False)
        size += len(chunk)
        if size > settings.max_body:
            raise _too_large(settings.max_body, f"{size} so far")
        chunks.append(chunk)
    body = chunks[0] if len(chunks) == 1 else b"".join(chunks)
    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    return body if encoding == "identity" else _unpacked(body, encoding, settings.max_body)


async def _received(request: Request, deadline: float) -> Mapping[str, Any]:
    """The next message; a body must not take longer than until the deadline."""
    task, loop = asyncio.current_task(), asyncio.get_running_loop()
    assert task is not None
    late = False

    def cancel() -> None:
        nonlocal late
        late = True
        task.cancel()

    timer = loop.call_at(deadline, cancel)
    try:
        return await request.receive()
    except asyncio.CancelledError:
        if not late:
            raise
        if hasattr(task, "uncancel"):
            task.uncancel()
        raise ServeError("request_timeout", "the body did not arrive in time") from None
    finally:
        timer.cancel()


def _unpacked(body: bytes, encoding: str, limit: int) -> bytes:
    """A gzip or deflate (zlib) body, of at most ``limit`` bytes."""
    if encoding not in ("gzip", "deflate"):
        raise ServeError(
            "unsupported_media_type", f"Content-Encoding: {encoding[:50]!r} is not taken",
            expected=["identity", "gzip", "deflate"], got=encoding[:50],
        )  # fmt: skip
    unpacker = zlib.decompressobj(31 if encoding == "gzip" else 15)
    try:
        data = unpacker.decompress(body, limit + 1)
    except zlib.error as error:
        raise ServeError("bad_request", f"the body is not valid {encoding}: {error}") from None
    if len(data) > limit:
        raise _too_large(limit, f"more, out of {len(body)} bytes of {encoding}")
    if not unpacker.eof or unpacker.unused_data:
        raise ServeError("bad_request", f"the {encoding} body is cut off, or something follows it")
    return data


def _too_large(limit: int, got: Any) -> ServeError:
    return ServeError("too_large", f"the body may have {limit} bytes", expected=limit, got=got)


def inputs_of(
    program: ExportedProgram, body: bytes, content_type: str, settings: Settings
) -> list[np.ndarray]:
    """The program's inputs from a body. Raises ServeError."""
    kind = content_type.partition(";")[0].strip().lower() or JSON
    if kind == RAW:
        return [_raw(program, body)]
    if kind.startswith("image/") or kind == "text/csv":
        try:
            rows, _ = decode(program, body)
        except InputError as error:
            raise ServeError("bad_input", str(error)) from None
        return [rows]
    if kind not in (JSON, MSGPACK, "application/x-msgpack"):
        raise ServeError(
            "unsupported_media_type", f"Content-Type: {kind[:100]!r} is not taken",
            expected=[JSON, MSGPACK, RAW, "image/png", "image/jpeg", "text/csv"], got=kind[:100],
        )  # fmt: skip
    return take(program, named_inputs(program, unpack(body, kind)), settings)


def unpack(body: bytes, kind: str = JSON) -> Any:
    """What a JSON or msgpack body holds. Raises ServeError."""
    try:
        if kind == JSON:
            return orjson.loads(body)
        return msgpack.unpackb(body, strict_map_key=True)
    except (ValueError, msgpack.UnpackException, RecursionError) as error:
        name = "JSON" if kind == JSON else "msgpack"
        hint = ""
        if b"NaN" in body or b"Infinity" in body:
            hint = "; JSON has no NaN and no Infinity"
        raise ServeError("bad_request", f"the body is not valid {name}: {error}{hint}") from None


def named_inputs(program: ExportedProgram, document: Any) -> dict[str, Any]:
    """The values of the inputs by name, out of {"inputs": …}."""
    names = [s.name for s in program.inputs]
    if not isinstance(document, dict) or "inputs" not in document:
        raise ServeError(
            "bad_request", "the body must be an object with the key \"inputs\"",
            expected={"inputs": "rows, or an object of rows by name: " + ", ".join(names)},
        )  # fmt: skip
    inputs = document["inputs"]
    tensor = isinstance(inputs, dict) and set(inputs) == {"dtype", "shape", "data"}
    if not isinstance(inputs, dict) or (tensor and "data" not in names):
        if len(names) != 1:
            raise ServeError(
                "bad_input", "the model has several inputs; give them by name", expected=names
            )
        return {names[0]: inputs}
    return inputs


def take(
    program: ExportedProgram, given: Mapping[str, Any], settings: Settings
) -> list[np.ndarray]:
    """Named values as the program's input arrays, all checked. Raises ServeError."""
    names = [s.name for s in program.inputs]
    if set(given) != set(names):
        raise ServeError(
            "bad_input", "the inputs' names are others", expected=names, got=sorted(map(str, given))
        )
    arrays = [values(given[s.name], s) for s in program.inputs]
    if sum([x.size for x in arrays]) > settings.max_elements:
        raise ServeError("too_large", "too many numbers", expected=settings.max_elements)
    try:
        return program.take(*arrays)
    except ProgramError as error:
        raise ServeError("bad_input", str(error)) from None


def values(value: Any, signature: Signature) -> np.ndarray:
    """An input's numbers as an array, of whatever shape they have. Raises ServeError."""
    if isinstance(value, dict):
        return _tensor(value, signature)
    try:
        array = np.asarray(value)
    except (ValueError, OverflowError):
        raise ServeError(
            "bad_input", f"input {signature.name}: its rows differ in length, or hold other things"
        ) from None
    if array.dtype.kind not in "biuf":
        raise ServeError(
            "bad_input", f"input {signature.name}: expected numbers", got=str(array.dtype)
        )
    return array


def _tensor(value: dict[Any, Any], signature: Signature) -> np.ndarray:
    """{"dtype", "shape", "data": bytes} of msgpack."""
    dtype, shape, data = (value.get(key) for key in ("dtype", "shape", "data"))
    good = dtype == signature.dtype.name and isinstance(data, bytes) and isinstance(shape, list)
    if not good or not all(type(n) is int and 0 <= n < 2**31 for n in shape or ()):
        raise ServeError(
            "bad_input", f"input {signature.name}: expected dtype, shape and data (bytes)",
            expected={"dtype": signature.dtype.name, "shape": "ints", "data": "bytes"},
        )  # fmt: skip
    if math.prod(shape) * signature.dtype.itemsize != len(data):
        raise ServeError("bad_input", f"input {signature.name}: {len(data)} bytes are not {shape}")
    return np.frombuffer(data, signature.dtype.newbyteorder("<")).reshape(shape)


def _raw(program: ExportedProgram, body: bytes) -> np.ndarray:
    """Rows of the one input as its raw elements."""
    if len(program.inputs) != 1 or program.inputs[0].shape[:1] != (None,):
        raise ServeError(
            "bad_input", "raw bytes are for a model of one input with a batch axis; use msgpack"
        )
    signature = program.inputs[0]
    shape: Any = signature.shape[1:]
    width = math.prod(shape) * signature.dtype.itemsize
    if not body or not width or len(body) % width:
        raise ServeError(
            "bad_input",
            f"expected {signature.dtype.name} rows of {width} bytes, little-endian",
            expected=width, got=len(body),
        )  # fmt: skip
    dtype = signature.dtype.newbyteorder("<")
    return np.frombuffer(body, dtype).reshape(-1, *shape).astype(signature.dtype, copy=False)


# --- writing -----------------------------------------------------------------------------------


def accepted(accept: str) -> str:
    """The format to answer in, of those that the header Accept allows. Raises ServeError."""
    if not accept or "*/*" in accept or JSON in accept:
        return JSON
    for kind in (MSGPACK, RAW):
        if kind in accept:
            return kind
    if "application/*" in accept:
        return JSON
    raise ServeError(
        "not_acceptable", "no format in Accept can be given", expected=[JSON, MSGPACK, RAW],
        got=accept[:200],
    )  # fmt: skip


def outputs_by_name(
    program: ExportedProgram, outputs: tuple[np.ndarray, ...]
) -> dict[str, np.ndarray]:
    """The outputs with their names."""
    return {s.name: x for s, x in zip(program.outputs, outputs, strict=True)}


def encode(document: dict[str, Any], outputs: dict[str, np.ndarray], kind: str) -> bytes:
    """An answer in one of the formats; ``document`` is what goes with the outputs. Raises
    ServeError for a number that JSON cannot hold."""
    if kind == RAW:
        first = next(iter(outputs.values()))
        return np.ascontiguousarray(first, first.dtype.newbyteorder("<")).tobytes()
    if kind == MSGPACK:
        tensors = {
            name: {
                "dtype": x.dtype.name,
                "shape": list(x.shape),
                "data": np.ascontiguousarray(x, x.dtype.newbyteorder("<")).tobytes(),
            }
            for name, x in outputs.items()
        }
        packed: bytes = msgpack.packb({**document, "outputs": tensors})
        return packed
    for name, x in outputs.items():
        check_finite(name, x)
    return orjson.dumps(
        {**document, "outputs": {name: listable(x) for name, x in outputs.items()}},
        option=orjson.OPT_SERIALIZE_NUMPY,
    )


def listable(x: np.ndarray) -> Any:
    """An output as orjson writes it."""
    return x.tolist() if x.dtype == np.float16 or not x.ndim else np.ascontiguousarray(x)


def check_finite(name: str, x: np.ndarray, instead: str = f"{MSGPACK} or {RAW}") -> None:
    """Raise ServeError for a number that JSON cannot hold; ``instead`` is what could."""
    if x.dtype.kind == "f" and not np.isfinite(x).all():
        at = [int(n) for n in np.argwhere(~np.isfinite(x))[0]]
        raise ServeError(
            "not_acceptable",
            f"output {name} is {x[tuple(at)]} at {at}, which JSON cannot hold; ask for {instead}",
            got=at,
        )
