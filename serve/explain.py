"""Why a model says what it says: how much each number of the input did for one of its scores.

``gradient`` is ∂score/∂input. ``integrated_gradients`` (M. Sundararajan, A. Taly, Q. Yan,
"Axiomatic attribution for deep networks", 2017) is (x − b) · ∫₀¹ ∂score/∂input (b + t (x − b)) dt
for a baseline b, by the midpoint rule; over all of an input it sums to score(x) − score(b), and how
far it is from that stands in the answer. Both are of the scores before the postprocessing, with
respect to the input after the preprocessing, as the gradient program of the export gives them.

The compute thread takes the steps in chunks, so that other requests come in between.
"""

from __future__ import annotations

import asyncio
import math
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import msgpack
import numpy as np
import orjson
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from tinygrad_ish.deploy.graph import Graph
from tinygrad_ish.deploy.runtime import ExportedProgram, Runner

from . import bodies
from .app import Endpoint, Server, requested
from .errors import Disconnected, ServeError
from .models import Version

__all__ = ["routes"]

METHODS = ("integrated_gradients", "gradient")
BASELINES = ("prepared", "input")
OPTIONS = ("method", "target", "steps", "baseline")
STEPS, MOST_STEPS = 64, 512
MOST_ROWS = 64
AT_ONCE = 64  # rows times steps in one run of the gradient program, and how many numbers
NUMBERS = 2**22
WAITING = 8  # explanations under way; more are refused
# Kernels of a preprocessing whose result has the elements of the image in the same order.
IN_PLACE = {"add", "sub", "mul", "div", "pow", "neg", "abs", "sqrt", "exp", "log", "maximum",
            "minimum", "cast", "copy", "reshape", "tanh", "sigmoid"}  # fmt: skip

Arrays = list[np.ndarray]
T = TypeVar("T")


@dataclass
class Asked:
    """What a request asks for, checked but for the target."""

    method: str = METHODS[0]
    target: Any = None  # a class, by its name or number, or one for each row
    steps: int = STEPS
    baseline: Any = BASELINES[0]  # zeros after or before the preprocessing, or inputs

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise _refused("method", f"one of {', '.join(METHODS)}", self.method)
        try:
            steps = int(self.steps)
        except (TypeError, ValueError, OverflowError):
            steps = 0
        if isinstance(self.steps, (bool, float)) or not 1 <= steps <= MOST_STEPS:
            raise _refused("steps", f"a whole number, 1 to {MOST_STEPS}", self.steps)
        self.steps = steps
        if isinstance(self.baseline, str) and self.baseline not in BASELINES:
            raise _refused("baseline", f"{' or '.join(BASELINES)}, or inputs", self.baseline)


def _refused(option: str, expected: str, got: Any) -> ServeError:
    shown = repr(got)[:100]
    return ServeError(
        "bad_request", f"{option}: expected {expected}, got {shown}", expected=expected, got=shown
    )


# --- the route ---------------------------------------------------------------------------------


async def explain(server: Server, request: Request) -> Response:
    """The attributions of the inputs in the body, for one class of each row."""
    kind = bodies.accepted(request.headers.get("accept", ""))
    version = await requested(server, request)
    program = _explainable(version)
    body = await bodies.read_body(request, server.settings)
    inputs, asked, baselines = await bodies.parsed(
        server, request, body, _read, request, program, body, server.settings
    )
    if not 0 < len(inputs[0]) <= MOST_ROWS:
        raise ServeError(
            "too_large" if len(inputs[0]) else "bad_input",
            f"{len(inputs[0])} rows, and one request explains 1 to {MOST_ROWS}",
            expected=MOST_ROWS, got=len(inputs[0]),
        )  # fmt: skip
    turns, limit = _Turns(server, request), server.timeout(request)
    try:
        async with turns:
            work = _explained(turns, program, version.batchable, inputs, baselines, asked)
            document, attributions = await asyncio.wait_for(work, limit)
    except asyncio.TimeoutError:
        raise ServeError("deadline", "the explanation was not ready in time") from None
    except ValueError as error:  # a kernel refuses values that it cannot take
        raise ServeError("bad_input", str(error)) from None
    about = {"model": version.name, "version": version.number, **document}
    return Response(_encode(about, attributions, kind), media_type=kind)


