"""Models as ONNX files, for onnxruntime and everything else that reads them.

    tg.onnx.export(model, example, "digits.onnx")

The model is recorded as for ``tg.export``; each kernel of the recording has a row in ``ROWS``, a
function that writes it as ONNX nodes. Files have opset 18 and IR version 8, which onnxruntime reads
since 1.14 (2023). Where ONNX or onnxruntime mean something else than our kernel (the rounding of a
quotient, NaN in ``argmax``, integers of 8 and 16 bits), a row writes the nodes that mean the same.
"""

from __future__ import annotations

import contextlib
import importlib.util
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from .deploy import export as recording
from .deploy import rules
from .deploy.graph import Dim, Graph, Node, ProgramError, Ref, Shape, Value
from .deploy.runtime import Runner, check_names
from .kernels import get_backend
from .weights import StrPath, path_name, replacing

__all__ = ["export", "to_onnx"]

OPSET = 18
IR_VERSION = 8
LARGEST = 2**31 - 2**24  # bytes of weights: a protobuf message ends at 2 GiB
BATCHES = (1, 2, 7)  # that an exported file is tried at
TOLERANCE = 1e-5  # of the largest size in an array; float16 rounds more coarsely
LEAST_SCALE = 1e-3  # for arrays of tiny numbers, which are what rounding left of larger ones

_BOOL, _INT32, _INT64, _FLOAT32 = map(np.dtype, (np.bool_, np.int32, np.int64, np.float32))
_SMALL = ("bool", "uint8", "int8", "int16")  # onnxruntime hardly computes with these
_LAST = 2**63 - 1  # the end of any axis


def export(
    model: Callable[..., Any],
    example: Any,
    path: StrPath,
    *,
    preprocess: Callable[[Any], Any] | None = None,
    postprocess: str | Callable[[Any], Any] | None = None,
    inputs: Sequence[str] | None = None,
    outputs: Sequence[str] | None = None,
    features: Sequence[str] | None = None,
    labels: Sequence[str] | None = None,
    metadata: Mapping[str, Any] | None = None,
) -> bool:
    """Write a model to ``path`` as an ONNX file, for any number of rows.

    ``model``, ``example`` and the keywords are those of ``tg.export``: the preprocessing and the
    postprocessing become nodes of the file; ``features``, ``labels`` and ``metadata`` its
    ``metadata_props``, str as it is, the rest as JSON.

    Where onnxruntime is installed, it answers rows of the example at batches of 1, 2 and 7, and the
    file takes its place only if each answer is within 1e-5 of the model's (of the largest size in
    it; integers and bools are equal). Returns whether that was done: False says that onnxruntime
    is missing, and that nothing has run the file.

    Raises ProgramError (a ValueError), naming the line, for a model that cannot be exported, and
    naming the first node that differs where onnxruntime answers otherwise; ImportError, with the
    command that installs it, where onnx is missing.
    """
    name, _ = path_name(path), _package()
    given = recording.tensors_of(example, model)
    run = recording.pipeline(model, preprocess, postprocess)
    graph = recording.record(model, run, given, inputs, outputs)
    check_names(graph, features, labels, None)
    props = {"features": features, "labels": labels, **(metadata or {})}
    writer = _Writer(graph)
    proto = writer.model({key: value for key, value in props.items() if value is not None})
    verified = importlib.util.find_spec("onnxruntime") is not None
    if verified:
        _verify(writer, proto, [x.backend.to_numpy(x._array) for x in given])
    with replacing(name) as file:
        file.write(proto.SerializeToString())
    return verified


def to_onnx(graph: Graph, metadata: Mapping[str, Any] | None = None) -> Any:
    """The graph as an ``onnx.ModelProto``, checked by onnx's checker and shape inference.

    Inputs, outputs and weights have the names of the graph's values, nodes the kernel's and its
    number, and in ``doc_string`` the line of the model. The batch is the symbolic dimension
    "batch". ``metadata`` becomes the file's ``metadata_props``: str as it is, the rest as JSON.

    Raises ProgramError for a graph that cannot run, a kernel that no forward records, and 2 GiB of
    weights or more; ImportError, with the command that installs it, where onnx is missing.
    """
    rules.check(graph)
    return _Writer(graph).model(metadata or {})


# --- writing nodes -----------------------------------------------------------------------------


class Operand(NamedTuple):
    """What a node reads or gives: its name in the file, its dtype, and the shape if it is a value
    of the graph."""

    name: str
    dtype: np.dtype
    shape: Shape = ()


