"""From a model to a graph: its forward, recorded at several batch sizes, and the file of it.

A recording is made of arrays with fixed shapes. Three of them, at batches of 2, 3 and 5 rows, must
be the same calls; an int that differs is slope · batch + offset if it is a dimension, and refused
if it is any other number. What is left is checked against the model itself at other batch sizes.
"""

from __future__ import annotations

import contextlib
import inspect
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from .. import autograd, program
from ..autograd import Array
from ..dtypes import SUPPORTED
from ..kernels import Backend
from ..nn.module import Module
from ..program import CompileError, Instruction, Recorder
from ..tensor import Tensor, as_tensor
from ..weights import StrPath, printable, write
from . import rules, runtime
from .graph import Dim, Graph, Node, ProgramError, Ref, Value, from_tree, is_text, to_tree

__all__ = ["export", "record"]

BATCHES = (2, 3, 5)
OTHERS = (1, 7)  # batches at which the graph must agree with the model
POST: dict[str, Callable[[Tensor], Tensor]] = {
    "softmax": lambda scores: scores.softmax(-1),
    "sigmoid": lambda scores: scores.sigmoid(),
}

Model = Callable[..., Any]


def export(
    model: Model,
    example: Any,
    path: StrPath,
    *,
    preprocess: Callable[[Any], Any] | None = None,
    postprocess: str | Callable[[Any], Any] | None = None,
    inputs: Sequence[str] | None = None,
    outputs: Sequence[str] | None = None,
    features: Sequence[str] | None = None,
    labels: Sequence[str] | None = None,
    top_k: int | None = None,
    gradient: bool = False,
    metadata: dict[str, Any] | None = None,
) -> None:
    """Write a model to ``path`` as a program: one file that ``load_program`` runs without the code
    that made the model, with NumPy alone if need be.

    ``model`` is a Module, recorded as it is in ``eval()``, or a function of tensors; ``example`` a
    tensor or array of inputs, or a tuple of them, with the batch as first axis (a 0-d input has
    none). The program runs for any number of rows. ``preprocess`` (of the first input) and
    ``postprocess`` (of the first output; or "softmax", "sigmoid") become part of it.

    ``inputs`` and ``outputs`` name them (else as the forward and its dict of results do);
    ``features`` names the columns of a table (N, D), ``labels`` the classes of the first output
    (N, C), of which ``predict`` gives the ``top_k``. With ``gradient`` the program also holds the
    gradient of the model's first output with respect to the inputs. ``metadata`` is free: numbers,
    str, lists and dicts. Up to four rows of the example and the answers to them go into the file,
    so that ``load_program`` can check itself.

    Raises ProgramError, naming the line, for a model that reads values (``if x.sum() > 0``), draws
    random numbers, writes into its inputs or buffers, or computes a number from the batch size.
    """
    given = tensors_of(example, model)
    run = pipeline(model, preprocess, postprocess)
    names = _input_names(model, given) if inputs is None else list(inputs)
    graph = record(model, run, given, names, outputs)
    prepare = gradients = None
    if gradient:
        prepare, gradients = _record_gradient(model, preprocess, given, names)
    features = None if features is None else list(map(str, features))
    labels = None if labels is None else list(map(str, labels))
    runtime.check_names(graph, features, labels, top_k)
    runtime.check_companions(graph, prepare, gradients)
    backend = given[0].backend
    rows = [backend.to_numpy(_rows(x, min(runtime.SAMPLE_ROWS, len(x)))._array) if x.ndim else
            backend.to_numpy(x._array) for x in given]  # fmt: skip
    answers, prints = runtime.trace(runtime.Runner(graph, backend), rows)
    weights: list[np.ndarray] = []
    tree = {
        "program": to_tree(graph, weights),
        "prepare": None if prepare is None else to_tree(prepare, weights),
        "gradient": None if gradients is None else to_tree(gradients, weights),
        "weights": weights,
        "sample": {"inputs": rows, "outputs": answers, "prints": prints},
        "labels": labels,
        "features": features,
        "top_k": top_k,
    }
    for part in (tree["program"], tree["prepare"], tree["gradient"]):
        if part is not None:
            from_tree(part, weights)  # what a reader would refuse is not written
    write(tree, path, metadata, "program")


