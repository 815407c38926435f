"""What a request's body says, and how an answer is written, for the routes of our own.

A body is JSON or msgpack ({"inputs": rows}, or {"inputs": {name: rows, …}}), raw little-endian
numbers of the one input, an image, or CSV. In msgpack a tensor may also be {"dtype", "shape",
"data": bytes}. Answers are JSON, msgpack, or the raw numbers of the first output.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import math
import struct
import types
import zlib
from collections.abc import Awaitable, Callable, Generator, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import msgpack
import numpy as np
import orjson
from starlette.requests import Request

from tinygrad_ish.deploy.graph import ProgramError
from tinygrad_ish.deploy.inputs import InputError, decode
from tinygrad_ish.deploy.runtime import ExportedProgram, Signature

from .errors import Disconnected, ServeError
from .large import LARGE, loads
from .settings import Settings

__all__ = ["accepted", "check_finite", "encode", "inputs_from", "inputs_of", "listable", "nulls",
           "outputs_by_name", "parsed", "read_body", "take", "unpack", "values"]  # fmt: skip

JSON, MSGPACK, RAW = "application/json", "application/msgpack", "application/octet-stream"
FORMATS = [JSON, MSGPACK, RAW]  # of answers
DEPTH = 64  # of nested lists that are looked into for what is wrong
LOOKED_AT = 2**20  # items, or bytes, that are
STRUCT = "efdbBhHiIlLqQ"  # dtypes whose letter is that of struct too
DTYPES = ["float16", "float32", "float64", "bool", "int8", "uint8", "int16", "uint16", "int32",
          "uint32", "int64", "uint64"]  # fmt: skip
PACKED = 4 * 2**10  # bytes of a compressed body that are unpacked quickly, whatever is in them
_decoder = ThreadPoolExecutor(1, "decoder")
T = TypeVar("T")


# --- reading -----------------------------------------------------------------------------------


def header(request: Request, name: bytes, default: str = "") -> str:
    """A header, by its name in small letters; Starlette's headers take four times as long."""
    for key, value in request.scope["headers"]:
        if key == name:
            return str(value, "latin-1")
    return default


async def read_body(request: Request, settings: Settings) -> bytes:
    """The body, unpacked if it is compressed. Raises ServeError for one that is too large or too
    slow, before it is held."""
    length = header(request, b"content-length", "0")
    if not length.isdecimal():
        raise ServeError("bad_request", "Content-Length: expected a number", got=length[:50])
    if len(length) > 18 or int(length) > settings.max_body:
        raise _too_large(settings.max_body, length[:50])
    deadline = asyncio.get_running_loop().time() + settings.body_timeout
    message = await _received(request, deadline)
    body = message.get("body", b"")
    if message.get("more_body", False):
        parts = bytearray(body)
        while message.get("more_body", False) and len(parts) <= settings.max_body:
            message = await _received(request, deadline)
            parts += message.get("body", b"")
        body = bytes(parts)
    if len(body) > settings.max_body:
        raise _too_large(settings.max_body, f"{len(body)} so far")
    encoding = header(request, b"content-encoding", "identity").strip().lower()
    if encoding == "identity":
        return body
    if len(body) <= PACKED:
        return _unpacked(body, encoding, settings.max_body)
    return await aside(settings.timeout, _unpacked, body, encoding, settings.max_body)


async def _received(request: Request, deadline: float) -> Mapping[str, Any]:
    """The next message; a body must not take longer than until the deadline."""
    steps = request.receive().__await__()
    try:
        waits_for = next(steps)
    except StopIteration as there:  # as a rule: then no clock is needed
        message = there.value
    else:
        message = await _in_time(_rest(steps, waits_for), deadline)
    if message["type"] == "http.disconnect":
        raise Disconnected
    received: Mapping[str, Any] = message
    return received


@types.coroutine
def _rest(steps: Any, waits_for: Any) -> Generator[Any, Any, Any]:
    """What is left of an awaitable, once it waits."""
    try:
        yield waits_for
    except BaseException:  # the task is cancelled
        steps.close()
        raise
    return (yield from steps)