class _Writer:
    """Writes a graph's kernels as ONNX nodes, in order."""

    def __init__(self, graph: Graph) -> None:
        self.onnx = _package()
        self.graph = graph
        self.operands: dict[int, Operand] = {}
        self.nodes: list[Any] = []
        self.initializers: list[Any] = []
        self._names: set[str] = set()
        self._numbers: dict[tuple[Any, ...], Operand] = {}  # constants of our own
        self._lengths: dict[Dim, Operand] = {}
        self._prefix = self._line = ""  # of the kernel that is being written
        self._count = 0

    def model(self, metadata: Mapping[str, Any]) -> Any:
        """The whole graph as a checked ModelProto."""
        from . import __version__

        helper, graph = self.onnx.helper, self.graph
        _check_size(graph)
        self._name_values()
        for i, node in enumerate(graph.nodes):
            self._write(i, node)
        outputs = self._outputs()
        inputs = [self.operands[k] for k in graph.inputs]
        shown = {o.name for o in (*inputs, *outputs)} | {t.name for t in self.initializers}
        inner = {o.name: o for o in self.operands.values() if o.name not in shown}
        proto = helper.make_graph(
            self.nodes,
            "model",
            [self.described(o) for o in inputs],
            [self.described(o) for o in outputs],
            self.initializers,
            value_info=[self.described(o) for o in inner.values()],
        )
        model = helper.make_model(
            proto,
            opset_imports=[helper.make_opsetid("", OPSET)],
            ir_version=IR_VERSION,
            producer_name="tinygrad_ish",
            producer_version=__version__,
        )
        helper.set_model_props(model, {key: _text(key, v) for key, v in metadata.items()})
        self.onnx.checker.check_model(model, full_check=True)
        return model

    def _name_values(self) -> None:
        """Inputs, outputs and weights take their names before anything else does."""
        graph = self.graph
        read = {k for node in graph.nodes for k in node.reads()} | set(graph.outputs)
        made = {k for node in graph.nodes for k in node.results}
        for what, numbers in (
            ("input", graph.inputs),
            ("output", dict.fromkeys(k for k in graph.outputs if k in made)),
            ("weight", [k for k in graph.constants if k in read]),
        ):
            for i, k in enumerate(numbers):
                value = graph.values[k]
                name = self._unique(value.name or f"{what}_{i}")
                self.operands[k] = Operand(name, value.dtype, value.shape)
        for k in graph.constants:
            if k in read:
                name = self.operands[k].name
                self.initializers.append(self._tensor(graph.constants[k], name))

    def _write(self, i: int, node: Node) -> None:
        graph, row = self.graph, ROWS.get(node.kernel)
        if row is None:
            raise ProgramError(
                f"onnx: the kernel {node.kernel} ({node.line or f'node {i}'}) belongs to no "
                "forward and has no ONNX form"
            )
        k = node.results[0]
        if k is None:
            return
        value = graph.values[k]
        self._prefix, self._line, self._count = f"{node.kernel}_{i}", node.line, 0
        if k not in graph.outputs:
            self.operands[k] = Operand(self._unique(self._prefix), value.dtype, value.shape)
        start = len(self.nodes)
        args = {name: self._argument(node, a) for name, a in node.args.items()}
        last = row(self, value, **args)
        if len(self.nodes) == start:  # an argument as it is
            if k not in graph.outputs:
                self.operands[k] = last
                return
            last = self.op("Identity", last)
        assert self.nodes[-1].output[0] == last.name
        self.nodes[-1].output[0] = self.operands[k].name

    def _argument(self, node: Node, a: Any) -> Any:
        if isinstance(a, Ref):
            if a.value not in self.operands:
                raise ProgramError(
                    f"onnx: {node.kernel} ({node.line}) reads value {a.value}, which belongs to a "
                    "gradient"
                )
            return self.operands[a.value]
        if isinstance(a, tuple) and not isinstance(a, Dim):
            return tuple(self._argument(node, x) for x in a)
        return a

    def _outputs(self) -> list[Operand]:
        """Each under a name of its own, though it be an input, a weight or an output already."""
        outputs: list[Operand] = []
        given = {self.operands[k].name for k in self.graph.inputs}
        given |= {t.name for t in self.initializers}
        self._prefix, self._line, self._count = "outputs", "", 0
        for k in self.graph.outputs:
            output = self.operands[k]
            if output.name in given:
                copy = output._replace(name=self._unique(f"{output.name}_out"))
                self.op("Identity", output)
                self.nodes[-1].output[0] = copy.name
                output = copy
            given.add(output.name)
            outputs.append(output)
        return outputs

    def op(self, kind: str, *inputs: Operand, dtype: Any = None, **attributes: Any) -> Operand:
        """Write a node; what it gives, of ``dtype`` or else the first input's."""
        name = self._unique(f"{self._prefix}.{self._count}")
        self._count += 1
        node = self.onnx.helper.make_node(
            kind, [x.name for x in inputs], [name], name=name, doc_string=self._line, **attributes
        )
        self.nodes.append(node)
        return Operand(name, inputs[0].dtype if dtype is None else np.dtype(dtype))

    def cast(self, x: Operand, dtype: Any) -> Operand:
        """x as ``dtype``."""
        dtype = np.dtype(dtype)
        if x.dtype == dtype:
            return x
        to = self.onnx.helper.np_dtype_to_tensor_dtype(dtype)
        return self.op("Cast", x, dtype=dtype, to=to)

    def constant(self, value: Any, dtype: Any) -> Operand:
        """An array or number that is no weight; equal ones are written once."""
        with np.errstate(over="ignore"):  # beyond float16 it is infinite, as in our kernels
            array = np.asarray(value, dtype)
        key = array.dtype.name, array.shape, array.tobytes()
        if key not in self._numbers:
            name = self._unique("constant")
            self.initializers.append(self._tensor(array, name))
            self._numbers[key] = Operand(name, array.dtype)
        return self._numbers[key]

    def computable(self, *values: Any) -> list[Operand]:
        """Operands and plain numbers in the one dtype in which onnxruntime computes with them."""
        dtype = next(x.dtype for x in values if isinstance(x, Operand))
        wide = _INT32 if dtype.name in _SMALL else dtype
        if wide == _INT32 and any(isinstance(x, int) and not -(2**31) <= x < 2**31 for x in values):
            wide = _INT64  # a comparison with a number that the array cannot hold
        return [
            self.cast(x, wide) if isinstance(x, Operand) else self.constant(x, wide) for x in values
        ]

    def lengths(self, numbers: Sequence[int | Dim]) -> Operand:
        """An int64 vector of numbers, of which some may grow with the batch."""
        if not any(isinstance(n, Dim) for n in numbers):
            return self.constant(numbers, _INT64)
        parts = [
            self._length(n) if isinstance(n, Dim) else self.constant([n], _INT64) for n in numbers
        ]
        return parts[0] if len(parts) == 1 else self.op("Concat", *parts, axis=0)

    def _length(self, dim: Dim) -> Operand:
        if dim not in self._lengths:
            values = self.graph.values
            k = next(k for k in self.graph.inputs if values[k].shape[:1] == (Dim(1, 0),))
            length = self.op("Shape", self.operands[k], dtype=_INT64, start=0, end=1)
            if dim.slope != 1:
                length = self.op("Mul", length, self.constant([dim.slope], _INT64))
            if dim.offset:
                length = self.op("Add", length, self.constant([dim.offset], _INT64))
            self._lengths[dim] = length
        return self._lengths[dim]

    def described(self, x: Operand) -> Any:
        """A ValueInfoProto: name, dtype, and the shape with the batch as a symbol."""
        helper = self.onnx.helper
        shape = [_symbol(n) if isinstance(n, Dim) else n for n in x.shape]
        return helper.make_tensor_value_info(
            x.name, helper.np_dtype_to_tensor_dtype(x.dtype), shape
        )

    def _tensor(self, array: np.ndarray, name: str) -> Any:
        content = array.astype(array.dtype.newbyteorder("<"), order="C", copy=False).tobytes()
        kind = self.onnx.helper.np_dtype_to_tensor_dtype(array.dtype.newbyteorder("="))
        return self.onnx.helper.make_tensor(name, kind, array.shape, content, raw=True)

    def _unique(self, name: str) -> str:
        found, n = name, 2
        while found in self._names:
            found, n = f"{name}_{n}", n + 1
        self._names.add(found)
        return found