def record(
    model: Model,
    run: Callable[..., Any],
    example: Sequence[Tensor],
    inputs: Sequence[str] | None = None,
    outputs: Sequence[str] | None = None,
) -> Graph:
    """The graph of ``run``, a function of tensors that calls ``model``, for any batch size; checked
    against ``run`` itself. Raises ProgramError."""
    with _evaluating(model), autograd.no_grad():
        names = _input_names(model, example) if inputs is None else list(inputs)
        _distinct("inputs", names, len(example))
        graph = _record(run, example, names, outputs, model)
        for batch in OTHERS:
            _check_against(graph, run, example, batch)
    return graph


def _record_gradient(
    model: Model,
    preprocess: Callable[[Any], Any] | None,
    given: list[Tensor],
    names: Sequence[str],
) -> tuple[Graph | None, Graph]:
    """The preprocessing alone, if there is any, and the gradient of Σ weight · scores by what the
    model is given then, as a graph of (the model's inputs, weight)."""
    prepare = None if preprocess is None else record(model, preprocess, given[:1], names[:1])
    with _evaluating(model), _without_parameter_gradients(model), autograd.no_grad():
        prepared = [given[0] if preprocess is None else preprocess(given[0]), *given[1:]]
        for name, x in zip(names, prepared, strict=True):
            if x.dtype.kind != "f":
                raise ProgramError(
                    f"gradient: {name} is {x.dtype.name} as the model is given it, and integers "
                    "have no gradient; export with gradient=False"
                )
        scores = _first(model(*prepared))
        if not isinstance(scores, Tensor) or not scores.ndim or len(scores) != len(given[0]):
            raise ProgramError("gradient: the model's first output must have a row for each input")
        example = [*prepared, scores * 0 + 1]

        def gradient(*tensors: Tensor) -> tuple[Tensor, ...]:
            *xs, weight = tensors
            leaves = [x.detach().requires_grad_() for x in xs]
            with autograd.enable_grad():
                scores = _first(model(*leaves))
                if not scores.requires_grad:
                    raise ProgramError(
                        "gradient: the first output does not depend on the inputs, or through "
                        "integers and bools alone; export with gradient=False"
                    )
                scores.backward(weight)
            found = [leaf.grad for leaf in leaves]
            for name, g in zip(names, found, strict=True):
                if g is None:
                    raise ProgramError(f"gradient: the first output does not depend on {name}")
            return tuple(g for g in found if g is not None)

        grads = [f"{name}.grad" for name in names]
        graph = _record(gradient, example, [*names, "weight"], grads, model)
        for batch in OTHERS:
            _check_against(graph, gradient, example, batch)
    return prepare, graph


def _first(result: Any) -> Tensor:
    if isinstance(result, dict):
        result = list(result.values())
    return result[0] if isinstance(result, (tuple, list)) else result


def pipeline(
    model: Model,
    preprocess: Callable[[Any], Any] | None,
    postprocess: str | Callable[[Any], Any] | None,
) -> Callable[..., Any]:
    """The model with what comes before its first input and after its first output."""
    if isinstance(postprocess, str):
        if postprocess not in POST:
            raise ProgramError(
                f"postprocess: expected a function of a tensor or one of {', '.join(POST)}; got "
                f"{postprocess!r}"
            )
        postprocess = POST[postprocess]
    after = postprocess or (lambda scores: scores)

    def run(first: Tensor, *others: Tensor) -> Any:
        result = model(first if preprocess is None else preprocess(first), *others)
        if isinstance(result, dict) and result:
            name = next(iter(result))
            return {**result, name: after(result[name])}
        if isinstance(result, (tuple, list)) and result:
            return (after(result[0]), *result[1:])
        return after(result)

    return run