async def _in_time(message: Awaitable[Any], deadline: float) -> Any:
    task, loop = asyncio.current_task(), asyncio.get_running_loop()
    assert task is not None
    late = False

    def cancel() -> None:
        nonlocal late
        late = True
        task.cancel()

    timer = loop.call_at(deadline, cancel)
    try:
        return await message
    except asyncio.CancelledError:
        if not late:
            raise
        if hasattr(task, "uncancel"):
            task.uncancel()
        headers = {"Connection": "close"}
        raise ServeError("request_timeout", "the body came too slowly", headers=headers) from None
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
    return ServeError(
        "too_large", f"the body may have {limit} bytes", expected=limit, got=got,
        headers={"Connection": "close"},
    )  # fmt: skip


async def inputs_from(server: Any, request: Request, program: ExportedProgram) -> list[np.ndarray]:
    """The program's inputs from a request. Raises ServeError."""
    settings = server.settings
    body = await read_body(request, settings)
    content_type = header(request, b"content-type")
    return await parsed(server, request, body, inputs_of, program, body, content_type, settings)


async def parsed(
    server: Any,
    request: Request,
    body: bytes,
    work: Callable[..., T],
    *args: Any,
    slow: bool = False,
) -> T:
    """What ``work(*args)`` reads out of a request's body: here if that is quick, else ``aside``."""
    slow = slow or len(body) >= LARGE
    if not slow and not header(request, b"content-type").startswith(("image/", "text/")):
        return work(*args)
    return await aside(server.timeout(request), work, *args)


async def aside(seconds: float, work: Callable[..., T], *args: Any) -> T:
    """What a body says, by work that takes its time (large JSON, Pillow, csv), in a thread; others
    go on meanwhile. Raises ServeError after so many seconds, and what the work raises."""
    task = asyncio.get_running_loop().run_in_executor(_decoder, work, *args)
    try:
        return await asyncio.wait_for(task, seconds)
    except asyncio.TimeoutError:
        raise ServeError("deadline", "the body was not decoded within the deadline") from None


def inputs_of(
    program: ExportedProgram, body: bytes, content_type: str, settings: Settings
) -> list[np.ndarray]:
    """The program's inputs from a body. Raises ServeError."""
    kind, _, parameters = content_type.partition(";")
    kind = kind.strip().lower() or JSON
    if kind == RAW:
        return [_raw(program, body)]
    if kind.startswith("image/") or kind == "text/csv":
        try:
            rows, _ = decode(program, body)
        except InputError as error:
            raise ServeError("bad_input", f"the body: {error}") from None
        return [rows]
    if kind not in (JSON, MSGPACK, "application/x-msgpack"):
        raise ServeError(
            "unsupported_media_type", f"Content-Type: {kind[:100]!r} is not taken",
            expected=[JSON, MSGPACK, RAW, "image/png", "image/jpeg", "text/csv"], got=kind[:100],
        )  # fmt: skip
    document = unpack(body, kind)
    given = named_inputs(program, document)
    if len(document) > 1:
        others = sorted(str(key)[:50] for key in document if key != "inputs")
        raise ServeError(
            "bad_request", "the body has unknown keys", expected=["inputs"], got=others[:20]
        )
    return take(program, given, settings, nulls(parameters))


def unpack(body: bytes, kind: str = JSON) -> Any:
    """What a JSON or msgpack body holds. Raises ServeError."""
    try:
        if kind == JSON:
            return loads(body) if len(body) >= LARGE else orjson.loads(body)
        return msgpack.unpackb(body, strict_map_key=True)
    except (ValueError, msgpack.UnpackException, RecursionError) as error:
        name = "JSON" if kind == JSON else "msgpack"
        where = _not_finite(body) if kind == JSON else ""
        raise ServeError("bad_request", f"the body is not valid {name}: {error}{where}") from None


def _not_finite(body: bytes) -> str:
    """Where a body that is no JSON has a NaN or an infinity, if that is what is wrong with it."""
    try:
        leaves = _leaves(json.loads(body) if len(body) <= LOOKED_AT else None)
    except (ValueError, RecursionError):
        return ""
    for at, x in leaves:
        if isinstance(x, float) and not math.isfinite(x):
            return (
                f"; it has {x} at {list(at)}, and JSON no such number: write null, with "
                f"Content-Type: {JSON}; nan=null, or send {MSGPACK}"
            )
    return ""