def _package() -> Any:
    try:
        import onnx
    except ImportError as error:
        raise ImportError(
            "ONNX files need the onnx package: pip install 'tinygrad_ish[onnx]'"
        ) from error
    return onnx


def _check_size(graph: Graph) -> None:
    nbytes = sum(array.nbytes for array in graph.constants.values())
    if nbytes > LARGEST:
        raise ProgramError(
            f"onnx: the weights have {nbytes / 2**30:.1f} GiB, and an ONNX file ends at 2 GiB; "
            "cast the model to float16, or deploy it as a program with tinygrad_ish.export"
        )


def _symbol(dim: Dim) -> str:
    text = "batch" if dim.slope == 1 else f"{dim.slope}*batch"
    return text if not dim.offset else f"{text}{dim.offset:+}"


def _text(key: str, value: Any) -> str:
    import json  # 1 ms, which importing tinygrad_ish need not take

    if isinstance(value, str):
        return value
    try:
        return json.dumps(value, ensure_ascii=False)
    except TypeError as error:
        raise TypeError(
            f"metadata: {key}: expected what JSON can hold, got {type(value).__name__}: {error}"
        ) from error


# --- rows: elementwise -------------------------------------------------------------------------
# A row takes the writer, what the kernel gives, and the kernel's arguments, with Operands for
# arrays; it writes nodes and gives the operand that holds the result.