def tensors_of(example: Any, model: Model) -> list[Tensor]:
    """The inputs in an example, arrays among them on the device of the model's parameters.
    Raises ProgramError unless they have rows, of the same number."""
    parameters = model.parameters() if isinstance(model, Module) else ()
    device = next((p.backend.name for p in parameters), None)
    given = [
        x if isinstance(x, Tensor) else as_tensor(x, device=device)
        for x in (example if isinstance(example, (tuple, list)) else (example,))
    ]
    if not given:
        raise ProgramError("example: expected a tensor or a tuple of tensors, got none")
    rows = {len(x) for x in given if x.ndim}
    if len(rows) != 1 or rows == {0}:
        shapes = ", ".join(str(list(x.shape)) for x in given)
        raise ProgramError(
            f"example: expected inputs with the same number of rows, at least one, as their first "
            f"axis; got {shapes}"
        )
    return given


def _rows(x: Tensor, count: int) -> Tensor:
    """So many rows of x, from the first again where it has fewer; a 0-d x as it is."""
    if not x.ndim:
        return x
    index = np.arange(count) % len(x)
    return Tensor(x.backend.asarray(x._array[index]), x.backend)


@contextlib.contextmanager
def _evaluating(model: Model) -> Iterator[None]:
    """The model in eval(), each of its modules as it was afterwards."""
    modules = list(model.modules()) if isinstance(model, Module) else []
    before = [m.training for m in modules]
    try:
        for m in modules:
            m.training = False
        yield
    finally:
        for m, training in zip(modules, before, strict=True):
            m.training = training


@contextlib.contextmanager
def _without_parameter_gradients(model: Model) -> Iterator[None]:
    parameters = list(model.parameters()) if isinstance(model, Module) else []
    before = [p.requires_grad for p in parameters]
    try:
        for p in parameters:
            p.requires_grad_(False)
        yield
    finally:
        for p, wanted in zip(parameters, before, strict=True):
            p.requires_grad_(wanted)


def _input_names(model: Model, example: Sequence[Tensor]) -> list[str]:
    function = model.forward if isinstance(model, Module) else model
    with contextlib.suppress(TypeError, ValueError):  # a built-in has no signature
        kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
        names = [p.name for p in inspect.signature(function).parameters.values() if p.kind in kinds]
        if len(names) >= len(example):
            return names[: len(example)]
    return ["input"] if len(example) == 1 else [f"input{i}" for i in range(len(example))]


def _distinct(what: str, names: Sequence[str], count: int) -> None:
    good = all(type(name) is str and name and is_text(name) for name in names)
    if len(names) != count or len(set(names)) != count or not good:
        raise ProgramError(f"{what}: expected {count} different names, got {list(names)}")


# --- one recording -----------------------------------------------------------------------------


class _Tracer(Recorder):
    """A recorder that notes the line of each call, and takes nothing that a program cannot do."""

    def __init__(self, inputs: list[Array], backend: Backend) -> None:
        super().__init__(inputs, backend)
        self.lines: list[str] = []

    def called(self, name: str, function: Any, args: tuple[Any, ...], kwargs: Any) -> Any:
        result = super().called(name, function, args, kwargs)
        self.lines.append(program._line())
        if name not in rules.KERNELS:
            if name in ("draw", "dropout"):
                self.refuse(
                    "random numbers cannot be part of a program; a module that a function calls "
                    "must be in eval()"
                )
            self.refuse(f"the kernel {name} cannot be part of a program")
        return result

    def host(self, action: Callable[[], object], writes: tuple[Array, ...] = ()) -> None:
        self.refuse("random numbers and schedules cannot be part of a program")

    def reads_grad(self, leaf: Tensor) -> None:
        if not self.makes(leaf._array):
            self.refuse(
                "the gradient of a tensor from outside is asked for; give the Module itself, or "
                "call requires_grad_(False) on the parameters that the function uses"
            )
        super().reads_grad(leaf)

    def refuse(self, what: str) -> None:
        raise ProgramError(f"export: {what}, at {program._line()}")