def _explainable(version: Version) -> ExportedProgram:
    program = version.program
    assert program is not None
    if program.gradient_graph is None:
        raise ServeError(
            "not_explainable",
            f"model {version.name} {version.number} has no gradient program; export it with "
            "gradient=True",
        )
    if any(s.shape[:1] != (None,) for s in program.inputs):
        raise ServeError("not_explainable", "an input of the model has no row for each question")
    return program


def _read(
    request: Request, program: ExportedProgram, body: bytes, settings: Any
) -> tuple[Arrays, Asked, Arrays | None]:
    """The inputs, the options (of a JSON or msgpack body, or of the query, which is stronger), and
    the baselines."""
    content_type = request.headers.get("content-type", "")
    kind = content_type.partition(";")[0].strip().lower() or bodies.JSON
    options: dict[str, Any] = {}
    if kind in (bodies.JSON, bodies.MSGPACK, "application/x-msgpack"):
        document = bodies.unpack(body, kind)
        inputs = bodies.take(program, bodies.named_inputs(program, document), settings)
        unknown = sorted(map(str, set(document) - {"inputs", *OPTIONS}))
        if unknown:
            raise _refused("the body", f"the keys inputs, {', '.join(OPTIONS)}", unknown)
        options = {name: document[name] for name in OPTIONS if document.get(name) is not None}
    else:
        inputs = bodies.inputs_of(program, body, content_type, settings)
    for name, value in request.query_params.items():
        if name not in OPTIONS:
            raise _refused("the query", f"only {', '.join(OPTIONS)}", name)
        options[name] = value
    asked = Asked(**options)
    return inputs, asked, _baselines(program, asked, inputs, settings)