Row = Callable[..., Operand]


def _unary(kind: str) -> Row:
    def row(w: _Writer, result: Value, x: Operand) -> Operand:
        return w.cast(w.op(kind, *w.computable(x)), result.dtype)

    return row


def _binary(kind: str) -> Row:
    def row(w: _Writer, result: Value, a: Any, b: Any) -> Operand:
        return w.cast(w.op(kind, *w.computable(a, b)), result.dtype)

    return row


def _comparison(kind: str) -> Row:
    def row(w: _Writer, result: Value, a: Any, b: Any) -> Operand:
        return w.op(kind, *w.computable(a, b), dtype=_BOOL)

    return row


def _ne(w: _Writer, result: Value, a: Any, b: Any) -> Operand:
    return w.op("Not", w.op("Equal", *w.computable(a, b), dtype=_BOOL))


def _truncated(w: _Writer, a: Operand, b: Operand) -> tuple[Operand, Operand]:
    """The remainder that has a's sign, and whether the one with b's sign is another."""
    r = w.op("Mod", a, b, fmod=1)
    zero = w.constant(0, r.dtype)
    signs = w.op("Xor", _less(w, r, zero), _less(w, b, zero))
    return r, w.op("And", signs, w.op("Not", w.op("Equal", r, zero, dtype=_BOOL)))


def _less(w: _Writer, a: Operand, b: Operand) -> Operand:
    return w.op("Less", a, b, dtype=_BOOL)


def _remainder(w: _Writer, result: Value, a: Any, b: Any) -> Operand:
    a, b = w.computable(a, b)
    if a.dtype.kind == "i":
        return w.cast(w.op("Mod", a, b), result.dtype)
    r, moved = _truncated(w, a, b)
    return w.op("Where", moved, w.op("Add", r, b), r, dtype=r.dtype)


def _floor_div(w: _Writer, result: Value, a: Any, b: Any) -> Operand:
    """The quotient of what the remainder leaves: a whole number, but for its rounding."""
    a, b = w.computable(a, b)
    r, moved = _truncated(w, a, b)
    if a.dtype.kind == "i":
        return w.cast(w.op("Sub", w.op("Div", a, b), w.cast(moved, a.dtype)), result.dtype)
    whole = w.op("Round", w.op("Div", w.op("Sub", a, r), b))
    whole = w.op("Sub", whole, w.cast(moved, a.dtype))
    by_zero = w.op("Equal", b, w.constant(0, b.dtype), dtype=_BOOL)
    return w.op("Where", by_zero, w.op("Div", a, b), whole, dtype=a.dtype)


def _pow(w: _Writer, result: Value, a: Any, b: Any) -> Operand:
    if result.dtype.kind == "f" or not isinstance(b, int):
        return w.cast(w.op("Pow", *w.computable(a, b)), result.dtype)
    # onnxruntime computes integer powers in float64: products are exact
    (square,) = w.computable(a)
    power = None if b else w.op("Add", *w.computable(w.op("Mul", *w.computable(square, 0)), 1))
    while b:
        if b & 1:
            power = square if power is None else w.op("Mul", power, square)
        b >>= 1
        square = w.op("Mul", square, square) if b else square
    assert power is not None
    return w.cast(power, result.dtype)


def _where(w: _Writer, result: Value, condition: Operand, a: Any, b: Any) -> Operand:
    a, b = w.computable(a, b)
    return w.cast(w.op("Where", condition, a, b, dtype=a.dtype), result.dtype)


def _sign(w: _Writer, result: Value, x: Operand) -> Operand:
    """In float32 for float16, of which onnxruntime makes NaN 0."""
    wide = w.cast(x, _FLOAT32) if x.dtype == np.float16 else x
    return w.cast(w.op("Sign", *w.computable(wide)), result.dtype)