def _trace(
    run: Callable[..., Any],
    inputs: list[Tensor],
    names: Sequence[str],
    outputs: Sequence[str] | None,
    model: Model,
) -> Graph:
    """One run as a graph with the shapes of these inputs."""
    program.refuse_inside()
    backend = inputs[0].backend
    own = [Tensor(backend.copy(x._array), backend) for x in inputs]
    tracer = _Tracer([x._array for x in own], backend)
    with program.alone():
        try:
            with autograd.recording(tracer), backend.observed(tracer.called):
                result = run(*own)
        except CompileError as error:
            raise ProgramError(str(error).replace("compile:", "export:", 1)) from None
        return _Builder(tracer, names, _parameter_names(model, tracer)).build(result, outputs)


def _parameter_names(model: Model, tracer: Recorder) -> dict[tuple[Any, ...], str]:
    """Names of parameters and buffers by their place in memory."""
    modules = [m for m, _ in tracer.modules.values()]
    names: dict[tuple[Any, ...], str] = {}
    for module in [model, *modules] if isinstance(model, Module) else modules:
        for name, t in (*module.named_parameters(), *module.named_buffers()):
            names.setdefault(program._place(t._array), name)
    return names


class _Builder:
    """Numbers the arrays of a recording as the values of a graph."""

    def __init__(
        self, tracer: _Tracer, names: Sequence[str], constants: dict[tuple[Any, ...], str]
    ) -> None:
        self.tracer = tracer
        self.graph = Graph()
        self._constants = constants
        self._numbers: dict[tuple[Any, ...], int] = {}
        self._made = {program._place(a): first for a, first in tracer.made}
        self._own: list[Array] = []  # memory of the run itself
        self._line = ""
        for x, name in zip(tracer.inputs, names, strict=True):
            self.graph.inputs.append(self._new(x, name))
            self._own.append(x)

    def build(self, result: Any, outputs: Sequence[str] | None) -> Graph:
        for step, line in zip(self.tracer.steps, self.tracer.lines, strict=True):
            assert isinstance(step, Instruction)
            self._line = line
            self._add(step)
        self._line = "the end of the forward"
        for name, tensor in _named_outputs(result, outputs):
            k = self._number(tensor._array)
            if k in self.graph.outputs or k in self.graph.inputs or k in self.graph.constants:
                k = self._copy(k, tensor._array)
            value = self.graph.values[k]
            self.graph.values[k] = Value(value.dtype, value.shape, name)
            self.graph.outputs.append(k)
        return self.graph

    def _add(self, step: Instruction) -> None:
        args = {name: self._argument(a) for name, a in step.args.items()}
        if step.kernel == "copy" and step.args["x"].shape != step.results[0].shape:
            args["x"] = Ref(self._expanded(args["x"], step.results[0]))
        for r in step.results:
            if r is not None and step.kernel not in program.VIEWS:
                self._check_write(r)
        results = tuple(None if r is None else self._new(r) for r in step.results)
        self.graph.nodes.append(Node(step.kernel, args, results, self._line))
        self._own += [r for r in step.results if r is not None]

    def _expanded(self, x: Ref, like: Array) -> int:
        """x broadcast to another shape, as a copy into memory that is there does it."""
        self.graph.values.append(Value(like.dtype, like.shape))
        new = len(self.graph.values) - 1
        self.graph.nodes.append(Node("expand", {"x": x, "shape": like.shape}, (new,), self._line))
        return new

    def _check_write(self, r: Array) -> None:
        """Refuse a write into memory that is known by other names too, or that outlives the run."""
        if program._place(r) in self.tracer.fresh:
            return
        if any(program._overlap(r, x) for x in self.tracer.inputs):
            self._refuse("the model writes into its input; work on x.clone()")
        known = (*self._own, *(a for a, _ in self.tracer.made))
        own = [x for x in known if program._overlap(r, x)]
        if not own:
            self._refuse("the model writes into a parameter, a buffer or a tensor from outside")
        if any(program._place(x) != program._place(r) for x in own):
            self._refuse(
                "the model writes into a part of a tensor; put the parts together with tg.cat or "
                "tg.where"
            )

    def _argument(self, a: Any) -> Any:
        if isinstance(a, np.generic):
            return a.item()
        if hasattr(a, "strides"):
            return Ref(self._number(a))
        if isinstance(a, tuple):
            return tuple(self._argument(x) for x in a)
        if isinstance(a, slice):
            return slice(*(self._argument(n) for n in (a.start, a.stop, a.step)))
        if isinstance(a, type) and issubclass(a, np.generic):
            return np.dtype(a)
        return a

    def _number(self, x: Array) -> int:
        k = self._numbers.get(program._place(x))
        return self._constant(x) if k is None else k

    def _constant(self, x: Array) -> int:
        place = program._place(x)
        if place not in self._made and any(program._overlap(x, own) for own in self._own):
            self._refuse("a tensor is read after a part of its memory was written")
        name = self._constants.get(place, "")
        k = self._new(x, name or f"constant{len(self.graph.constants)}")
        first = self._made.get(place, x)
        self.graph.constants[k] = np.asarray(self.tracer.backend.to_numpy(first), order="C")
        return k

    def _copy(self, k: int, x: Array) -> int:
        """An output that is an input, a constant or another output, as a value of its own."""
        value = self.graph.values[k]
        self.graph.values.append(Value(value.dtype, value.shape))
        new = len(self.graph.values) - 1
        self.graph.nodes.append(Node("copy", {"x": Ref(k)}, (new,)))
        return new

    def _new(self, x: Array, name: str = "") -> int:
        if x.dtype not in SUPPORTED:
            raise ProgramError(
                f"export: a program holds no {x.dtype.name}; export the model in float32, "
                "model.float(), and outside of autocast"
            )
        self.graph.values.append(Value(x.dtype, x.shape, name))
        k = len(self.graph.values) - 1
        self._numbers[program._place(x)] = k
        return k

    def _refuse(self, what: str) -> None:
        raise ProgramError(f"export: {what}, at {self._line}")