def _leaves(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """What lists and objects hold, with the place of each."""
    if not isinstance(value, (dict, list)) or not value or len(at) >= DEPTH:
        yield at, value
        return
    for key, item in value.items() if isinstance(value, dict) else enumerate(value):
        yield from _leaves(item, (*at, key))


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
    program: ExportedProgram, given: Mapping[str, Any], settings: Settings, nulls: bool = False
) -> list[np.ndarray]:
    """Named values as the program's input arrays, all checked. With ``nulls``, None among floats
    is NaN. Raises ServeError."""
    names = [s.name for s in program.inputs]
    if set(given) != set(names):
        raise ServeError(
            "bad_input", "the inputs' names are others", expected=names,
            got=sorted(str(name)[:100] for name in given)[:100],
        )  # fmt: skip
    arrays = [values(given[s.name], s, nulls) for s in program.inputs]
    if sum([x.size for x in arrays]) > settings.max_elements:
        raise ServeError("too_large", "too many numbers", expected=settings.max_elements)
    try:
        return program.take(*arrays)
    except ProgramError as error:
        raise ServeError("bad_input", str(error)) from None


def values(value: Any, signature: Signature, nulls: bool = False) -> np.ndarray:
    """An input's numbers as an array, of whatever shape they have. Raises ServeError."""
    name, dtype = signature.name, signature.dtype
    if isinstance(value, dict):
        value = _tensor(value, name)
        if value.dtype == dtype:
            return value
    found = _quick(value, dtype)
    if found is None:
        found = _slow(value, signature, nulls)
    if not finite(found):
        given = np.asarray(value, np.float64)  # None is NaN
        too_large = np.isfinite(given) & ~np.isfinite(found)
        if too_large.any():
            at = [int(n) for n in np.argwhere(too_large)[0]]
            raise ServeError(
                "bad_input", f"input {name}: {given[tuple(at)]} at {at} is more than {dtype} holds"
            )
    return found


def _quick(value: Any, dtype: np.dtype) -> np.ndarray | None:
    """Nested lists of numbers as an array of this dtype, at half the price of np.asarray, which
    moreover takes a string for a number. None for all else."""
    code = dtype.char
    if code not in STRUCT or type(value) is not list:
        return None
    shape = [len(value)]
    try:
        while type(value[0]) is list:
            lengths = set(map(len, value))
            if len(lengths) > 1 or set(map(type, value)) != {list}:
                return None
            shape.append(lengths.pop())
            value = list(itertools.chain.from_iterable(value)) if len(value) > 1 else value[0]
        packed = struct.pack(f"{len(value)}{code}", *value)
        return np.frombuffer(packed, dtype).reshape(shape)
    except (TypeError, ValueError, OverflowError, IndexError, struct.error):
        return None


def _slow(value: Any, signature: Signature, nulls: bool) -> np.ndarray:
    """Whatever else may be numbers; a ServeError that says where it is none."""
    name, dtype = signature.name, signature.dtype
    try:
        found = np.asarray(value)
    except (ValueError, OverflowError, RecursionError):
        found = None
    if found is None or found.dtype.kind not in "biuf":
        taken = {int, float, bool, type(None) if nulls and dtype.kind == "f" else bool}
        for at, x in itertools.islice(_leaves(value), LOOKED_AT):
            if type(x) not in taken or set(map(type, at)) - {int}:
                raise _no_number(name, at, x)
        if found is None or found.dtype != object:
            raise ServeError("bad_input", f"input {name}: its rows differ in length")
        found = found.astype(np.float64)  # None is NaN
    if dtype.kind != "f" or found.dtype.kind == "b":
        return found
    with np.errstate(over="ignore"):
        return found.astype(dtype)


def _no_number(name: str, at: tuple[Any, ...], x: Any) -> ServeError:
    place = list(at)
    if x is None:
        hint = f"; where it stands for NaN, send Content-Type: {JSON}; nan=null"
        return ServeError("bad_input", f"input {name}: null at {place}{hint}", got=place)
    kind: dict[Any, str] = {
        str: "a string",
        bytes: "bytes",
        dict: "an object",
        list: "a list",
        np.ndarray: "a list",
    }
    what = kind.get(type(x), type(x).__name__)
    return ServeError(
        "bad_input", f"input {name}: expected a number at {place}, got {what}", got=place
    )