def _relu(w: _Writer, result: Value, x: Operand) -> Operand:
    if result.dtype.kind == "f":
        return w.op("Relu", x)
    return w.cast(w.op("Max", *w.computable(x, 0)), result.dtype)


def _gelu(w: _Writer, result: Value, x: Operand, approximate: str = "none") -> Operand:
    x = w.cast(x, np.promote_types(x.dtype, np.float32))

    def number(n: float) -> Operand:
        return w.constant(n, x.dtype)

    if approximate == "tanh":
        cube = w.op("Mul", w.op("Mul", x, x), x)
        inner = w.op("Add", x, w.op("Mul", cube, number(0.044715)))
        inner = w.op("Tanh", w.op("Mul", inner, number(math.sqrt(2 / math.pi))))
    else:  # onnxruntime has Erf of float32 alone
        inner = w.op("Div", x, number(math.sqrt(2)))
        inner = w.cast(w.op("Erf", w.cast(inner, _FLOAT32)), x.dtype)
    y = w.op("Mul", w.op("Mul", x, w.op("Add", inner, number(1))), number(0.5))
    return w.cast(y, result.dtype)


def _bitwise(logical: str, bitwise: str) -> Row:
    def row(w: _Writer, result: Value, **operands: Any) -> Operand:
        if result.dtype == _BOOL:
            given = [
                x if isinstance(x, Operand) else w.constant(x, _BOOL) for x in operands.values()
            ]
            return w.op(logical, *given)
        return w.cast(w.op(bitwise, *w.computable(*operands.values())), result.dtype)

    return row


def _copy(w: _Writer, result: Value, x: Operand) -> Operand:
    return x


def _cast(w: _Writer, result: Value, x: Operand, dtype: Any) -> Operand:
    return w.cast(x, result.dtype)


# --- rows: reductions --------------------------------------------------------------------------


def _axes(x: Operand, axis: Any) -> tuple[int, ...]:
    if axis is None:
        return tuple(range(len(x.shape)))
    return (axis,) if isinstance(axis, int) else tuple(axis)


def _reduced(w: _Writer, kind: str, x: Operand, axes: tuple[int, ...], keepdims: bool) -> Operand:
    """x itself where no axis is reduced: ONNX would take that for all of them."""
    if not axes:
        return x
    return w.op(kind, x, w.constant(axes, _INT64), keepdims=int(keepdims))


def _sum(
    w: _Writer, result: Value, x: Operand, axis: Any = None, keepdims: bool = False
) -> Operand:
    return _reduced(w, "ReduceSum", w.cast(x, result.dtype), _axes(x, axis), keepdims)


def _sum_to(w: _Writer, result: Value, x: Operand, shape: Any) -> Operand:
    lead = len(x.shape) - len(result.shape)
    stretched = tuple(i for i, n in enumerate(result.shape) if n == 1 and x.shape[lead + i] != 1)
    y = _reduced(w, "ReduceSum", x, tuple(range(lead)), False)
    return _reduced(w, "ReduceSum", y, stretched, True)


def _mean(
    w: _Writer,
    result: Value,
    x: Operand,
    axis: Any = None,
    keepdims: bool = False,
    correction: int = 0,
) -> Operand:
    wide = w.cast(x, np.promote_types(x.dtype, np.float32))
    axes = _axes(x, axis)
    lengths = [x.shape[a] for a in axes]
    if correction == 0 and 0 not in lengths:
        return w.cast(_reduced(w, "ReduceMean", wide, axes, keepdims), result.dtype)
    total = _reduced(w, "ReduceSum", wide, axes, keepdims)
    count = w.op("ReduceProd", w.lengths(lengths), keepdims=0)
    count = w.op("Max", *w.computable(w.op("Sub", *w.computable(count, correction)), 0))
    return w.cast(w.op("Div", total, w.cast(count, wide.dtype)), result.dtype)


def _largest(kind: str) -> Row:
    def row(
        w: _Writer, result: Value, x: Operand, axis: Any = None, keepdims: bool = False
    ) -> Operand:
        axes, (wide,) = _axes(x, axis), w.computable(x)
        y = _reduced(w, kind, wide, axes, keepdims)
        if x.dtype.kind != "f" or not axes:
            return w.cast(y, result.dtype)
        # NaN if there is one: the sum of the elements that are NaN, 0 for the others
        nan = w.op("Where", w.op("IsNaN", x, dtype=_BOOL), x, w.constant(0, x.dtype), dtype=x.dtype)
        return w.op("Add", y, _reduced(w, "ReduceSum", nan, axes, keepdims))

    return row