def _named_outputs(result: Any, names: Sequence[str] | None) -> list[tuple[str, Tensor]]:
    if isinstance(result, dict):
        _distinct("outputs", list(map(str, result)), len(result))
        found = {str(name): t for name, t in result.items()}
    else:
        several = list(result) if isinstance(result, (tuple, list)) else [result]
        single = len(several) == 1
        found = {"output" if single else f"output{i}": t for i, t in enumerate(several)}
    for name, t in found.items():
        if not isinstance(t, Tensor):
            raise ProgramError(
                f"export: a model gives tensors, in a tuple, list or dict; {name} is a "
                f"{type(t).__name__}"
            )
    if not found:
        raise ProgramError("export: the model gives no output")
    if names is not None:
        _distinct("outputs", names, len(found))
        return list(zip(names, found.values(), strict=True))
    return list(found.items())


# --- several recordings as one -----------------------------------------------------------------


def _record(
    run: Callable[..., Any],
    example: Sequence[Tensor],
    names: Sequence[str],
    outputs: Sequence[str] | None,
    model: Model,
) -> Graph:
    traces = [_trace(run, [_rows(x, n) for x in example], names, outputs, model) for n in BATCHES]
    graph = _Merger(traces).merge()
    _drop_identities(graph)
    _prune(graph)
    rules.check(graph)
    return graph