def _baselines(
    program: ExportedProgram, asked: Asked, inputs: Arrays, settings: Any
) -> Arrays | None:
    """What the path begins at, before the preprocessing; None is zeros after it."""
    rows = len(inputs[0])
    if isinstance(asked.baseline, str):
        return None if asked.baseline == BASELINES[0] else [np.zeros_like(x) for x in inputs]
    named = bodies.named_inputs(program, {"inputs": asked.baseline})
    found = bodies.take(program, named, settings)
    if len(found[0]) not in (1, rows):
        raise _refused("baseline", f"1 row or {rows}", f"{len(found[0])} rows")
    return [np.repeat(x, rows // len(x), 0) for x in found]


class _Turns:
    """Calls in the compute thread, one after the other, for a request whose client is still
    there; few requests at a time."""

    def __init__(self, server: Server, request: Request) -> None:
        self.server = server
        self.request = request

    async def __aenter__(self) -> None:
        waiting = _under_way.get(self.server, 0)
        if waiting >= WAITING:
            raise ServeError(
                "overloaded", f"{waiting} explanations are under way", headers={"Retry-After": "1"}
            )
        _under_way[self.server] = waiting + 1

    async def __aexit__(self, *raised: object) -> None:
        _under_way[self.server] -= 1

    async def __call__(self, work: Callable[..., T], *args: Any) -> T:
        if await self.request.is_disconnected():
            raise Disconnected
        executor = self.server.catalog._compute
        return await asyncio.get_running_loop().run_in_executor(executor, work, *args)


_under_way: weakref.WeakKeyDictionary[Any, int] = weakref.WeakKeyDictionary()


async def _explained(
    turns: _Turns,
    program: ExportedProgram,
    batchable: bool,
    inputs: Arrays,
    baselines: Arrays | None,
    asked: Asked,
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    answers = (await turns(program.run, inputs))[0]
    targets = _targets(program, asked.target, answers)
    weight = _weight(program, targets)
    prepared = await turns(_prepared, program, inputs)
    document: dict[str, Any] = {"method": asked.method, "target": targets}
    if program.labels is not None and weight.shape[1:] == (len(program.labels),):
        document["labels"] = [program.labels[k] for k in targets]
    if asked.method == "gradient":
        found = await turns(_gradient, program, prepared, weight)
        return document, _in_shape(program, found)
    begin = [np.zeros_like(x) for x in prepared]
    if baselines is not None:
        begin = await turns(_prepared, program, baselines)
    totals = [np.zeros(x.shape) for x in prepared]
    rows = len(weight)
    numbers = sum(x.size for x in prepared)
    size = max(1, min(AT_ONCE // rows, NUMBERS // max(numbers, 1))) if batchable else 1
    at = (np.arange(asked.steps) + 0.5) / asked.steps
    for start in range(0, asked.steps, size):
        part = await turns(_along, program, prepared, begin, weight, at[start : start + size])
        totals = [total + more for total, more in zip(totals, part, strict=True)]
    found = [
        ((x - b) * total / asked.steps).astype(x.dtype)
        for x, b, total in zip(prepared, begin, totals, strict=True)
    ]
    sums = sum(a.reshape(rows, -1).sum(1, dtype=np.float64) for a in found)
    gaps = await turns(_gaps, program, prepared, begin, weight, sums)
    return {**document, "steps": asked.steps, "completeness": gaps}, _in_shape(program, found)


# --- the mathematics ---------------------------------------------------------------------------


def _prepared(program: ExportedProgram, inputs: Arrays) -> Arrays:
    found = program.prepare(*inputs)
    return list(found) if isinstance(found, tuple) else [found]


def _gradient(program: ExportedProgram, prepared: Arrays, weight: np.ndarray) -> Arrays:
    found = program.gradient(*prepared, weight=weight)
    return list(found) if isinstance(found, tuple) else [found]


def _along(
    program: ExportedProgram, x: Arrays, begin: Arrays, weight: np.ndarray, at: np.ndarray
) -> Arrays:
    """Σ_t ∂score/∂input (b + t (x − b)) over some t, all in one run."""
    rows, count = len(weight), len(at)
    points = []
    for a, b in zip(x, begin, strict=True):
        t = at.astype(a.dtype).reshape(-1, *[1] * a.ndim)
        points.append((b + t * (a - b)).reshape(count * rows, *a.shape[1:]))
    weights = np.tile(weight, (count, *[1] * (weight.ndim - 1)))
    gradients = _gradient(program, points, weights)
    return [g.reshape(count, rows, *g.shape[1:]).sum(0, dtype=np.float64) for g in gradients]


def _gaps(
    program: ExportedProgram, x: Arrays, begin: Arrays, weight: np.ndarray, sums: np.ndarray
) -> list[dict[str, float]] | None:
    """For each row what the attributions sum to, what they should, and the difference."""
    scores = _scores_of(program)
    if scores is None:
        return None
    rises = _rises(scores, x, begin, weight)
    return [
        {"sum": float(s), "score_difference": float(d), "gap": float(s - d)}
        for s, d in zip(sums, rises, strict=True)
    ]


def _rises(scores: Runner, x: Arrays, begin: Arrays, weight: np.ndarray) -> np.ndarray:
    """score(x) − score(b) for each row."""
    axes = tuple(range(1, weight.ndim))
    above, below = (scores(arrays)[0].astype(np.float64) for arrays in (x, begin))
    rises: np.ndarray = ((above - below) * weight).sum(axes)
    return rises


def _weight(program: ExportedProgram, targets: list[int]) -> np.ndarray:
    """1 at each row's target, 0 elsewhere."""
    value = _weight_value(program)
    width = math.prod(value.at(1)[1:])
    bad = [k for k in targets if not 0 <= k < width]
    if bad:
        raise _refused("target", f"0 to {width - 1}", bad[0])
    weight = np.zeros((len(targets), width), value.dtype)
    weight[np.arange(len(targets)), targets] = 1
    return weight.reshape(len(targets), *value.at(1)[1:])


def _weight_value(program: ExportedProgram) -> Any:
    graph = program.gradient_graph
    assert graph is not None
    return graph.values[graph.inputs[-1]]


def _targets(program: ExportedProgram, asked: Any, answers: np.ndarray) -> list[int]:
    """The number of a score for each row: what is asked for, or the best answer's."""
    rows = len(answers)
    if asked is None:
        flat = answers.reshape(rows, -1)
        same = flat.shape[1] == math.prod(_weight_value(program).at(1)[1:])
        return flat.argmax(1).tolist() if same else [0] * rows
    each = asked if isinstance(asked, list) else [asked] * rows
    if len(each) != rows:
        raise _refused("target", f"one class, or {rows}", f"{len(each)} of them")
    return [_target(program.labels or [], one) for one in each]


def _target(labels: list[str], asked: Any) -> int:
    if isinstance(asked, str) and asked in labels:
        return labels.index(asked)
    if isinstance(asked, str) and asked.isascii() and asked.isdecimal() and len(asked) < 10:
        return int(asked)
    if type(asked) is not int:
        raise _refused("target", "the number of a score" + " or a label" * bool(labels), asked)
    return asked


def _in_shape(program: ExportedProgram, found: Arrays) -> dict[str, np.ndarray]:
    """The attributions by name. Those of the first input have its shape, where each number of it
    became one number for the model; else the shape of what the model takes."""
    first, prepare = program.inputs[0], program.prepare_graph
    shape: Any = (len(found[0]), *first.shape[1:])
    in_place = prepare is not None and all(n.kernel in IN_PLACE for n in prepare.nodes)
    if in_place and found[0].size == math.prod(shape):
        found = [found[0].reshape(shape), *found[1:]]
    return {s.name: x for s, x in zip(program.inputs, found, strict=True)}


# --- the scores --------------------------------------------------------------------------------

_scores: weakref.WeakKeyDictionary[ExportedProgram, Runner | None]
_scores = weakref.WeakKeyDictionary()


def _scores_of(program: ExportedProgram) -> Runner | None:
    """What gives the scores from the prepared inputs, or None if it was not found.

    A file holds the whole program and its gradient, not the model between preprocessing and
    postprocessing. It is the part of the program after the nodes of the preprocessing, up to some
    value of the shape of the scores: the one whose rise, from nothing to the file's own sample,
    is the integral of the gradient program along the way.
    """
    if program not in _scores:
        _scores[program] = _found(program)
    return _scores[program]


def _found(program: ExportedProgram) -> Runner | None:
    value = _weight_value(program)
    begin = _after_preparing(program)
    if begin is None:
        return None
    start, nodes = begin
    x = _prepared(program, [x[:1] for x in program.sample_inputs])
    zeros = [np.zeros_like(a) for a in x]
    weight = np.random.default_rng(0).uniform(0.5, 1.5, value.at(1)).astype(value.dtype)
    steps = (np.arange(AT_ONCE) + 0.5) / AT_ONCE
    means = [g / AT_ONCE for g in _along(program, x, zeros, weight, steps)]
    expected = sum(float((a * g).sum()) for a, g in zip(x, means, strict=True))
    graph = program.graph
    whole = graph.nodes[nodes:]
    for count in range(len(whole), 0, -1):
        for k in whole[count - 1].results:
            if k is None or (graph.values[k].dtype, graph.values[k].shape) != (
                value.dtype,
                value.shape,
            ):
                continue
            part = Graph(graph.values, start, [k], graph.constants, whole[:count])
            scores = Runner(part, program.backend)
            rise = float(_rises(scores, x, zeros, weight)[0])
            if abs(rise - expected) <= 0.03 * max(abs(rise), abs(expected)):
                return scores
    return None


def _after_preparing(program: ExportedProgram) -> tuple[list[int], int] | None:
    """The values of the whole program that are the prepared inputs, and how many of its first
    nodes make them. None if it does not begin as the preprocessing does."""
    graph, prepare = program.graph, program.prepare_graph
    if prepare is None or prepare.outputs[0] in prepare.inputs:
        return list(graph.inputs), 0
    count = len(prepare.nodes)
    if [n.kernel for n in graph.nodes[:count]] != [n.kernel for n in prepare.nodes]:
        return None
    places = {k: (i, j) for i, n in enumerate(prepare.nodes) for j, k in enumerate(n.results)}
    i, j = places[prepare.outputs[0]]
    first = graph.nodes[i].results[j]
    if first is None or _reads_inside(graph, count, first):
        return None
    return [first, *graph.inputs[1:]], count


def _reads_inside(graph: Graph, count: int, first: int) -> bool:
    """Whether the model reads anything of the first ``count`` nodes but their result."""
    made = {k for n in graph.nodes[:count] for k in n.results} - {first}
    return any(made & set(n.reads()) for n in graph.nodes[count:])


# --- the answer --------------------------------------------------------------------------------


def _encode(document: dict[str, Any], attributions: dict[str, np.ndarray], kind: str) -> bytes:
    if kind == bodies.RAW:
        return bodies.encode({}, attributions, kind)
    if kind == bodies.MSGPACK:
        tensors = msgpack.unpackb(bodies.encode({}, attributions, kind))["outputs"]
        packed: bytes = msgpack.packb({**document, "attributions": tensors})
        return packed
    for name, x in attributions.items():
        bodies.check_finite(f"of {name}", x)
    return orjson.dumps(
        {**document, "attributions": {k: bodies.listable(x) for k, x in attributions.items()}},
        option=orjson.OPT_SERIALIZE_NUMPY,
    )


def routes() -> list[BaseRoute]:
    """/explain, for the default model or a named one."""
    paths = ("/explain", "/models/{name}/explain", "/models/{name}/versions/{number}/explain")
    return [Route(path, Endpoint(explain, path), methods=["POST"]) for path in paths]