def _position(kind: str) -> Row:
    def row(
        w: _Writer, result: Value, x: Operand, axis: int | None = None, keepdims: bool = False
    ) -> Operand:
        flat = x if axis is not None else w.op("Reshape", x, w.constant([-1], _INT64))
        attributes = {"axis": axis or 0, "keepdims": int(keepdims and axis is not None)}
        (wide,) = w.computable(flat)
        y = w.op(kind, wide, dtype=_INT64, **attributes)
        if x.dtype.kind == "f":  # the first NaN, if there is one
            nan = w.cast(w.op("IsNaN", flat, dtype=_BOOL), _INT32)
            first = w.op("ArgMax", nan, dtype=_INT64, **attributes)
            axes = w.constant([attributes["axis"]], _INT64)
            some = w.op("ReduceMax", nan, axes, keepdims=attributes["keepdims"])
            y = w.op("Where", w.cast(some, _BOOL), first, y, dtype=_INT64)
        if keepdims and axis is None:
            y = w.op("Reshape", y, w.constant([1] * len(x.shape), _INT64))
        return y

    return row


def _any(
    w: _Writer, result: Value, x: Operand, axis: Any = None, keepdims: bool = False
) -> Operand:
    some = w.cast(_ne(w, result, x, 0), _INT32)
    return w.cast(_reduced(w, "ReduceSum", some, _axes(x, axis), keepdims), _BOOL)


def _all(
    w: _Writer, result: Value, x: Operand, axis: Any = None, keepdims: bool = False
) -> Operand:
    zeros = w.cast(w.op("Equal", *w.computable(x, 0), dtype=_BOOL), _INT32)
    zeros = _reduced(w, "ReduceSum", zeros, _axes(x, axis), keepdims)
    return w.op("Equal", *w.computable(zeros, 0), dtype=_BOOL)


def _softmax(w: _Writer, result: Value, x: Operand, axis: int) -> Operand:
    return w.op("Softmax", x, axis=axis)


def _log_softmax(w: _Writer, result: Value, x: Operand, axis: int) -> Operand:
    if x.dtype != np.float64 or 0 in x.shape:
        return w.op("LogSoftmax", x, axis=axis)
    # onnxruntime's of float64 loses NaN
    shifted = w.op("Sub", x, _reduced(w, "ReduceMax", x, (axis,), True))
    total = _reduced(w, "ReduceSum", w.op("Exp", shifted), (axis,), True)
    return w.op("Sub", shifted, w.op("Log", total))


# --- rows: movement ----------------------------------------------------------------------------


def _reshape(w: _Writer, result: Value, x: Operand, shape: Any) -> Operand:
    """Lengths that grow with the batch are copied (0) or follow from the others (-1)."""
    wanted = result.shape
    if x.shape == wanted:
        return x
    copied = {i for i, n in enumerate(x.shape) if isinstance(n, Dim) and wanted[i : i + 1] == (n,)}
    grown = {i for i, n in enumerate(wanted) if isinstance(n, Dim)} - copied
    if 0 in wanted or len(grown) > 1:
        return w.op("Reshape", x, w.lengths(wanted), allowzero=1)
    target = [0 if i in copied else -1 if i in grown else n for i, n in enumerate(wanted)]
    return w.op("Reshape", x, w.lengths(target))


def _permute(w: _Writer, result: Value, x: Operand, axes: tuple[int, ...]) -> Operand:
    return w.op("Transpose", x, perm=axes) if axes else x


def _expand(w: _Writer, result: Value, x: Operand, shape: Any) -> Operand:
    """A length of 1 keeps x's own: the batch stands only where x has none."""
    if x.shape == result.shape:
        return x
    own = (None,) * (len(result.shape) - len(x.shape)) + x.shape
    target = [1 if n == m else n for n, m in zip(result.shape, own, strict=True)]
    return w.op("Expand", x, w.lengths(target))


def _getitem(w: _Writer, result: Value, x: Operand, index: tuple[Any, ...]) -> Operand:
    cuts, dropped, new = _cuts(x.shape, index)
    if cuts:
        starts, stops, axes, steps = (w.lengths(numbers) for numbers in zip(*cuts, strict=True))
        x = w.op("Slice", x, starts, stops, axes, steps)
    if dropped:
        x = w.op("Squeeze", x, w.constant(dropped, _INT64))
    return w.op("Unsqueeze", x, w.constant(new, _INT64)) if new else x