class _Merger:
    """Graphs of the same calls at BATCHES as one graph for any batch."""

    def __init__(self, graphs: list[Graph]) -> None:
        self.graphs = graphs
        self._line = ""

    def merge(self) -> Graph:
        first = self.graphs[0]
        self._check_same_calls()
        merged = Graph(inputs=first.inputs, outputs=first.outputs)
        makers = {k: n for n, node in enumerate(first.nodes) for k in node.results}
        for k, values in enumerate(zip(*(g.values for g in self.graphs), strict=True)):
            maker = first.nodes[makers[k]] if k in makers else None
            self._line = maker.line if maker else values[0].name
            what = f"the result of {maker.kernel}" if maker else f"{values[0].name}"
            if len({v.dtype for v in values}) > 1 or len({len(v.shape) for v in values}) > 1:
                self._refuse(f"{what} differs in dtype or dimensions between batch sizes")
            shape = tuple(self._dimension(what, sizes) for sizes in zip(*(v.shape for v in values)))
            merged.values.append(Value(values[0].dtype, shape, values[0].name))
        self._constants(merged)
        for nodes in zip(*(g.nodes for g in self.graphs), strict=True):
            self._line = nodes[0].line
            args = {
                name: self._argument(f"{name} of {nodes[0].kernel}", [n.args[name] for n in nodes])
                for name in nodes[0].args
            }
            merged.nodes.append(
                Node(nodes[0].kernel, args, nodes[0].results, _short(nodes[0].line))
            )
        return merged

    def _check_same_calls(self) -> None:
        first, *others = self.graphs
        for other in others:
            for a, b in zip(first.nodes, other.nodes, strict=False):
                self._line = a.line
                if (a.kernel, a.results, sorted(a.args)) != (b.kernel, b.results, sorted(b.args)):
                    self._refuse(
                        f"what is computed depends on the batch size: {a.kernel} for "
                        f"{BATCHES[0]} rows, {b.kernel} for another number"
                    )
            if len(first.nodes) != len(other.nodes) or first.outputs != other.outputs:
                self._refuse("how much is computed depends on the batch size")

    def _constants(self, merged: Graph) -> None:
        for k in self.graphs[0].constants:
            arrays = [g.constants.get(k) for g in self.graphs]
            value = merged.values[k]
            first = arrays[0]
            assert first is not None
            if all(a is not None and _same_bytes(a, first) for a in arrays):
                merged.constants[k] = first
                continue
            numbers = {x.tobytes() for a in arrays if a is not None for x in a.reshape(-1)}
            if any(a is None for a in arrays) or len(numbers) > 1:
                self._line = self._user(k)
                self._refuse(
                    f"{value.name} is made from the batch size or from values; make it from the "
                    "input with tensor operations"
                )
            # a batch of equal numbers, such as tg.zeros(len(x), 3)
            merged.values.append(Value(value.dtype, (), value.name))
            number = len(merged.values) - 1
            merged.values[k] = Value(value.dtype, value.shape)
            content = numbers.pop() if numbers else bytes(value.dtype.itemsize)
            merged.constants[number] = np.frombuffer(content, value.dtype).reshape(())
            args = {"x": Ref(number), "shape": value.shape}
            merged.nodes.append(Node("expand", args, (k,)))

    def _user(self, k: int) -> str:
        return next((n.line for n in self.graphs[0].nodes if k in n.reads()), "")

    def _argument(self, what: str, found: list[Any]) -> Any:
        first = found[0]
        if isinstance(first, tuple) and not isinstance(first, Ref):
            if len({len(f) if isinstance(f, tuple) else -1 for f in found}) != 1:
                self._refuse(f"{what} depends on the batch size")
            return tuple(self._argument(what, list(parts)) for parts in zip(*found, strict=True))
        if isinstance(first, slice) and all(isinstance(f, slice) for f in found):
            ends = [[f.start for f in found], [f.stop for f in found], [f.step for f in found]]
            return slice(*(self._argument(what, e) for e in ends))
        if all(type(f) is type(first) and _same_number(f, first) for f in found):
            return first
        if what.partition(" of ")[0] in ("shape", "index") and all(type(f) is int for f in found):
            return self._dimension(what, found)
        self._refuse(
            f"{what} is {first} for {BATCHES[0]} rows and {found[1]} for {BATCHES[1]}: a number "
            "that depends on the batch size; compute it with tensor operations (mean, sum)"
        )
        return None

    def _dimension(self, what: str, sizes: Sequence[int]) -> int | Dim:
        slope, rest = divmod(sizes[1] - sizes[0], BATCHES[1] - BATCHES[0])
        offset = sizes[0] - slope * BATCHES[0]
        fits = all(slope * n + offset == size for n, size in zip(BATCHES, sizes, strict=True))
        if rest or not fits:
            self._refuse(
                f"{what} has a dimension of {', '.join(map(str, sizes))} for batches of "
                f"{', '.join(map(str, BATCHES))}: expected a · batch + b"
            )
        return Dim(slope, offset) if slope else sizes[0]

    def _refuse(self, what: str) -> None:
        raise ProgramError(f"export: {what}, at {self._line}")