def _tensor(value: dict[Any, Any], name: str) -> np.ndarray:
    """{"dtype", "shape", "data": bytes} of msgpack."""
    dtype, shape, data = (value.get(key) for key in ("dtype", "shape", "data"))
    good = isinstance(data, bytes) and isinstance(shape, list) and dtype in DTYPES
    if not good or not all(type(n) is int and 0 <= n < 2**31 for n in shape or ()):
        raise ServeError(
            "bad_input", f"input {name}: expected dtype, shape and data (bytes)",
            expected={"dtype": DTYPES, "shape": "ints", "data": "bytes"},
        )  # fmt: skip
    assert isinstance(dtype, str) and isinstance(shape, list) and isinstance(data, bytes)
    if len(shape) > 32 or math.prod(shape) * np.dtype(dtype).itemsize != len(data):
        raise ServeError(
            "bad_input", f"input {name}: {len(data)} bytes are not {dtype} of shape {shape[:33]}"
        )
    return np.frombuffer(data, np.dtype(dtype).newbyteorder("<")).reshape(shape)


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
    if accept in FORMATS:
        return accept
    if accept in ("*/*", ""):
        return JSON
    weights = {}
    for part in accept.lower().split(","):
        kind, *parameters = [piece.strip() for piece in part.split(";")]
        weights[kind.replace("/x-", "/")] = _weight(parameters)
    general = weights.get("application/*", weights.get("*/*", 0.0))
    best = max(FORMATS, key=lambda kind: weights.get(kind, general))
    if weights.get(best, general) <= 0:
        raise ServeError(
            "not_acceptable", "no format in Accept can be given", expected=FORMATS,
            got=accept[:200],
        )  # fmt: skip
    return best


def _weight(parameters: list[str]) -> float:
    """q=0.5 among the parameters of a format in Accept."""
    for text in parameters:
        if text.startswith("q="):
            try:
                return float(text[2:])
            except ValueError:
                return 0.0
    return 1.0


def nulls(accept: str) -> bool:
    """Whether null stands for a number that JSON has not: application/json; nan=null, in Accept
    for answers, in Content-Type for inputs."""
    return "nan=null" in accept


def outputs_by_name(
    program: ExportedProgram, outputs: tuple[np.ndarray, ...]
) -> dict[str, np.ndarray]:
    """The outputs with their names."""
    return {s.name: x for s, x in zip(program.outputs, outputs, strict=True)}


def encode(
    document: dict[str, Any], outputs: dict[str, np.ndarray], kind: str, nulls: bool = False
) -> bytes:
    """An answer in one of the formats; ``document`` is what goes with the outputs. Raises
    ServeError for a number that JSON cannot hold, unless with ``nulls`` it becomes null."""
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
    if not nulls:
        for name, x in outputs.items():
            check_finite(name, x)
    return orjson.dumps(
        {**document, "outputs": {name: listable(x) for name, x in outputs.items()}},
        option=orjson.OPT_SERIALIZE_NUMPY,
    )


def listable(x: np.ndarray) -> Any:
    """An output as orjson writes it."""
    return x.tolist() if x.dtype == np.float16 or not x.ndim else np.ascontiguousarray(x)


def finite(x: np.ndarray) -> bool:
    """Whether no element is NaN or infinite."""
    if x.dtype.char in "fd" and math.isfinite(np.vdot(x, x)):
        return True  # told at a third of the price; a square may be infinite where x is not
    return x.dtype.kind != "f" or bool(np.isfinite(x).all())


def check_finite(name: str, x: np.ndarray, instead: str = f"{MSGPACK} or {RAW}") -> None:
    """Raise ServeError for a number that JSON cannot hold; ``instead`` is what could."""
    if not finite(x):
        at = [int(n) for n in np.argwhere(~np.isfinite(x))[0]]
        raise ServeError(
            "not_acceptable",
            f"output {name} is {x[tuple(at)]} at {at}, which JSON cannot hold; ask for {instead}",
            got=at,
        )