def _cuts(shape: Shape, index: tuple[Any, ...]) -> tuple[list[Any], list[int], list[int]]:
    """An index as slices (start, stop, axis, step), axes to drop, and places of new axes."""
    parts = index if Ellipsis in index else (*index, Ellipsis)
    at = parts.index(Ellipsis)
    whole = len(shape) - sum(p is not None for p in parts) + 1
    parts = parts[:at] + (slice(None),) * whole + parts[at + 1 :]
    cuts: list[Any] = []
    dropped: list[int] = []
    new: list[int] = []
    axis = place = 0
    for p in parts:
        if p is None:
            new.append(place)
        elif isinstance(p, slice):
            stop = _LAST if p.stop is None or p.stop == shape[axis] else p.stop
            cut = 0 if p.start is None else p.start, stop, axis, p.step or 1
            if cut != (0, _LAST, axis, 1):
                cuts.append(cut)
        else:
            after = Dim(p.slope, p.offset + 1) if isinstance(p, Dim) else p + 1
            cuts.append((p, after or _LAST, axis, 1))
            dropped.append(axis)
        place += p is None or isinstance(p, slice)
        axis += p is not None
    return cuts, dropped, new


def _cat(w: _Writer, result: Value, arrays: tuple[Operand, ...], axis: int) -> Operand:
    return w.op("Concat", *arrays, axis=axis)


def _index_select(w: _Writer, result: Value, x: Operand, index: Operand, axis: int) -> Operand:
    return w.op("Gather", x, index, axis=axis)


def _gather(w: _Writer, result: Value, x: Operand, index: Operand, axis: int) -> Operand:
    return w.op("GatherElements", x, index, axis=axis)


# --- rows: linear algebra and normalization ----------------------------------------------------


def _linear(
    writer: _Writer,
    result: Value,
    x: Operand,
    w: Operand,
    b: Operand | None = None,
    activation: str | None = None,
) -> Operand:
    y = writer.op("Gemm", x, w, *([] if b is None else [b]), transB=1)
    return writer.op("Relu", y) if activation == "relu" else y


def _linear_int8(
    writer: _Writer,
    result: Value,
    x: Operand,
    w8: Operand,
    scale: Operand,
    b: Operand | None = None,
    activation: str | None = None,
) -> Operand:
    wide = np.promote_types(x.dtype, np.float32)
    product = writer.op("Gemm", writer.cast(x, wide), writer.cast(w8, wide), transB=1)
    y = writer.op("Mul", product, writer.cast(scale, wide))
    if b is not None:
        y = writer.op("Add", y, writer.cast(b, wide))
    if activation == "relu":
        y = writer.op("Relu", y)
    return writer.cast(y, result.dtype)


def _layer_norm(
    w: _Writer,
    result: Value,
    x: Operand,
    weight: Operand | None = None,
    bias: Operand | None = None,
    eps: float = 1e-5,
) -> Operand:
    if 0 in x.shape[1:]:  # which onnxruntime refuses
        return x
    if weight is None:
        weight = w.op("Expand", w.constant([1], x.dtype), w.lengths(x.shape[1:]))
    given = [x, weight] if bias is None else [x, weight, bias]
    return w.op("LayerNormalization", *given, axis=-1, epsilon=eps)


# The kernels that the recording of a forward can hold.
ROWS: dict[str, Row] = {
    "add": _binary("Add"), "sub": _binary("Sub"), "mul": _binary("Mul"), "div": _binary("Div"),
    "floor_div": _floor_div, "remainder": _remainder, "pow": _pow,
    "maximum": _binary("Max"), "minimum": _binary("Min"), "where": _where,
    "neg": _unary("Neg"), "abs": _unary("Abs"), "sign": _sign, "sqrt": _unary("Sqrt"),
    "exp": _unary("Exp"), "log": _unary("Log"), "sigmoid": _unary("Sigmoid"),
    "tanh": _unary("Tanh"), "relu": _relu, "gelu": _gelu,
    "eq": _comparison("Equal"), "ne": _ne, "lt": _comparison("Less"),
    "le": _comparison("LessOrEqual"), "gt": _comparison("Greater"),
    "ge": _comparison("GreaterOrEqual"),
    "bitwise_not": _bitwise("Not", "BitwiseNot"), "bitwise_and": _bitwise("And", "BitwiseAnd"),
    "bitwise_or": _bitwise("Or", "BitwiseOr"), "copy": _copy, "cast": _cast,
    "sum": _sum, "sum_to": _sum_to, "mean": _mean, "amax": _largest("ReduceMax"),
    "amin": _largest("ReduceMin"), "argmax": _position("ArgMax"), "argmin": _position("ArgMin"),
    "any": _any, "all": _all, "softmax": _softmax,
    "log_softmax": _log_softmax,
    "reshape": _reshape, "permute": _permute, "expand": _expand, "getitem": _getitem, "cat": _cat,
    "index_select": _index_select, "gather": _gather,
    "matmul": _binary("MatMul"), "linear": _linear, "linear_int8": _linear_int8,
    "layer_norm": _layer_norm,
}  # fmt: skip