def _same_bytes(a: np.ndarray, b: np.ndarray) -> bool:
    if a.shape != b.shape or a.__array_interface__["data"] == b.__array_interface__["data"]:
        return a.shape == b.shape
    return a.tobytes() == b.tobytes()


def _same_number(a: Any, b: Any) -> bool:
    return a == b or (isinstance(a, float) and a != a and b != b)


def _short(line: str) -> str:
    """model.py:12: the folders of the machine that exports are nobody's business."""
    return printable(os.path.basename(line))


def _drop_identities(graph: Graph) -> None:
    """Let a value stand for its reshapes to the shape that it has."""
    same: dict[int, int] = {}
    kept = []
    for node in graph.nodes:
        args = {name: _renumbered(a, same) for name, a in node.args.items()}
        node = Node(node.kernel, args, node.results, node.line)
        result = node.results[0]
        if node.kernel == "reshape" and result is not None:
            x = args["x"].value
            if graph.values[x].shape == graph.values[result].shape and _stands_for(
                graph, x, result
            ):
                same[result] = x
                continue
        kept.append(node)
    graph.nodes = kept


def _stands_for(graph: Graph, x: int, result: int) -> bool:
    """Let x be the output that the result is, if it is one; False where x has a part of its own."""
    if result in graph.outputs:
        if x in graph.inputs or x in graph.constants or x in graph.outputs:
            return False
        graph.values[x] = graph.values[result]
        graph.outputs = [x if k == result else k for k in graph.outputs]
    return True


def _renumbered(a: Any, numbers: dict[int, int]) -> Any:
    """An argument with other numbers for its values."""
    if isinstance(a, Ref):
        return Ref(numbers.get(a.value, a.value))
    if isinstance(a, tuple) and not isinstance(a, Dim):
        return tuple(_renumbered(x, numbers) for x in a)
    return a


def _prune(graph: Graph) -> None:
    """Leave out nodes whose results nobody needs, and values that then nobody has."""
    needed = set(graph.outputs)
    kept: list[Node] = []
    for node in reversed(graph.nodes):
        if any(k in needed for k in node.results):
            kept.insert(0, node)
            needed.update(node.reads())
    used = needed | set(graph.inputs) | {k for n in kept for k in n.results if k is not None}
    numbers = {k: n for n, k in enumerate(sorted(used))}
    graph.values = [graph.values[k] for k in sorted(used)]
    graph.inputs = [numbers[k] for k in graph.inputs]
    graph.outputs = [numbers[k] for k in graph.outputs]
    graph.constants = {numbers[k]: a for k, a in graph.constants.items() if k in used}
    graph.nodes = [
        Node(
            n.kernel,
            {name: _renumbered(a, numbers) for name, a in n.args.items()},
            tuple(None if k is None else numbers[k] for k in n.results),
            n.line,
        )
        for n in kept
    ]


def _check_against(
    graph: Graph, run: Callable[..., Any], example: Sequence[Tensor], batch: int
) -> None:
    """The graph gives what the model gives, at a batch that it was not recorded at."""
    inputs = [_rows(x, batch) for x in example]
    backend = inputs[0].backend
    expected = [backend.to_numpy(t._array) for _, t in _named_outputs(run(*inputs), None)]
    with runtime.as_program_error():
        found = runtime.answers(runtime.Runner(graph, backend), [x._array for x in inputs])
    for k, a, b in zip(graph.outputs, found, expected, strict=True):
        if not runtime.close(a, b):
            raise ProgramError(
                f"export: recorded at batches of {', '.join(map(str, BATCHES))}, the program gives "
                f"{graph.values[k].name} {list(a.shape)} at {batch}, the model {list(b.shape)}, or "
                "other values: what the model computes depends on the batch size, or on chance"
            )