# --- trying the file ---------------------------------------------------------------------------


def _verify(writer: _Writer, model: Any, example: Sequence[np.ndarray]) -> None:
    """Raise ProgramError unless onnxruntime answers rows of the example as our kernels do."""
    graph = writer.graph
    runner = Runner(graph, get_backend("numpy"))
    session, names = _session(model), [o.name for o in model.graph.output]
    for batch in BATCHES:
        rows = [x[np.arange(batch) % len(x)] if x.ndim else x for x in example]
        held = dict(zip(graph.inputs, rows, strict=True))
        values = dict(held)
        for node in runner.steps(held, batch):
            values |= {k: held[k] for k in node.results if k is not None}
        for k, found in zip(graph.outputs, _answers(session, names, rows), strict=True):
            what = _difference(found, values[k])
            if what is not None:
                raise ProgramError(
                    f"onnx: at a batch of {batch}, onnxruntime's {graph.values[k].name} {what}; "
                    f"{_first_difference(writer, model, rows, values)}; no file was written"
                )


def _session(model: Any) -> Any:
    """onnxruntime with the model, on one thread and without a word."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    with _as_program_error(onnxruntime.__version__):
        return onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )


def _answers(session: Any, names: Sequence[str], inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
    import onnxruntime

    with _as_program_error(onnxruntime.__version__):
        feeds = {i.name: x for i, x in zip(session.get_inputs(), inputs, strict=True)}
        return list(session.run(names, feeds))


@contextlib.contextmanager
def _as_program_error(version: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # onnxruntime's have no class in common but this one
        raise ProgramError(
            f"onnx: onnxruntime {version} cannot run the file: {error}; no file was written"
        ) from error


def _first_difference(
    writer: _Writer, model: Any, inputs: Sequence[np.ndarray], values: Mapping[int, np.ndarray]
) -> str:
    """Which node differs first, found by giving the results of all nodes as outputs."""
    whole = type(model)()
    whole.CopyFrom(model)
    made: dict[str, tuple[Node, int]] = {}
    for node in writer.graph.nodes:
        for k in node.results:
            if k in writer.operands:
                made.setdefault(writer.operands[k].name, (node, k))
    given = {o.name for o in model.graph.output}
    whole.graph.output.extend(
        writer.described(writer.operands[k]) for name, (_, k) in made.items() if name not in given
    )
    answers = _answers(_session(whole), list(made), inputs)
    for (name, (node, k)), found in zip(made.items(), answers, strict=True):
        what = _difference(found, values[k])
        if what is not None:
            return f"the first node that differs is {name}, {node.kernel} at {node.line}: it {what}"
    return "node by node, without onnxruntime's optimizations across them, nothing differs"


def _difference(found: np.ndarray, expected: np.ndarray) -> str | None:
    """How an answer differs from what it should be; None if it is the same but for rounding."""
    if (found.shape, found.dtype) != (expected.shape, expected.dtype):
        return f"is {found.dtype}{list(found.shape)}, not {expected.dtype}{list(expected.shape)}"
    if expected.dtype.kind != "f":
        count = np.count_nonzero(found != expected)
        return f"differs in {count} of {found.size} elements" if count else None
    finite = np.isfinite(expected)
    if not np.array_equal(found[~finite], expected[~finite], equal_nan=True):
        return "has infinities or NaN elsewhere"
    scale = max(np.abs(expected[finite].astype(np.float64)).max(initial=0.0), LEAST_SCALE)
    distance = np.abs(found[finite].astype(np.float64) - expected[finite]).max(initial=0.0) / scale
    if distance <= max(TOLERANCE, 8 * float(np.finfo(expected.dtype).eps)):
        return None
    return f"differs by {distance:.2g} of the largest size {scale:.4g}"
